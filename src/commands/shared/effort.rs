//! How long something is measured.

use demist::engine::bench::{Effort, TimeKind};
use demist::{Error, Result};
use std::time::Duration;

/// How to measure each of several things.
pub fn effort(seconds: f64, cpu: bool, each: &str) -> Result<Effort> {
    let impossible = || Error::Config(format!("{seconds} seconds a {each} are impossible"));
    if seconds <= 0.0 || seconds > 3600.0 {
        return Err(impossible());
    }
    let budget = Duration::try_from_secs_f64(seconds).map_err(|_| impossible())?;
    let time = if cpu { TimeKind::Processor } else { TimeKind::Elapsed };
    Ok(Effort { budget, time })
}
