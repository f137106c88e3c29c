//! `demist demo`: training that can be watched, and pictures from the shipped
//! network, from a clone of the repository and nothing else.

use super::shared::{DeviceArgs, command_line, open_data, open_device, time_limit, watch};
use super::train::train_with_bar;
use demist::checkpoint::{DataInfo, NetworkInfo, Progress, read_info};
use demist::diffusion::{DiffusionConfig, LossType, SpacedSchedule, VarType};
use demist::model::{ModelConfig, UNetConfig};
use demist::output::Grid;
use demist::recipe::TrainConfig;
use demist::train::{RunOptions, StopFlag};
use demist::{Classes, DrawRequest, Error, Generator, Network, Result, block_on};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Images drawn of each class.
const COLUMNS: usize = 8;

/// Arguments of `demo`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The repository's assets.
    #[arg(long, default_value = "assets")]
    assets: PathBuf,
    /// Where the pictures go; an earlier demo there is replaced.
    #[arg(short, long, default_value = "out/demo")]
    out: PathBuf,
    /// Seconds of training.
    #[arg(long, default_value_t = 60.0, allow_negative_numbers = true)]
    seconds: f64,
    /// Denoising steps of the final grid.
    #[arg(long, default_value_t = 50)]
    sample_steps: usize,
    /// Seed.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Trains, draws, and says where everything is.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let limit = time_limit(args.seconds, 1.0, "seconds")?;
    check_folder(&args.out)?;
    let shipped = args.assets.join("faces16.safetensors");
    let network = Network::read(&shipped)?;
    let info = network.info().clone();
    SpacedSchedule::new(&info.diffusion, &args.sample_steps.to_string())?;
    let data = args.assets.join("faces16.png");
    let dataset =
        open_data(&data, Some(info.model.image_size()), Some(info.model.in_channels()), false)?;
    let device = open_device(device)?;
    let ctx = device.context();

    say!("training a new network of the shipped one's shape for {} seconds", args.seconds);
    let plain = UNetConfig {
        out_channels: info.model.in_channels(),
        null_class: false,
        ..info.model.unet()?.clone()
    };
    let fresh = NetworkInfo {
        model: ModelConfig::UNet(plain),
        // The squared error alone is what a minute brings down visibly.
        diffusion: DiffusionConfig {
            var_type: VarType::FixedLarge,
            loss_type: LossType::Mse,
            ..info.diffusion.clone()
        },
        data: DataInfo { source: data.display().to_string(), ..info.data.clone() },
        training: TrainConfig {
            steps: 100_000,
            batch_size: 16,
            micro_batch: 16,
            lr: 1e-3,
            lr_warmup: 20,
            ema_rates: vec![0.999],
            seed: args.seed,
            ..Default::default()
        },
        progress: Progress::default(),
        command: command_line(),
        device: device.summary().to_string(),
        version: env!("CARGO_PKG_VERSION").into(),
        ..info.clone()
    };
    let options = RunOptions {
        log_every: 2,
        save_every: 0,
        sample_every: 0,
        time_limit: Some(limit),
        ..RunOptions::new(&args.out)
    };
    let outcome = train_with_bar(ctx, Arc::new(dataset), fresh, &options)?;
    if outcome.interrupted {
        return Err(Error::Interrupted);
    }

    say!("drawing from the shipped network ({} images seen)", info.progress.images_seen);
    let request = DrawRequest {
        classes: Classes::All,
        count: COLUMNS,
        batch: COLUMNS * network.classes().unwrap_or(1),
        steps: args.sample_steps.to_string(),
        seed: args.seed,
        ..Default::default()
    };
    let mut generator = Generator::new(&device, network)?;
    let stop = StopFlag::default();
    let drawn = block_on(generator.draw_watched(&request, &mut watch("sampling", &stop)))?;
    let path = args.out.join("faces.png");
    let device = device.summary().to_string();
    Grid::new(&drawn.pixels(), [drawn.size, drawn.size, drawn.channels], COLUMNS)
        .row_labels(drawn.class_names.iter().step_by(COLUMNS).cloned())
        .title("drawn by the shipped network, one row a class")
        .footer(format!("{} DDIM steps, seed {}, {device}", args.sample_steps, args.seed))
        .save(
            &path,
            &[("Software", "demist"), ("Comment", &command_line()), ("Source", &device)],
        )?;
    say!();
    say!("pictures    {}", path.display());
    say!("loss plot   {}", args.out.join("loss.png").display());
    say!("device      {device}");
    Ok(())
}

/// An earlier demo is replaced, a run that someone trained is not.
fn check_folder(out: &Path) -> Result<()> {
    let state = out.join("state.safetensors");
    let has = |command: &str, word| command.split_whitespace().any(|w| w == word);
    let demo = |command: &str| has(command, "demo") && !has(command, "train");
    match state.exists().then(|| read_info(&state)) {
        Some(Ok(info)) if demo(&info.command) => Ok(()),
        Some(_) => Err(Error::file(out, "holds a run that is no demo; choose another --out")),
        None => Ok(()),
    }
}
