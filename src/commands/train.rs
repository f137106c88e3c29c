//! `demist train`: trains a diffusion or super-resolution network in a run
//! folder.

use super::options::{
    DataArgs, DiffusionArgs, ObjectiveArgs, RunArgs, TrainArgs, new_info, open_validation,
};
use super::shared::{DeviceArgs, bar, keep_compiling, open_data, open_device, stop_on_ctrl_c};
use demist::checkpoint::{Imported, NetworkInfo, read_any};
use demist::data::{DataOptions, Dataset, first_names};
use demist::diffusion::{DiffusionConfig, VarType};
use demist::engine::runtime::Context;
use demist::model::{Hints, ModelConfig, UNetConfig, default_model, preset, preset_names};
use demist::recipe::TrainConfig;
use demist::train::{Event, RunOptions, TermSum, TrainOutcome, fit_memory, memory_need, train};
use demist::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    let saved = args.run.saved()?;
    if let Some(info) = &saved
        && info.model.unet().is_err()
    {
        return Err(Error::file(
            &args.run.out,
            "a classifier's run; continue it with train-classifier",
        ));
    }
    let start = match saved {
        Some(info) => Start::again(info, &args.training, &args.data)?,
        None => start(args)?,
    };
    let options = (&args.data_options, &args.run);
    run_training(device, start, &args.data, options, args.training.memory)
}

/// What a run begins or goes on with.
pub struct Start {
    pub info: NetworkInfo,
    pub dataset: Dataset,
    /// Weights in device layout, if they are not drawn.
    pub initial: Option<Vec<Vec<f32>>>,
}

impl Start {
    /// Goes on with a saved run.
    pub fn again(mut info: NetworkInfo, training: &TrainArgs, data: &Path) -> Result<Start> {
        training.resume(&mut info.training);
        let (size, channels) = (info.model.image_size(), info.model.in_channels());
        let dataset = open_data(data, Some(size), Some(channels), info.training.random_crop)?;
        check_classes(&info, &dataset)?;
        Ok(Start { info, dataset, initial: None })
    }

    /// A new run of a described network, from the weights of `base` where there
    /// is one.
    pub fn new(
        (model, diffusion, training): (ModelConfig, DiffusionConfig, TrainConfig),
        base: Option<&Imported>,
        dataset: Dataset,
        data: &Path,
    ) -> Result<Start> {
        model.validate()?;
        training.validate()?;
        let initial = base.map(|b| b.initial(&model, training.seed)).transpose()?;
        let initial = initial.map(|(values, fresh)| {
            for name in fresh {
                note!("{name} is not all in the file: what is missing begins anew");
            }
            values
        });
        let info = new_info(model, diffusion, training, &dataset, data);
        Ok(Start { info, dataset, initial })
    }
}

