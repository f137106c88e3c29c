//! The commands: what was typed becomes what the library is asked to do, and
//! its events become lines, bars and pictures.

pub mod demo;
pub mod devices;
pub mod info;
pub mod sample;
mod sampling;
pub mod train;

use demist::gpu::Gpu;
use demist::train::StopFlag;
use demist::{Error, Result};
use indicatif::{ProgressBar, ProgressStyle};

/// Opens the adapter and says which one it is.
fn open_device(selector: Option<&str>) -> Result<Gpu> {
    let gpu = Gpu::open(selector)?;
    eprintln!("device: {}", gpu.summary);
    Ok(gpu)
}

/// A bar with elapsed time, ETA and a message.
fn bar(total: u64, what: &str) -> ProgressBar {
    let bar = ProgressBar::new(total);
    let template =
        format!("{what} {{wide_bar}} {{pos}}/{{len}}  {{elapsed}} (eta {{eta}})  {{msg}}");
    if let Ok(style) = ProgressStyle::with_template(&template) {
        bar.set_style(style);
    }
    bar
}

/// A stop flag that Ctrl-C sets; a second Ctrl-C ends the program at once.
fn stop_on_ctrl_c() -> Result<StopFlag> {
    let flag = StopFlag::default();
    let handler = flag.clone();
    ctrlc::set_handler(move || {
        if handler.is_set() {
            std::process::exit(130);
        }
        eprintln!("\nstopping after this step (Ctrl-C again to end at once)");
        handler.set();
    })
    .map_err(|e| Error::Config(format!("cannot catch Ctrl-C: {e}")))?;
    Ok(flag)
}

/// The command line as typed, for the metadata of what it makes.
fn command_line() -> String {
    std::env::args().collect::<Vec<_>>().join(" ")
}
