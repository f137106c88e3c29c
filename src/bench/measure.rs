//! Timing what a device is given to do.

use crate::Result;
use crate::gpu::Gpu;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

/// Most runs that are submitted before the host waits.
const MOST_QUEUED: usize = 32;

/// Runs are queued until they last about this long, so that a fast device is not
/// measured by the latency of a submit.
const ROUND: Duration = Duration::from_millis(20);

/// Rounds that are worth a median, and that are enough for one.
pub(super) const ROUNDS: std::ops::RangeInclusive<usize> = 3..=200;

/// What counts as time.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum TimeKind {
    /// Elapsed time.
    Elapsed,
    /// Time that the threads of this process ran, added up (Linux only): for a
    /// software driver on a machine that others use too, where waiting for a core
    /// should not count. Divided by the cores it is what an idle machine needs at
    /// best. Includes the driver's and wgpu's own work.
    Processor,
}

/// Measures elapsed or processor time from its making on.
pub struct Watch {
    begun: Instant,
    threads: Option<BTreeMap<OsString, u64>>,
}

impl Watch {
    /// Starts to measure.
    pub fn start(kind: TimeKind) -> Self {
        let threads = (kind == TimeKind::Processor).then(thread_times);
        Watch { begun: Instant::now(), threads }
    }

    /// What has passed; elapsed time where the system does not tell of threads.
    pub fn elapsed(&self) -> Duration {
        match &self.threads {
            Some(before) if !before.is_empty() => {
                let since = |(task, ran): (OsString, u64)| {
                    ran.saturating_sub(before.get(&task).copied().unwrap_or(0))
                };
                Duration::from_nanos(thread_times().into_iter().map(since).sum())
            }
            _ => self.begun.elapsed(),
        }
    }
}

/// How long each live thread of this process has run, in nanoseconds: the first
/// number of its schedstat. What a thread did that ended meanwhile is lost.
fn thread_times() -> BTreeMap<OsString, u64> {
    let Ok(tasks) = std::fs::read_dir("/proc/self/task") else { return BTreeMap::new() };
    let ran = |task: std::io::Result<std::fs::DirEntry>| {
        let task = task.ok()?;
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((task.file_name(), text.split(' ').next()?.parse().ok()?))
    };
    tasks.filter_map(ran).collect()
}

/// Times of one run.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Timing {
    /// The middle of the rounds, in milliseconds.
    pub median_ms: f64,
    /// The least, in milliseconds.
    pub min_ms: f64,
    /// Rounds measured.
    pub rounds: usize,
    /// Runs in a round, submitted together.
    pub queued: usize,
}

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct Effort {
    /// About how long to measure one thing.
    pub budget: Duration,
    /// What counts.
    pub time: TimeKind,
}

/// Times `run`, which submits work: twice to warm up, then in rounds within the
/// budget (at least one, and three unless that takes three budgets).
///
/// # Errors
/// As `run` and [`Gpu::wait`].
pub fn measure(gpu: &Gpu, effort: Effort, mut run: impl FnMut() -> Result<()>) -> Result<Timing> {
    let mut round = |runs: usize| -> Result<[Duration; 2]> {
        let (watch, elapsed) = (Watch::start(effort.time), Instant::now());
        for _ in 0..runs {
            run()?;
        }
        gpu.wait()?;
        Ok([watch.elapsed() / runs as u32, elapsed.elapsed()])
    };
    let begun = Instant::now();
    let cold = round(1)?;
    // What takes longer than its budget has little to gain from a warm-up.
    let warm = if cold[1] > effort.budget { cold } else { round(1)? };
    let queued = (ROUND.as_secs_f64() / warm[1].as_secs_f64().max(1e-9)).ceil();
    let queued = (queued as usize).clamp(1, MOST_QUEUED);
    let mut times = Vec::new();
    while times.len() < *ROUNDS.end() {
        let spent = begun.elapsed();
        let enough = times.len() >= *ROUNDS.start() || spent > 3 * effort.budget;
        if !times.is_empty() && spent > effort.budget && enough {
            break;
        }
        times.push(round(queued)?[0]);
    }
    Ok(summary(times, queued))
}

fn summary(mut times: Vec<Duration>, queued: usize) -> Timing {
    times.sort();
    let ms = |i: usize| times[i].as_secs_f64() * 1e3;
    let n = times.len();
    Timing { median_ms: (ms((n - 1) / 2) + ms(n / 2)) / 2.0, min_ms: ms(0), rounds: n, queued }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_few_and_of_many() {
        let of = |ms: &[u64]| {
            let t = summary(ms.iter().map(|m| Duration::from_millis(*m)).collect(), 1);
            (t.median_ms, t.min_ms, t.rounds)
        };
        assert_eq!(of(&[5]), (5.0, 5.0, 1));
        assert_eq!(of(&[9, 1]), (5.0, 1.0, 2));
        assert_eq!(of(&[7, 1, 100]), (7.0, 1.0, 3));
    }
}
