//! The commands: what was typed becomes what the library is asked to do, and
//! its events become lines, bars and pictures.

pub mod bench;
pub mod convert;
pub mod demo;
mod device;
pub mod devices;
pub mod evaluate;
mod images;
pub mod info;
pub mod latents;
pub mod nll;
mod options;
pub mod profile;
pub mod sample;
mod sampling;
pub mod sweep;
pub mod train;
pub mod train_classifier;
pub mod tune;

pub use device::DeviceArgs;
use device::{keep_compiling, open_device, stop_flag};

use demist::caps::Caps;
use demist::gpu::Gpu;
use demist::model::ModelConfig;
use demist::train::StopFlag;
use demist::{Error, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::LazyLock;
use std::time::Duration;

/// See [`ModelConfig::check_batch`].
fn check_batch(caps: &Caps, model: &ModelConfig, batch: usize) -> Result<()> {
    model.check_batch(batch, caps.max_binding)
}

/// See [`Gpu::check_room`].
fn check_room(gpu: &Gpu, needed: u64) -> Result<()> {
    gpu.check_room(needed)
}

/// A time limit given as a number of `unit` seconds.
fn time_limit(value: f64, unit: f64, name: &str) -> Result<Duration> {
    let impossible = || Error::Config(format!("a time limit of {value} {name} is impossible"));
    if value <= 0.0 {
        return Err(impossible());
    }
    Duration::try_from_secs_f64(value * unit).map_err(|_| impossible())
}

/// All bars, so that one for compiling can stand below another.
static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// A bar with elapsed time, ETA and a message.
fn bar(total: u64, what: &str) -> ProgressBar {
    let bar = BARS.add(ProgressBar::new(total));
    let template =
        format!("{what} {{wide_bar}} {{pos}}/{{len}}  {{elapsed}} (eta {{eta}})  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// A stop flag that Ctrl-C sets; a second Ctrl-C ends the program at once.
fn stop_on_ctrl_c() -> Result<StopFlag> {
    let flag = stop_flag().clone();
    let handler = flag.clone();
    ctrlc::set_handler(move || {
        if handler.is_set() {
            std::process::exit(130);
        }
        note!("\nstopping after this step (Ctrl-C again to end at once)");
        handler.set();
    })
    .map_err(|e| Error::Config(format!("cannot catch Ctrl-C: {e}")))?;
    Ok(flag)
}

/// The command line as typed, for the metadata of what it makes.
fn command_line() -> String {
    let word = |w: std::ffi::OsString| w.to_string_lossy().into_owned();
    std::iter::once("demist".into())
        .chain(std::env::args_os().skip(1).map(word))
        .collect::<Vec<String>>()
        .join(" ")
}
