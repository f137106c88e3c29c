//! `demist train-classifier`: trains a classifier of noisy images, to guide
//! sampling with.

use super::shared::{
    DataArgs, DeviceArgs, DiffusionArgs, RunArgs, TrainArgs, Typed, attention_factors, open_both,
    preset_names_where, run_training,
};
use demist::data::Dataset;
use demist::diffusion::DiffusionConfig;
use demist::model::{EncoderConfig, Hints, ModelConfig, Pool, default_encoder, encoder_preset};
use demist::{Error, Result, TrainerOptions};
use std::path::PathBuf;

/// Arguments of `train-classifier`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Labelled images: a folder (classes by subfolder or by file name before
    /// the first underscore), an atlas .png with its .json, or IDX files.
    data: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    data_options: DataArgs,
    #[command(flatten)]
    model: ClassifierArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    training: TrainArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Classifier (defaults depend on the image size)")]
struct ClassifierArgs {
    /// Start from a published classifier's options.
    #[arg(long)]
    preset: Option<String>,
    /// Train on clean images instead of noised ones.
    #[arg(long)]
    clean: bool,
    /// Base width; a multiple of 32.
    #[arg(long)]
    classifier_width: Option<usize>,
    /// Residual blocks a level.
    #[arg(long)]
    classifier_depth: Option<usize>,
    /// Image sizes at which blocks attend ("16,8").
    #[arg(long, value_delimiter = ',')]
    classifier_attention_resolutions: Option<Vec<usize>>,
    /// How the last feature map becomes one vector.
    #[arg(long, value_enum)]
    classifier_pool: Option<PoolArg>,
    /// Dropout probability in residual blocks.
    #[arg(long, allow_negative_numbers = true)]
    dropout: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum PoolArg {
    /// Mean of the last feature map.
    Adaptive,
    /// Attention from the mean to all positions.
    Attention,
    /// Channel means of every block.
    Spatial,
    /// The same with group norm.
    SpatialV2,
}

/// Trains.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let typed = Typed {
        data: &args.data,
        data_options: &args.data_options,
        run: &args.run,
        training: &args.training,
    };
    let fits = |info: &demist::checkpoint::NetworkInfo| match info.model.encoder() {
        Ok(_) => Ok(()),
        Err(_) => Err(Error::file(&args.run.out, "no classifier's run; continue it with train")),
    };
    run_training(device, typed, fits, || meant(args))
}

/// What is to be trained, by the arguments.
fn meant(args: &Args) -> Result<(TrainerOptions, Dataset)> {
    let d = &args.data_options;
    let m = &args.model;
    let hints = Hints { num_res_blocks: m.classifier_depth, ..Default::default() };
    let (base, dataset) = open_both(&args.run, m.preset.as_deref(), hints, &args.data, d)?;
    let classes = dataset.classes().len();
    if classes < 2 {
        return Err(Error::Config(format!(
            "a classifier needs at least 2 classes, the data has {classes}"
        )));
    }
    let model = match (&base, &args.run.init) {
        (Some(base), Some(path)) => {
            let base = base.model.encoder().map_err(|e| Error::file(path, e.to_string()))?;
            m.agree(base).map_err(|e| Error::file(path, e))?;
            EncoderConfig {
                image_size: dataset.size(),
                out_channels: classes,
                dropout: m.dropout.unwrap_or(base.dropout),
                ..base.clone()
            }
        }
        _ => encoder_config(m, &dataset)?,
    };
    let process = base.as_ref().map_or_else(DiffusionConfig::default, |b| b.diffusion.clone());
    let diffusion = args.diffusion.apply(process)?;
    let mut training = args.training.config(d)?;
    training.noised = !m.clean;
    let options = TrainerOptions {
        model: Some(ModelConfig::Encoder(model)),
        diffusion: Some(diffusion),
        training,
        start: base,
        ..Default::default()
    };
    Ok((options, dataset))
}

impl From<PoolArg> for Pool {
    fn from(pool: PoolArg) -> Pool {
        match pool {
            PoolArg::Adaptive => Pool::Adaptive,
            PoolArg::Attention => Pool::Attention,
            PoolArg::Spatial => Pool::Spatial,
            PoolArg::SpatialV2 => Pool::SpatialV2,
        }
    }
}

impl ClassifierArgs {
    /// What was asked for that the network of --init is not.
    fn agree(&self, base: &EncoderConfig) -> std::result::Result<(), String> {
        let attention = self.classifier_attention_resolutions.is_none();
        for (option, same) in [
            ("--classifier-width", self.classifier_width.is_none_or(|v| v == base.model_channels)),
            ("--classifier-depth", self.classifier_depth.is_none_or(|v| v == base.num_res_blocks)),
            ("--classifier-pool", self.classifier_pool.is_none_or(|v| Pool::from(v) == base.pool)),
            ("--classifier-attention-resolutions", attention),
        ] {
            if !same {
                return Err(format!("{option} contradicts the network; leave it out"));
            }
        }
        Ok(())
    }
}

fn encoder_config(m: &ClassifierArgs, dataset: &Dataset) -> Result<EncoderConfig> {
    let (size, channels, classes) = (dataset.size(), dataset.channels(), dataset.classes().len());
    let mut c = match &m.preset {
        Some(name) => encoder_preset(name).ok_or_else(|| {
            Error::Config(format!(
                "no classifier is called `{name}`; there are {}",
                preset_names_where(|name| encoder_preset(name).is_some())
            ))
        })?,
        None => default_encoder(size, channels, classes),
    };
    if c.image_size != size {
        return Err(Error::Config(format!(
            "the preset is for images of {} pixels, the data has {size}; give --image-size {}",
            c.image_size, c.image_size
        )));
    }
    c.in_channels = channels;
    c.out_channels = classes;
    c.model_channels = m.classifier_width.unwrap_or(c.model_channels);
    c.num_res_blocks = m.classifier_depth.unwrap_or(c.num_res_blocks);
    c.dropout = m.dropout.unwrap_or(c.dropout);
    if let Some(sizes) = &m.classifier_attention_resolutions {
        c.attention_resolutions = attention_factors(sizes, c.image_size, c.channel_mult.len())?;
    }
    if let Some(pool) = m.classifier_pool {
        c.pool = pool.into();
    }
    Ok(c)
}
