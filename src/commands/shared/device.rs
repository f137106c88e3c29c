//! Opening a device for a command: with its tuning and its compiled kernels from the
//! cache folder, and a bar while new kernels are compiled.

use super::{bar, stops_compiling};
use demist::engine::tuning::{Cache, Forced};
use demist::{Compiling, Device, DeviceOptions, Error, Result, block_on};
use indicatif::ProgressBar;
use std::sync::Mutex;
use std::time::Duration;

/// Compiling that takes longer than this shows a bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// Which device, and how it is used.
#[derive(Debug, Clone, clap::Args)]
pub struct DeviceArgs {
    /// Adapter to use: an index of `demist devices` or a part of a name.
    #[arg(long, global = true, env = "DEMIST_DEVICE", value_name = "INDEX|NAME")]
    pub device: Option<String>,
    /// Run every kernel as its own rule says, whatever `demist tune` measured.
    #[arg(long, global = true)]
    no_tuning: bool,
}

/// Opens the adapter and says which one it is.
pub fn open_device(args: &DeviceArgs) -> Result<Device> {
    open(args, DeviceOptions { tuned: !args.no_tuning, ..Default::default() })
}

impl DeviceArgs {
    /// As [`open_device`], with timestamps where the adapter has them.
    pub fn open_for_measuring(&self) -> Result<Device> {
        open(self, DeviceOptions { tuned: !self.no_tuning, measuring: true, ..Default::default() })
    }

    /// As [`DeviceArgs::open_for_measuring`], by the rules alone.
    pub fn open_for_tuning(&self) -> Result<Device> {
        open(self, DeviceOptions { measuring: true, ..Default::default() })
    }
}

fn open(args: &DeviceArgs, options: DeviceOptions) -> Result<Device> {
    let shown = Mutex::new(None);
    let device = block_on(Device::open(DeviceOptions {
        adapter: args.device.clone(),
        cache: Cache::from_env(),
        forced: Forced::from_env()?,
        on_compiling: Some(Box::new(move |compiling| show(&shown, compiling))),
        ..options
    }))?;
    if let Some(e) = device.tuning_fault() {
        note!("WARNING: {e}; kernels run by their rules (demist tune writes it anew)");
    }
    let tuned = match device.tuned_shapes() {
        0 => String::new(),
        n => format!(", tuned for {n} shapes"),
    };
    note!("device: {}{tuned}", device.summary());
    Ok(device)
}

/// Shows a bar while compiling takes its time, and ends it on Ctrl-C.
fn show(
    shown: &Mutex<Option<ProgressBar>>,
    Compiling { done, total, elapsed }: Compiling,
) -> Result<()> {
    let mut shown = shown.lock().unwrap_or_else(|e| e.into_inner());
    let stopped = stops_compiling();
    if stopped || done == total {
        if let Some(bar) = shown.take() {
            bar.finish_and_clear();
        }
    } else if elapsed > PATIENCE {
        let bar = shown.get_or_insert_with(|| {
            let bar = bar(total as u64, "compiling kernels").with_elapsed(elapsed);
            bar.reset_eta();
            bar
        });
        bar.set_position(done as u64);
    }
    if stopped { Err(Error::Interrupted) } else { Ok(()) }
}
