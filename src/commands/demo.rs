//! `demist demo`: training that can be watched, and pictures from the shipped
//! network, from a clone of the repository and nothing else.

use super::shared::{
    DeviceArgs, command_line, open_data, open_device, time_limit, train_with_bar, watch,
};
use demist::checkpoint::{NetworkInfo, read_info};
use demist::diffusion::{DiffusionConfig, LossType, SpacedSchedule, VarType};
use demist::model::{ModelConfig, UNetConfig};
use demist::output::Grid;
use demist::recipe::TrainConfig;
use demist::train::{RunOptions, StopFlag};
use demist::{
    Classes, Device, DrawRequest, Drawn, Error, Generator, Network, Result, TrainerOptions,
    block_on,
};
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

    say!("training a new network of the shipped one's shape for {} seconds", args.seconds);
    let prepared = TrainerOptions { source: data.display().to_string(), ..fresh(&info, args)? }
        .prepare(&dataset)?;
    let options = RunOptions {
        log_every: 2,
        save_every: 0,
        sample_every: 0,
        time_limit: Some(limit),
        ..RunOptions::new(&args.out)
    };
    let outcome = train_with_bar(&device, Arc::new(dataset), prepared, &options)?;
    if outcome.interrupted {
        return Err(Error::Interrupted);
    }

    say!("drawing from the shipped network ({} images seen)", info.progress.images_seen);
    let drawn = draw(&device, network, args)?;
    let path = args.out.join("faces.png");
    let device = device.summary().to_string();
    write_grid(&path, &drawn, args, &device)?;
    say!();
    say!("pictures    {}", path.display());
    say!("loss plot   {}", args.out.join("loss.png").display());
    say!("device      {device}");
    Ok(())
}

/// A new network of the shape of the shipped one, which `info` tells of.
fn fresh(info: &NetworkInfo, args: &Args) -> Result<TrainerOptions> {
    let plain = UNetConfig {
        out_channels: info.model.in_channels(),
        null_class: false,
        ..info.model.unet()?.clone()
    };
    Ok(TrainerOptions {
        model: Some(ModelConfig::UNet(plain)),
        // The squared error alone is what a minute brings down visibly.
        diffusion: Some(DiffusionConfig {
            var_type: VarType::FixedLarge,
            loss_type: LossType::Mse,
            ..info.diffusion.clone()
        }),
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
        command: command_line(),
        ..Default::default()
    })
}

/// Images of every class by the shipped network.
fn draw(device: &Device, network: Network, args: &Args) -> Result<Drawn> {
    let request = DrawRequest {
        classes: Classes::All,
        count: COLUMNS,
        batch: COLUMNS * network.classes().unwrap_or(1),
        steps: args.sample_steps.to_string(),
        seed: args.seed,
        ..Default::default()
    };
    let mut generator = Generator::new(device, network)?;
    let stop = StopFlag::default();
    block_on(generator.draw_watched(&request, &mut watch("sampling", &stop)))
}

/// Writes the images, one row a class.
fn write_grid(path: &Path, drawn: &Drawn, args: &Args, device: &str) -> Result<()> {
    Grid::new(&drawn.pixels(), [drawn.size, drawn.size, drawn.channels], COLUMNS)
        .row_labels(drawn.class_names.iter().step_by(COLUMNS).cloned())
        .title("drawn by the shipped network, one row a class")
        .footer(format!("{} DDIM steps, seed {}, {device}", args.sample_steps, args.seed))
        .save(path, &[("Software", "demist"), ("Comment", &command_line()), ("Source", device)])
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
