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

use demist::caps::{Caps, human_bytes};
use demist::gpu::Gpu;
use demist::model::ModelConfig;
use demist::train::StopFlag;
use demist::{Error, Result};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use std::sync::LazyLock;
use std::time::Duration;

/// Refuses a batch that no plan can hold, before anything counts its bytes.
fn check_batch(caps: &Caps, model: &ModelConfig, batch: usize) -> Result<()> {
    if batch == 0 {
        return Err(Error::Config("a batch must hold at least 1 image".into()));
    }
    model.validate()?;
    let (side, channels) = (model.image_size(), model.in_channels());
    let needed = (batch as u64).saturating_mul((side * side * channels * 4) as u64);
    if needed > caps.max_binding {
        return Err(Error::Memory(format!(
            "a batch of {batch} images of {side}x{side}x{channels} needs a binding of {}, \
             the device allows {}; use a smaller batch",
            human_bytes(needed),
            human_bytes(caps.max_binding)
        )));
    }
    // The backward walk is twice the forward one; 64 bits count to 1.8e19.
    if 3.0 * model.work() * batch as f64 > 1e19 {
        return Err(Error::Config(format!(
            "a batch of {batch} images through this network is beyond any device; \
             use a smaller batch"
        )));
    }
    Ok(())
}

/// Refuses a plan that needs more bytes than the memory of a
/// software device. Other drivers refuse by themselves; there the system would
/// end the program.
fn check_room(gpu: &Gpu, needed: u64) -> Result<()> {
    match memory_available() {
        Some(offered) if gpu.caps.software && needed > offered => Err(Error::Memory(format!(
            "the plan needs {}, the machine has {} available; use a smaller batch",
            human_bytes(needed),
            human_bytes(offered)
        ))),
        _ => Ok(()),
    }
}

/// Bytes of main memory that can be used, where the system says so (Linux).
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
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
