//! Opening a device for a command: with its tuning and its compiled kernels from the
//! cache folder, and a bar while new kernels are compiled.

use super::bar;
use demist::gpu::Gpu;
use demist::runtime::{Compiling, Context, Pipelines};
use demist::train::StopFlag;
use demist::tuning::{Cache, TuningFile};
use demist::{Error, Result};
use indicatif::ProgressBar;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
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

/// An open device with its kernels.
pub struct Opened {
    pub pipelines: Pipelines,
    pub gpu: Gpu,
}

impl Opened {
    pub fn ctx(&self) -> Context<'_> {
        Context { gpu: &self.gpu, pipelines: &self.pipelines }
    }
}

/// Opens the adapter and says which one it is.
pub fn open_device(args: &DeviceArgs) -> Result<Opened> {
    open(Gpu::open(args.device.as_deref())?, !args.no_tuning)
}

impl DeviceArgs {
    /// As [`open_device`], with timestamps where the adapter has them.
    pub fn open_for_measuring(&self) -> Result<Opened> {
        open(Gpu::open_for_measuring(self.device.as_deref())?, !self.no_tuning)
    }

    /// As [`DeviceArgs::open_for_measuring`], by the rules alone.
    pub fn open_for_tuning(&self) -> Result<Opened> {
        open(Gpu::open_for_measuring(self.device.as_deref())?, false)
    }
}

fn open(mut gpu: Gpu, tuned: bool) -> Result<Opened> {
    let cache = Cache::from_env();
    let key = gpu.summary.key();
    if let Some(cache) = cache.as_ref().filter(|_| tuned) {
        let path = cache.tuning(&key);
        match TuningFile::read(&path, &key) {
            Ok(file) => gpu.caps.tuning = file.map(|f| Arc::new(f.tuning)),
            Err(e) => {
                note!("WARNING: {e}; kernels run by their rules (demist tune writes it anew)")
            }
        }
    }
    let tuned = match gpu.caps.tuning.as_ref().map_or(0, |t| t.len()) {
        0 => String::new(),
        n => format!(", tuned for {n} shapes"),
    };
    note!("device: {}{tuned}", gpu.summary);
    let mut pipelines = match cache {
        Some(cache) => Pipelines::kept_in(&gpu, &cache.pipelines(&key)),
        None => Pipelines::new(),
    };
    let shown = Mutex::new(None);
    pipelines.on_progress(move |compiling| show(&shown, compiling));
    Ok(Opened { gpu, pipelines })
}

/// Shows a bar while compiling takes its time, and ends it on Ctrl-C.
fn show(
    shown: &Mutex<Option<ProgressBar>>,
    Compiling { done, total, elapsed }: Compiling,
) -> Result<()> {
    let mut shown = shown.lock().unwrap_or_else(|e| e.into_inner());
    let stopped = MAY_STOP_COMPILING.load(Ordering::Relaxed) && stop_flag().is_set();
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

/// What Ctrl-C sets, where a command asked for that.
pub fn stop_flag() -> &'static StopFlag {
    static FLAG: OnceLock<StopFlag> = OnceLock::new();
    FLAG.get_or_init(StopFlag::default)
}

/// Whether Ctrl-C ends compiling at once.
static MAY_STOP_COMPILING: AtomicBool = AtomicBool::new(true);

/// From here on there is work to be saved: Ctrl-C ends that, and what is compiled
/// meanwhile is waited for.
pub fn keep_compiling() {
    MAY_STOP_COMPILING.store(false, Ordering::Relaxed);
}
