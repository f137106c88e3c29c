//! `demist train`: trains a diffusion or super-resolution network in a run
//! folder.

use super::shared::{
    DataArgs, DeviceArgs, DiffusionArgs, ObjectiveArgs, RunArgs, TrainArgs, Typed,
    attention_factors, open_both, preset_names_where, run_training,
};
use demist::data::Dataset;
use demist::diffusion::{DiffusionConfig, VarType};
use demist::model::{Hints, ModelConfig, UNetConfig, default_model, preset};
use demist::{Error, Result, TrainerOptions};
use std::path::PathBuf;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Images: a folder (classes by subfolder or by file name before the first
    /// underscore), an atlas .png with its .json, or IDX files.
    data: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    data_options: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    objective: ObjectiveArgs,
    #[command(flatten)]
    training: TrainArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Network (defaults depend on the image size)")]
struct ModelArgs {
    /// Start from a published network's options.
    #[arg(long)]
    preset: Option<String>,
    /// Base width; a multiple of 32.
    #[arg(long)]
    num_channels: Option<usize>,
    /// Width multiplier of each level ("1,2,2", "0.5,1,1").
    #[arg(long, value_delimiter = ',')]
    channel_mult: Option<Vec<f64>>,
    /// Residual blocks a level.
    #[arg(long)]
    num_res_blocks: Option<usize>,
    /// Image sizes at which blocks attend ("16,8").
    #[arg(long, value_delimiter = ',')]
    attention_resolutions: Option<Vec<usize>>,
    /// Attention heads.
    #[arg(long)]
    num_heads: Option<usize>,
    /// Channels a head (instead of --num-heads).
    #[arg(long)]
    num_head_channels: Option<usize>,
    /// Dropout probability in residual blocks.
    #[arg(long, allow_negative_numbers = true)]
    dropout: Option<f32>,
    /// Train super-resolution from images of this side; the data are the large ones.
    #[arg(long, value_name = "SIDE")]
    small_size: Option<usize>,
    /// Show this share of the images without their class, so that sampling can
    /// use classifier-free guidance ("0.1").
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    label_dropout: f64,
    /// Ignore the classes.
    #[arg(long)]
    unconditional: bool,
    /// Add the timestep embedding instead of scaling and shifting by it.
    #[arg(long)]
    no_scale_shift_norm: bool,
    /// Resample by convolutions between the blocks instead of inside them.
    #[arg(long)]
    no_resblock_updown: bool,
    /// Recompute blocks in the backward walk to save memory.
    #[arg(long)]
    checkpoint: bool,
}

/// Trains.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let typed = Typed {
        data: &args.data,
        data_options: &args.data_options,
        run: &args.run,
        training: &args.training,
    };
    let fits = |info: &demist::checkpoint::NetworkInfo| match info.model.unet() {
        Ok(_) => Ok(()),
        Err(_) => {
            Err(Error::file(&args.run.out, "a classifier's run; continue it with train-classifier"))
        }
    };
    run_training(device, typed, fits, || meant(args))
}

/// What is to be trained, by the arguments.
fn meant(args: &Args) -> Result<(TrainerOptions, Dataset)> {
    let d = &args.data_options;
    let m = &args.model;
    let hints = Hints {
        num_heads: m.num_heads,
        num_head_channels: m.num_head_channels,
        num_res_blocks: m.num_res_blocks,
        small_size: m.small_size,
        ..Default::default()
    };
    let (base, dataset) = open_both(&args.run, m.preset.as_deref(), hints, &args.data, d)?;
    let process = base.as_ref().map_or_else(DiffusionConfig::default, |b| b.diffusion.clone());
    let diffusion = args.objective.apply(args.diffusion.apply(process)?);
    let model = match (&base, &args.run.init) {
        (Some(base), Some(path)) => {
            let base = base.model.unet().map_err(|e| Error::file(path, e.to_string()))?;
            m.agree(base).map_err(|e| Error::file(path, e))?;
            adapt(base, m, &dataset, diffusion.var_type)
        }
        _ => model_config(m, &dataset, diffusion.var_type)?,
    };
    if m.label_dropout != 0.0 && model.num_classes.is_none() {
        return Err(Error::Config(
            "--label-dropout is for conditional networks: the data has no classes, or \
             --unconditional was given"
                .into(),
        ));
    }
    let mut training = args.training.config(d)?;
    training.label_dropout = m.label_dropout;
    let options = TrainerOptions {
        model: Some(ModelConfig::UNet(model)),
        diffusion: Some(diffusion),
        training,
        start: base,
        ..Default::default()
    };
    Ok((options, dataset))
}

