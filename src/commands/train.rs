//! `demist train`

use super::{bar, check_batch, check_room, command_line, open_device, stop_on_ctrl_c, time_limit};
use demist::checkpoint::{DataInfo, NetworkInfo, Progress, read_info};
use demist::data::{DataOptions, Dataset};
use demist::diffusion::{DiffusionConfig, MeanType, NoiseSchedule, VarType};
use demist::model::{UNetConfig, default_model, preset, preset_names};
use demist::runtime::{Context, Pipelines};
use demist::train::{Event, RunOptions, TrainConfig, TrainOutcome, plan_report, train};
use demist::{Error, Result};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Arguments of `train`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A folder of PNG/JPEG (class = subfolder, or file name before the first
    /// underscore), an atlas .png with its .json, or IDX files.
    data: PathBuf,
    /// Run folder.
    #[arg(short, long, default_value = "runs/latest")]
    out: PathBuf,
    /// Continue the run in the folder with its own options (only --steps,
    /// intervals and the time limit can be changed).
    #[arg(long)]
    resume: bool,
    #[command(flatten)]
    data_options: DataArgs,
    #[command(flatten)]
    model: ModelArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    training: TrainArgs,
    /// Steps between rows of metrics.csv.
    #[arg(long, default_value_t = 20)]
    log_every: u64,
    /// Steps between saves.
    #[arg(long, default_value_t = 1000)]
    save_every: u64,
    /// Steps between sample grids; 0 for none.
    #[arg(long, default_value_t = 1000)]
    sample_every: u64,
    /// Stop after this many minutes, saving.
    #[arg(long, value_name = "MINUTES", allow_negative_numbers = true)]
    time_limit: Option<f64>,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
struct DataArgs {
    /// Side of the images; needed if they are not all square and of one size.
    #[arg(long)]
    image_size: Option<usize>,
    /// 1 for grey, 3 for RGB; default is what the images have.
    #[arg(long)]
    channels: Option<usize>,
    /// Mirror images at random.
    #[arg(long)]
    flip: bool,
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

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Diffusion")]
struct DiffusionArgs {
    /// Timesteps to train for.
    #[arg(long, default_value_t = 1000)]
    diffusion_steps: usize,
    /// "linear" or "cosine".
    #[arg(long, default_value = "linear")]
    noise_schedule: String,
    /// Predict the clean image instead of the noise.
    #[arg(long)]
    predict_xstart: bool,
    /// Sample with the small fixed variance.
    #[arg(long)]
    sigma_small: bool,
    /// Feed the network timesteps in thousandths of the process.
    #[arg(long)]
    rescale_timesteps: bool,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
struct TrainArgs {
    /// Steps in all [default: 10000].
    #[arg(long)]
    steps: Option<u64>,
    /// Images a step.
    #[arg(long, default_value_t = 16)]
    batch_size: usize,
    /// Images computed at once, to fit into memory [default: the batch].
    #[arg(long)]
    micro_batch: Option<usize>,
    /// Learning rate.
    #[arg(long, default_value_t = 2e-4, allow_negative_numbers = true)]
    lr: f64,
    /// Steps over which the rate rises.
    #[arg(long, default_value_t = 0)]
    lr_warmup: u64,
    /// Let the rate fall linearly to zero at the last step.
    #[arg(long)]
    lr_anneal: bool,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    weight_decay: f64,
    /// Largest gradient norm; 0 does not clip.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    max_grad_norm: f64,
    /// Decay of the averaged weights.
    #[arg(long, default_value_t = 0.9999, allow_negative_numbers = true)]
    ema_rate: f64,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Trains.
pub fn run(device: Option<&str>, args: &Args) -> Result<()> {
    let saved = saved_run(args)?;
    let size = saved.as_ref().map(|s| s.model.image_size).or(args.data_options.image_size);
    let channels = saved.as_ref().map(|s| s.model.in_channels).or(args.data_options.channels);
    let dataset = open_data(&args.data, size, channels)?;
    let mut info = match saved {
        Some(info) => info,
        None => new_run(args, &dataset)?,
    };
    if let Some(steps) = args.training.steps {
        info.training.steps = steps;
    }
    if info.training.steps == 0 {
        return Err(Error::Config("--steps must be at least 1".into()));
    }
    check_classes(&info, &dataset)?;
    let options = RunOptions {
        folder: args.out.clone(),
        resume: args.resume,
        log_every: args.log_every.max(1),
        save_every: args.save_every,
        sample_every: args.sample_every,
        time_limit: args.time_limit.map(|m| time_limit(m, 60.0, "minutes")).transpose()?,
    };
    let gpu = open_device(device)?;
    info.device = gpu.summary.to_string();
    let pipelines = Pipelines::new();
    let ctx = Context { gpu: &gpu, pipelines: &pipelines };
    let outcome = train_with_bar(ctx, Arc::new(dataset), info, &options)?;
    if outcome.interrupted {
        say!("stopped and saved; continue with: {} --resume", resume_line(args));
    }
    Ok(())
}

/// What the run folder holds: the run to continue, or nothing where one starts.
fn saved_run(args: &Args) -> Result<Option<NetworkInfo>> {
    let state = args.out.join("state.safetensors");
    match (args.resume, state.exists()) {
        (true, true) => read_info(&state).map(Some),
        (true, false) => Err(Error::file(&args.out, "holds no run that --resume could continue")),
        (false, false) => Ok(None),
        (false, true) => Err(Error::file(
            &args.out,
            "holds a run already; continue it with --resume or choose another --out",
        )),
    }
}

fn resume_line(args: &Args) -> String {
    format!("demist train {} --out {}", args.data.display(), args.out.display())
}

/// Opens a data set, reporting what had to be skipped.
pub fn open_data(
    path: &Path,
    image_size: Option<usize>,
    channels: Option<usize>,
) -> Result<Dataset> {
    let options = DataOptions { image_size, channels, ..Default::default() };
    let dataset = Dataset::open(path, &options)?;
    for (file, reason) in dataset.skipped() {
        note!("skipped {}: {reason}", file.display());
    }
    let skipped = match dataset.skipped().len() {
        0 => String::new(),
        n => format!(", {n} skipped"),
    };
    note!(
        "data: {} images of {}x{}x{} in {} classes ({}){skipped}",
        dataset.len(),
        dataset.size(),
        dataset.size(),
        dataset.channels(),
        dataset.classes().len(),
        shorten(dataset.classes()),
    );
    Ok(dataset)
}

fn shorten(classes: &[String]) -> String {
    let shown: Vec<&str> = classes.iter().take(8).map(String::as_str).collect();
    let more = if classes.len() > 8 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}

fn check_classes(info: &NetworkInfo, dataset: &Dataset) -> Result<()> {
    let classes = dataset.classes();
    let fits = |n| n == classes.len() && info.data.classes == classes;
    if info.model.num_classes.is_some_and(|n| !fits(n)) {
        return Err(Error::Config(format!(
            "the run was trained on the classes {}, the data has {}",
            shorten(&info.data.classes),
            shorten(dataset.classes())
        )));
    }
    Ok(())
}

/// What the options and the data make of a new run.
fn new_run(args: &Args, dataset: &Dataset) -> Result<NetworkInfo> {
    let t = &args.training;
    let training = TrainConfig {
        batch_size: t.batch_size,
        micro_batch: t.micro_batch.unwrap_or(t.batch_size),
        lr: t.lr,
        lr_warmup: t.lr_warmup,
        lr_anneal: t.lr_anneal,
        weight_decay: t.weight_decay,
        max_grad_norm: t.max_grad_norm,
        ema_rate: t.ema_rate,
        steps: t.steps.unwrap_or(10_000),
        seed: t.seed,
        flip: args.data_options.flip,
        ..Default::default()
    };
    training.validate()?;
    let model = model_config(&args.model, dataset)?;
    model.validate()?;
    Ok(NetworkInfo {
        model,
        diffusion: diffusion_config(&args.diffusion)?,
        data: DataInfo {
            classes: dataset.classes().to_vec(),
            images: dataset.len(),
            source: args.data.display().to_string(),
        },
        training,
        progress: Progress::default(),
        holds: "state".into(),
        command: command_line(),
        device: String::new(),
        version: env!("CARGO_PKG_VERSION").into(),
    })
}

fn model_config(m: &ModelArgs, dataset: &Dataset) -> Result<UNetConfig> {
    let mut c = match &m.preset {
        Some(name) => preset(name).ok_or_else(|| {
            Error::Config(format!(
                "unknown preset `{name}`; there are {}",
                preset_names().join(", ")
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
    c.out_channels = dataset.channels();
    c.num_classes =
        (!m.unconditional && dataset.classes().len() > 1).then_some(dataset.classes().len());
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
        c.attention_resolutions = sizes
            .iter()
            .map(|s| match (*s > 0).then(|| c.image_size / s) {
                Some(d) if d > 0 && d.is_power_of_two() && c.image_size.is_multiple_of(*s) => {
                    if d >> c.channel_mult.len() == 0 {
                        return Ok(d);
                    }
                    Err(Error::Config(format!(
                        "attention resolution {s} is below the smallest level of a network with {} levels",
                        c.channel_mult.len()
                    )))
                }
                _ => Err(Error::Config(format!(
                    "attention resolution {s} is not the image size {} halved a number of times",
                    c.image_size
                ))),
            })
            .collect::<Result<_>>()?;
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

fn diffusion_config(d: &DiffusionArgs) -> Result<DiffusionConfig> {
    let config = DiffusionConfig {
        diffusion_steps: d.diffusion_steps,
        noise_schedule: match d.noise_schedule.as_str() {
            "linear" => NoiseSchedule::Linear,
            "cosine" => NoiseSchedule::Cosine,
            other => {
                return Err(Error::Config(format!(
                    "unknown noise schedule `{other}`; there are linear, cosine"
                )));
            }
        },
        mean_type: if d.predict_xstart { MeanType::XStart } else { MeanType::Epsilon },
        var_type: if d.sigma_small { VarType::FixedSmall } else { VarType::FixedLarge },
        rescale_timesteps: d.rescale_timesteps,
        ..Default::default()
    };
    demist::diffusion::SpacedSchedule::new(&config, "")?;
    Ok(config)
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
    check_batch(caps, &info.model, info.training.micro_batch)?;
    let plan = plan_report(caps, &info.model, &info.diffusion, info.training.micro_batch)?;
    // Weights, gradients, two moments and the average.
    check_room(ctx.gpu, &plan, 5)?;
    let stop = stop_on_ctrl_c()?;
    let bar = bar(info.training.steps, "training");
    let mut loss_text = String::new();
    let skipped = dataset.skipped().len();
    let outcome = train(ctx, dataset, info, options, &stop, &mut |event| {
        match event {
            Event::Ready { step } => {
                bar.reset_elapsed();
                bar.set_position(step);
                bar.reset_eta();
            }
            Event::Step { step, images_per_second } => {
                bar.set_position(step);
                bar.set_message(format!("{loss_text}{images_per_second:.1} images/s"));
            }
            Event::Log { step, loss, grad_norm } => {
                loss_text = format!("loss {loss:.4}  ");
                if bar.is_hidden() && step.is_multiple_of(options.log_every.saturating_mul(10)) {
                    note!("step {step}: loss {loss:.4}, gradient norm {grad_norm:.3}");
                }
            }
            Event::NotFinite { step } => {
                bar.suspend(|| note!("step {step}: loss or gradient not finite, update skipped"));
            }
            Event::Wrote(path) => {
                if path.extension().is_some_and(|e| e == "png")
                    && path.parent() != Some(&options.folder)
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
    for file in ["network.safetensors", "loss.png", "metrics.csv"] {
        say!("{}", options.folder.join(file).display());
    }
    Ok(outcome)
}
