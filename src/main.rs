//! The `demist` program: parses the command line and runs one command.

/// Prints a line of results. A closed pipe behind it (`demist info .. | head`)
/// is no reason to end a training.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stdout(), $($text)*);
    }};
}

/// Prints a line about the work itself, beside the results.
macro_rules! note {
    ($($text:tt)*) => {{
        use std::io::Write;
        let _ = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod commands;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

/// Train and sample diffusion models on any GPU: ADM, DDPM and DDIM in wgpu
/// compute shaders.
#[derive(Debug, Parser)]
#[command(version, about, max_term_width = 100)]
struct Cli {
    #[command(flatten)]
    device: commands::DeviceArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the adapters with their drivers, features and limits.
    Devices,
    /// Show what a network file or a preset is, and the memory it needs.
    Info(commands::info::Args),
    /// Train a network on a folder, an atlas or IDX files.
    Train(Box<commands::train::Args>),
    /// Train a classifier of noisy images, to guide sampling with.
    TrainClassifier(Box<commands::train_classifier::Args>),
    /// Draw images from a network file, guided or not, and enlarge them.
    Sample(Box<commands::sample::Args>),
    /// Draw one picture of classes and guidance scales.
    Sweep(commands::sweep::Args),
    /// Encode images as latents and decode them again.
    Invert(commands::latents::InvertArgs),
    /// Draw the images between two latents or two images.
    Interpolate(commands::latents::InterpolateArgs),
    /// Losses, accuracy or PSNR on images that were not trained on.
    Evaluate(commands::evaluate::Args),
    /// Bits per dimension of images under a network.
    Nll(commands::nll::Args),
    /// Turn a .pt, .safetensors or diffusers network into ours.
    Import(commands::convert::ImportArgs),
    /// Turn a network into the reference's or diffusers' files.
    Export(commands::convert::ExportArgs),
    /// Measure kernels and networks, and what the device can do at best.
    Bench(commands::bench::Args),
    /// Show where the time of a network or of a training step goes.
    Profile(commands::profile::Args),
    /// Measure which variant of each kernel is the fastest here, for all other commands.
    Tune(commands::tune::Args),
    /// Train on the shipped faces for a minute, then draw from the shipped network.
    Demo(commands::demo::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let device = &cli.device;
    let outcome = match cli.command {
        Command::Devices => commands::devices::run(),
        Command::Info(args) => commands::info::run(device, &args),
        Command::Train(args) => commands::train::run(device, &args),
        Command::TrainClassifier(args) => commands::train_classifier::run(device, &args),
        Command::Sample(args) => commands::sample::run(device, &args),
        Command::Sweep(args) => commands::sweep::run(device, &args),
        Command::Invert(args) => commands::latents::invert(device, &args),
        Command::Interpolate(args) => commands::latents::interpolate(device, &args),
        Command::Evaluate(args) => commands::evaluate::run(device, &args),
        Command::Nll(args) => commands::nll::run(device, &args),
        Command::Import(args) => commands::convert::import(&args),
        Command::Export(args) => commands::convert::export(&args),
        Command::Bench(args) => commands::bench::run(device, &args),
        Command::Profile(args) => commands::profile::run(device, &args),
        Command::Tune(args) => commands::tune::run(device, &args),
        Command::Demo(args) => commands::demo::run(device, &args),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            // One line, whatever a driver or a file name may hold.
            let text = e.to_string();
            let lines: Vec<&str> = text.lines().map(str::trim).filter(|l| !l.is_empty()).collect();
            note!("error: {}", lines.join(" "));
            ExitCode::FAILURE
        }
    }
}
