//! Compiling on all cores at once.

use super::compile::{Compiled, Compiler, Job, compile};
use super::warm_up::warm_up;
use crate::gpu::Gpu;
use crate::{Error, Result};
use pollster::block_on;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::Duration;

/// How often whoever waits for kernels is told, at least.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// Compiles `jobs`, the first ones first, and hands each to `keep`. Calls `tell` with
/// the number done a few times a second, and in the end, a failure included, with all of
/// them; an error that it returns ends the work at the next kernel.
///
/// # Errors
/// The first of a kernel or of `tell`.
pub(super) async fn compile_all(
    gpu: &Gpu,
    jobs: &[Job],
    compiler: Compiler<'_>,
    keep: &(dyn Fn(&Job, Compiled) + Sync),
    tell: &dyn Fn(usize) -> Result<()>,
) -> Result<()> {
    let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(jobs.len());
    let taken = AtomicUsize::new(0);
    let next = || jobs.get(taken.fetch_add(1, Ordering::Relaxed));
    let failure = Mutex::new(None);
    let fail = |e| {
        // The others stop at the next kernel.
        taken.store(jobs.len(), Ordering::Relaxed);
        failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
    };
    let run = |work: Result<()>| work.unwrap_or_else(fail);
    // A device compiles one kernel at a time where that waits for its launch.
    let makers = if gpu.caps.compiles_at_launch { 1 } else { workers };
    let helpers = if gpu.caps.compiles_at_launch { others(gpu, workers - 1).await } else { vec![] };
    std::thread::scope(|scope| {
        let (made, heard) = mpsc::channel();
        let (hand_over, handed) = mpsc::channel();
        for helper in &helpers {
            let hand_over = hand_over.clone();
            scope.spawn(move || run(help(helper, next, compiler, hand_over)));
        }
        drop(hand_over);
        for _ in 1..makers {
            let made = made.clone();
            scope.spawn(move || run(make(gpu, next, compiler, keep, made)));
        }
        // What helpers are through with goes first, since the driver knows it.
        let known_or_next =
            move || handed.try_recv().ok().or_else(next).or_else(|| handed.recv().ok());
        scope.spawn(move || run(make(gpu, known_or_next, compiler, keep, made)));
        report(jobs.len(), &heard, tell, fail);
    });
    failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
}

/// Up to `count` more devices on the same adapter: as many as it gives.
async fn others(gpu: &Gpu, count: usize) -> Vec<Gpu> {
    let mut others = Vec::new();
    while others.len() < count
        && let Ok(other) = gpu.another_async().await
    {
        others.push(other);
    }
    others
}

/// Compiles what `next` gives, and hands it to `keep`.
fn make<'a>(
    gpu: &Gpu,
    next: impl Fn() -> Option<&'a Job>,
    compiler: Compiler,
    keep: &(dyn Fn(&Job, Compiled) + Sync),
    made: mpsc::Sender<()>,
) -> Result<()> {
    while let Some(job) = next() {
        keep(job, block_on(finish(gpu, job, compiler))?);
        // The receiver listens until every sender is gone.
        let _ = made.send(());
    }
    Ok(())
}

/// Compiles what `next` gives on another device, so that the driver knows it.
fn help<'a>(
    helper: &Gpu,
    next: impl Fn() -> Option<&'a Job>,
    compiler: Compiler,
    hand_over: mpsc::Sender<&'a Job>,
) -> Result<()> {
    // The cache belongs to the first device.
    let compiler = Compiler { cache: None, ..compiler };
    while let Some(job) = next() {
        block_on(finish(helper, job, compiler))?;
        // The receiver is gone after a failure alone, which ends the queue.
        let _ = hand_over.send(job);
    }
    Ok(())
}

/// A pipeline that the driver has nothing left to do for.
async fn finish(gpu: &Gpu, job: &Job, compiler: Compiler<'_>) -> Result<Compiled> {
    let compiled = compile(gpu, job, compiler).await?;
    if gpu.caps.compiles_at_launch {
        warm_up(gpu, job, &compiled).await?;
    }
    Ok(compiled)
}

/// Tells how far compiling is until nobody is at it.
fn report(
    total: usize,
    made: &mpsc::Receiver<()>,
    tell: &dyn Fn(usize) -> Result<()>,
    fail: impl Fn(Error),
) {
    let mut done = 0;
    loop {
        match made.recv_timeout(TELL_EVERY) {
            Ok(()) => done += 1,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
        // The last one is told of below, once.
        if done < total
            && let Err(e) = tell(done)
        {
            fail(e);
        }
    }
    if let Err(e) = tell(total) {
        fail(e);
    }
}