impl ModelArgs {
    /// What was asked for that the network of --init is not.
    fn agree(&self, base: &UNetConfig) -> std::result::Result<(), String> {
        let check = |option: &str, same: bool| match same {
            true => Ok(()),
            false => Err(format!("{option} contradicts the network; leave it out")),
        };
        let width = base.model_channels;
        check("--num-channels", self.num_channels.is_none_or(|v| v == width))?;
        check(
            "--channel-mult",
            self.channel_mult.as_ref().is_none_or(|v| *v == base.channel_mult),
        )?;
        check("--num-res-blocks", self.num_res_blocks.is_none_or(|v| v == base.num_res_blocks))?;
        let heads = (base.num_heads, base.num_head_channels);
        check("--num-heads", self.num_heads.is_none_or(|v| heads == (v, None)))?;
        check("--num-head-channels", self.num_head_channels.is_none_or(|v| heads.1 == Some(v)))?;
        check("--small-size", self.small_size.is_none_or(|v| base.small_size == Some(v)))?;
        check("--no-scale-shift-norm", !(self.no_scale_shift_norm && base.use_scale_shift_norm))?;
        check("--no-resblock-updown", !(self.no_resblock_updown && base.resblock_updown))?;
        let given = self.attention_resolutions.iter().flatten();
        let mut sizes: Vec<usize> = given.copied().collect();
        let mut theirs: Vec<usize> =
            base.attention_resolutions.iter().map(|d| base.image_size / d).collect();
        sizes.sort_unstable();
        theirs.sort_unstable();
        let same = self.attention_resolutions.is_none() || sizes == theirs;
        check("--attention-resolutions", same)
    }
}

/// The network of --init for the images and classes of the data and the outputs of
/// the process.
fn adapt(base: &UNetConfig, m: &ModelArgs, dataset: &Dataset, variance: VarType) -> UNetConfig {
    let classes = dataset.classes().len();
    let num_classes = (!m.unconditional && classes > 1).then_some(classes);
    // A row for "no class" stays where the classes do.
    let keeps = base.null_class && num_classes == base.num_classes;
    UNetConfig {
        image_size: dataset.size(),
        out_channels: base.in_channels * if variance.is_learned() { 2 } else { 1 },
        num_classes,
        null_class: num_classes.is_some() && (keeps || m.label_dropout > 0.0),
        dropout: m.dropout.unwrap_or(base.dropout),
        use_checkpoint: m.checkpoint,
        ..base.clone()
    }
}

fn model_config(m: &ModelArgs, dataset: &Dataset, variance: VarType) -> Result<UNetConfig> {
    let mut c = match &m.preset {
        Some(name) => preset(name).ok_or_else(|| {
            Error::Config(format!(
                "no diffusion network is called `{name}`; there are {}",
                preset_names_where(|name| preset(name).is_some())
            ))
        })?,
        None => default_model(dataset.size()),
    };
    if c.image_size != dataset.size() {
        return Err(Error::Config(format!(
            "the preset is for images of {} pixels, the data has {}; give --image-size {}",
            c.image_size,
            dataset.size(),
            c.image_size
        )));
    }
    c.in_channels = dataset.channels();
    c.out_channels = dataset.channels() * if variance.is_learned() { 2 } else { 1 };
    c.small_size = m.small_size.or(c.small_size);
    c.num_classes =
        (!m.unconditional && dataset.classes().len() > 1).then_some(dataset.classes().len());
    c.null_class = m.label_dropout > 0.0 && c.num_classes.is_some();
    if let Some(v) = m.num_channels {
        c.model_channels = v;
    }
    if let Some(v) = &m.channel_mult {
        c.channel_mult = v.clone();
    }
    if let Some(v) = m.num_res_blocks {
        c.num_res_blocks = v;
    }
    if let Some(sizes) = &m.attention_resolutions {
        c.attention_resolutions = attention_factors(sizes, c.image_size, c.channel_mult.len())?;
    }
    if let Some(v) = m.num_heads {
        c.num_heads = v;
        c.num_head_channels = None;
    }
    c.num_head_channels = m.num_head_channels.or(c.num_head_channels);
    c.dropout = m.dropout.unwrap_or(c.dropout);
    c.use_scale_shift_norm &= !m.no_scale_shift_norm;
    c.resblock_updown &= !m.no_resblock_updown;
    c.use_checkpoint = m.checkpoint;
    Ok(c)
}
