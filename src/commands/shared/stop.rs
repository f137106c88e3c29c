//! Ctrl-C: a command saves what it has, and ends.

use demist::train::StopFlag;
use demist::{Error, Result};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

/// A stop flag that Ctrl-C sets; a second Ctrl-C ends the program at once.
pub fn stop_on_ctrl_c() -> Result<StopFlag> {
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

/// What Ctrl-C sets, where a command asked for that.
fn stop_flag() -> &'static StopFlag {
    static FLAG: OnceLock<StopFlag> = OnceLock::new();
    FLAG.get_or_init(StopFlag::default)
}

/// Whether Ctrl-C ends compiling at once.
static MAY_STOP_COMPILING: AtomicBool = AtomicBool::new(true);

/// Whether a command that is compiling should end now.
pub fn stops_compiling() -> bool {
    MAY_STOP_COMPILING.load(Ordering::Relaxed) && stop_flag().is_set()
}

/// From here on there is work to be saved: Ctrl-C ends that, and what is compiled
/// meanwhile is waited for.
pub fn keep_compiling() {
    MAY_STOP_COMPILING.store(false, Ordering::Relaxed);
}