/// Everything after the options: shared by all kinds of networks.
pub fn run_training(
    device: &DeviceArgs,
    Start { mut info, dataset, initial }: Start,
    data: &Path,
    (data_options, run): (&DataArgs, &RunArgs),
    memory: Option<u64>,
) -> Result<()> {
    if info.training.steps == 0 {
        return Err(Error::Config("--steps must be at least 1".into()));
    }
    let (done, steps) = (info.progress.step, info.training.steps);
    if run.resume && done >= steps {
        say!("the run has {done} steps already; for more give --steps, the number in all");
        return Ok(());
    }
    let (size, channels) = (info.model.image_size(), info.model.in_channels());
    let validation = data_options.validation.as_deref();
    let classes = info.model.classes().map(|_| dataset.classes());
    let validation_set = open_validation(validation, size, channels, classes)?;
    let options = RunOptions { initial, ..run.options(validation_set)? };
    let opened = open_device(device)?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    info.device = gpu.summary.to_string();
    if let Some(budget) = memory {
        choose_recompute(&gpu.caps, &mut info, budget)?;
    }
    let command = match info.model {
        ModelConfig::UNet(_) => "train",
        ModelConfig::Encoder(_) => "train-classifier",
    };
    let outcome = train_with_bar(ctx, Arc::new(dataset), info, &options)?;
    if outcome.progress.step < steps {
        let more = validation.map(|v| format!(" --validation {}", shell_word(v)));
        say!(
            "stopped and saved; continue with: demist {command} {} --out {} --resume{}",
            shell_word(data),
            shell_word(&run.out),
            more.unwrap_or_default()
        );
    }
    Ok(())
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,=@:%".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

fn start(args: &Args) -> Result<Start> {
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
    let described = (ModelConfig::UNet(model), diffusion, training);
    Start::new(described, base.as_ref(), dataset, &args.data)
}

/// The network to start from, if any, and the data in its size and channels.
pub fn open_both(
    run: &RunArgs,
    preset: Option<&str>,
    hints: Hints,
    data: &Path,
    d: &DataArgs,
) -> Result<(Option<Imported>, Dataset)> {
    let Some(path) = run.init.as_deref() else {
        return Ok((None, open_data(data, d.image_size, d.channels, d.random_crop)?));
    };
    let hints = Hints { image_size: d.image_size, ..hints };
    // Where neither file nor options tell the size of the images, the data does.
    let base = read_any(path, preset, &hints).or_else(|e| {
        let data = match d.image_size {
            None => Dataset::open(data, &DataOptions::default()).ok(),
            Some(_) => None,
        };
        let Some(data) = data else { return Err(e) };
        let hints = Hints { image_size: Some(data.size()), ..hints };
        read_any(path, preset, &hints).map_err(|_| e)
    })?;
    let size = d.image_size.unwrap_or(base.model.image_size());
    let channels = base.model.in_channels();
    if d.channels.is_some_and(|c| c != channels) {
        return Err(Error::file(
            path,
            format!("is for images of {channels} channels: leave out --channels"),
        ));
    }
    Ok((Some(base), open_data(data, Some(size), Some(channels), d.random_crop)?))
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

/// Chooses the levels that are recomputed to stay within `budget`.
fn choose_recompute(
    caps: &demist::engine::caps::Caps,
    info: &mut NetworkInfo,
    budget: u64,
) -> Result<()> {
    let NetworkInfo { model, diffusion, training, .. } = info;
    model.check_batch(training.micro_batch, caps.max_binding)?;
    let need = fit_memory(caps, model, diffusion, training, budget)?;
    note!(
        "memory: {} of {}, {} of {} levels recomputed in the backward walk",
        demist::engine::caps::human_bytes(need.bytes()),
        demist::engine::caps::human_bytes(budget),
        training.recompute_levels.count_ones(),
        model.levels()
    );
    Ok(())
}

fn check_classes(info: &NetworkInfo, dataset: &Dataset) -> Result<()> {
    let classes = dataset.classes();
    let fits = |n| n == classes.len() && info.data.classes == classes;
    if info.model.classes().is_some_and(|n| !fits(n)) {
        return Err(Error::Config(format!(
            "the run was trained on the classes {}, the data has {}",
            first_names(&info.data.classes),
            first_names(dataset.classes())
        )));
    }
    Ok(())
}

/// The presets of a kind.
pub fn names_where(kind: impl Fn(&str) -> bool) -> String {
    let names: Vec<&str> = preset_names().iter().copied().filter(|name| kind(name)).collect();
    names.join(", ")
}

fn model_config(m: &ModelArgs, dataset: &Dataset, variance: VarType) -> Result<UNetConfig> {
    let mut c = match &m.preset {
        Some(name) => preset(name).ok_or_else(|| {
            Error::Config(format!(
                "no diffusion network is called `{name}`; there are {}",
                names_where(|name| preset(name).is_some())
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

/// The downsampling factors of the image sizes at which blocks attend.
pub fn attention_factors(sizes: &[usize], image_size: usize, levels: usize) -> Result<Vec<usize>> {
    let factor = |s: &usize| match (*s > 0).then(|| image_size / s) {
        Some(d) if d > 0 && d.is_power_of_two() && image_size.is_multiple_of(*s) => {
            if d >> levels == 0 {
                return Ok(d);
            }
            Err(Error::Config(format!(
                "attention resolution {s} is below the smallest level of a network with {levels} levels"
            )))
        }
        _ => Err(Error::Config(format!(
            "attention resolution {s} is not the image size {image_size} halved a number of times"
        ))),
    };
    sizes.iter().map(factor).collect()
}

/// Runs under a progress bar and prints what happens.
pub fn train_with_bar(
    ctx: Context,
    dataset: Arc<Dataset>,
    info: NetworkInfo,
    options: &RunOptions,
) -> Result<TrainOutcome> {
    let caps = &ctx.gpu.caps;
    info.training.validate()?;
    info.model.check_batch(info.training.micro_batch, caps.max_binding)?;
    let need = memory_need(caps, &info.model, &info.diffusion, &info.training)?;
    ctx.gpu.check_room(need.bytes())?;
    let stop = stop_on_ctrl_c()?;
    let bar = bar(info.training.steps, "training");
    let mut loss_text = String::new();
    let skipped = dataset.skipped().len();
    let outcome = train(ctx, dataset, info, options, &stop, &mut |event| {
        match event {
            Event::Ready { step } => {
                keep_compiling();
                bar.reset_elapsed();
                bar.set_position(step);
                bar.reset_eta();
            }
            Event::Step { step, images_per_second } => {
                bar.set_position(step);
                let message = format!("{loss_text}  {images_per_second:.1} images/s");
                bar.set_message(message.trim_start().to_owned());
            }
            Event::Log { step, loss, terms, grad_norm } => {
                loss_text = format!("loss {loss:.4}  {}", accuracy(terms)).trim_end().to_owned();
                if bar.is_hidden() && step.is_multiple_of(options.log_every.saturating_mul(10)) {
                    note!("step {step}: loss {loss:.4}, gradient norm {grad_norm:.3}");
                }
            }
            Event::Evaluated { step, evaluation, best } => {
                let star = if best { ", the best so far" } else { "" };
                let (loss, accuracy) = (evaluation.loss(), accuracy(&evaluation.terms));
                let line = format!("step {step}: validation loss {loss:.4}  {accuracy}");
                bar.suspend(|| say!("{}{star}", line.trim_end()));
            }
            Event::LossScaled { step, skipped, lg } => {
                bar.suspend(|| {
                    note!(
                        "step {step}: {skipped} updates skipped on overflow, loss scale now 2^{lg:.1}"
                    );
                });
            }
            Event::NotFinite { step } => {
                bar.suspend(|| note!("step {step}: loss or gradient not finite, update skipped"));
            }
            Event::Wrote(path) => {
                if path.extension().is_some_and(|e| e == "png")
                    && path.parent() != options.folder.as_deref()
                {
                    bar.suspend(|| say!("samples: {}", path.display()));
                }
            }
        }
        Ok(())
    })?;
    bar.abandon();
    if skipped > 0 {
        note!("{skipped} unreadable images were skipped");
    }
    let p = outcome.progress;
    say!(
        "{} steps, {} images seen, {:.1} images/s",
        p.step,
        p.images_seen,
        outcome.images_per_second
    );
    if let Some((first, last)) = outcome.losses {
        say!("loss {first:.4} -> {last:.4}");
    }
    let Some(folder) = &options.folder else { return Ok(outcome) };
    if folder.join("best.safetensors").is_file() {
        say!("{}", folder.join("best.safetensors").display());
    }
    for file in ["network.safetensors", "loss.png", "metrics.csv"] {
        say!("{}", folder.join(file).display());
    }
    Ok(outcome)
}

/// A classifier's accuracy for the progress line.
fn accuracy(terms: &[TermSum]) -> String {
    let shown = |t: &TermSum| format!("{} {:.1} %", t.name, 100.0 * t.total);
    let terms = terms.iter().filter(|t| t.name.starts_with("acc"));
    terms.map(shown).collect::<Vec<_>>().join("  ")
}
