//! Running a program once with a time for every dispatch.
//!
//! The device's own clock is read between the dispatches where it can be
//! (timestamp queries inside of passes), otherwise around passes that hold one
//! dispatch each; a device without timestamps is timed by the host, which waits
//! after every dispatch. [`Program::run`] knows nothing of this.

use super::program::Program;
use super::step::{FLOPS_PER_SUBMIT, Step};
use crate::gpu::Gpu;
use crate::{Error, Result};
use web_time::Instant;

/// Dispatches to a query set, which holds at most 4096 timestamps.
const BATCH: usize = 2000;

/// Bytes of a resolved timestamp.
const QUERY_BYTES: u64 = 8;

/// Where the times come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Clock {
    /// Timestamps between the dispatches of one pass, as in a normal run.
    BetweenDispatches,
    /// Timestamps at both ends of passes that hold one dispatch each.
    AroundPasses,
    /// The host's clock around a submit and a wait for each dispatch, so that each
    /// time includes both.
    Host,
}

impl Clock {
    /// The best that the device was opened with; see [`Gpu::open_for_measuring_async`].
    pub fn of(gpu: &Gpu) -> Clock {
        let features = gpu.device.features();
        if features.contains(wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES) {
            Clock::BetweenDispatches
        } else if features.contains(wgpu::Features::TIMESTAMP_QUERY) {
            Clock::AroundPasses
        } else {
            Clock::Host
        }
    }
}

impl std::fmt::Display for Clock {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Clock::BetweenDispatches => "device timestamps between the dispatches of a pass",
            Clock::AroundPasses => "device timestamps around passes of one dispatch each",
            Clock::Host => {
                "the host's clock with a wait after each dispatch, since the device offers no \
                 timestamps: every time includes a submit"
            }
        })
    }
}

/// When a dispatch ran, in nanoseconds from the start of the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Start.
    pub start: u64,
    /// Duration.
    pub nanos: u64,
}

impl Program {
    /// Runs the plan once and waits; returns when each of its dispatches ran. What
    /// only prepares weights that have not changed takes no time.
    ///
    /// # Errors
    /// [`Error::Device`] if the device reported a fault or offers no such clock,
    /// [`Error::Memory`] without room for the timestamps.
    pub async fn run_timed_async(&self, gpu: &Gpu, clock: Clock) -> Result<Vec<Span>> {
        let steps = self.due();
        let all = steps.len() == self.steps.len();
        let timed = match clock {
            Clock::Host => run_by_host(gpu, &steps).await?,
            Clock::BetweenDispatches | Clock::AroundPasses => {
                run_by_queries(gpu, clock, &steps).await?
            }
        };
        let mut timed = timed.into_iter();
        let mut at = 0;
        let skipped = |s: &Step| !all && s.prepares;
        let span = |s: &Step| {
            let span = if skipped(s) { None } else { timed.next() };
            let span = span.unwrap_or(Span { start: at, nanos: 0 });
            at = span.start + span.nanos;
            span
        };
        Ok(self.steps.iter().map(span).collect())
    }
}

async fn run_by_host(gpu: &Gpu, steps: &[&Step]) -> Result<Vec<Span>> {
    let begun = Instant::now();
    let now = || begun.elapsed().as_nanos() as u64;
    let mut ticks = Vec::with_capacity(steps.len());
    for step in steps {
        let start = now();
        step.run_alone(gpu).await?;
        ticks.push([start, now()]);
    }
    Ok(spans(&ticks, 1.0))
}

async fn run_by_queries(gpu: &Gpu, clock: Clock, steps: &[&Step]) -> Result<Vec<Span>> {
    let wanted = match clock {
        Clock::AroundPasses => wgpu::Features::TIMESTAMP_QUERY,
        _ => wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES,
    };
    if !gpu.device.features().contains(wanted) {
        let detail = format!("{}: was opened without {clock}", gpu.summary.name);
        return Err(Error::Device(detail));
    }
    let mut ticks = Vec::with_capacity(steps.len());
    let mut rest = steps;
    while !rest.is_empty() {
        let (batch, after) = rest.split_at(batch_len(rest));
        ticks.extend(timed_batch(gpu, clock, batch).await?);
        rest = after;
    }
    Ok(spans(&ticks, gpu.queue.get_timestamp_period().into()))
}

/// How many of the first steps are submitted together.
fn batch_len(steps: &[&Step]) -> usize {
    let mut flops = 0;
    let within = steps.iter().take(BATCH).take_while(|s| {
        let fits = flops < FLOPS_PER_SUBMIT;
        flops += s.flops;
        fits
    });
    within.count().max(1)
}

/// Runs `steps` and returns the ticks at which each began and ended.
async fn timed_batch(gpu: &Gpu, clock: Clock, steps: &[&Step]) -> Result<Vec<[u64; 2]>> {
    let inside = clock == Clock::BetweenDispatches;
    let count = if inside { steps.len() + 1 } else { 2 * steps.len() } as u32;
    let set = gpu.device.create_query_set(&wgpu::QuerySetDescriptor {
        label: Some("timestamps"),
        ty: wgpu::QueryType::Timestamp,
        count,
    });
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
    let bytes = u64::from(count) * QUERY_BYTES;
    let resolved = gpu.guarded_buffer("timestamps", bytes, usage).await?;
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    if inside {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.write_timestamp(&set, 0);
        for (i, step) in steps.iter().enumerate() {
            step.encode(&mut pass);
            pass.write_timestamp(&set, i as u32 + 1);
        }
    } else {
        for (i, step) in steps.iter().enumerate() {
            let timestamp_writes = Some(wgpu::ComputePassTimestampWrites {
                query_set: &set,
                beginning_of_pass_write_index: Some(2 * i as u32),
                end_of_pass_write_index: Some(2 * i as u32 + 1),
            });
            let descriptor = wgpu::ComputePassDescriptor { label: None, timestamp_writes };
            step.encode(&mut encoder.begin_compute_pass(&descriptor));
        }
    }
    encoder.resolve_query_set(&set, 0..count, &resolved, 0);
    gpu.queue.submit([encoder.finish()]);
    let raw = &gpu.read_async(&[(&resolved, 0, bytes)]).await?[0];
    let ticks: Vec<u64> = bytemuck::pod_collect_to_vec(raw);
    let pair =
        |i: usize| if inside { [ticks[i], ticks[i + 1]] } else { [ticks[2 * i], ticks[2 * i + 1]] };
    Ok((0..steps.len()).map(pair).collect())
}

/// Nanoseconds from the first tick on. Clocks that run backwards for a moment,
/// as some drivers' do, count as standing still.
fn spans(ticks: &[[u64; 2]], period: f64) -> Vec<Span> {
    let first = ticks.first().map_or(0, |t| t[0]);
    let nanos = |ticks: u64| (ticks as f64 * period) as u64;
    let span = |[start, end]: &[u64; 2]| Span {
        start: nanos(start.saturating_sub(first)),
        nanos: nanos(end.saturating_sub(*start)),
    };
    ticks.iter().map(span).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_become_nanoseconds_that_never_run_backwards() {
        let found = spans(&[[1000, 1010], [1010, 1008], [990, 1100]], 2.5);
        let span = |start, nanos| Span { start, nanos };
        assert_eq!(found, [span(0, 25), span(25, 0), span(0, 275)]);
    }
}
