//! Benchmarks of the kernels, of whole networks, and of a training step on the
//! device that `DEMIST_DEVICE` selects (by default the one all commands use).
//! The workloads are those of `demist bench`, which also knows the device's
//! ceilings and other variants; this is for criterion's statistics.
//!
//! Throughput is in floating-point operations: criterion's "Gelem/s" reads as
//! GFLOP/s, a multiply-add counts two. The count is the algorithm's (padding of
//! tiles not included); for kernels bound by memory it is only a yardstick.
//!
//! ```text
//! cargo bench                        all but the large networks
//! cargo bench -- W2                  one workload
//! cargo bench -- "W6 by kernel"      where the time of a training step goes
//! DEMIST_BENCH_CPU=1 cargo bench     processor time instead of elapsed time
//! ```
//!
//! The last is for a software driver on a machine that others use too, see
//! [`TimeKind::Processor`].

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use demist::engine::bench::{Case, Planned, Prepared, TimeKind, WORKLOADS, Watch};
use demist::engine::gpu::Gpu;
use demist::engine::runtime::{Context, Pipelines};
use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

/// Runs submitted before the host waits, so that a fast device is not measured
/// by the latency of a submit.
const QUEUED: u64 = 32;

/// Opens the device once and says which it is.
fn context() -> Context<'static> {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    let (gpu, pipelines) = DEVICE.get_or_init(|| {
        let gpu = Gpu::open(std::env::var("DEMIST_DEVICE").ok().as_deref()).expect("a GPU adapter");
        println!("device: {}", gpu.summary);
        (gpu, Pipelines::new())
    });
    Context { gpu, pipelines }
}

/// Measures elapsed or, on request, processor time.
fn time_kind() -> TimeKind {
    match std::env::var_os("DEMIST_BENCH_CPU") {
        Some(_) => TimeKind::Processor,
        None => TimeKind::Elapsed,
    }
}

fn measure(c: &mut Criterion, group: &str, name: &str, prepared: &Prepared) {
    let gpu = context().gpu;
    let mut group = c.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat);
    let flops = prepared.program.plan().report().flops;
    if flops > 0 {
        group.throughput(Throughput::Elements(flops));
    }
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let watch = Watch::start(time_kind());
            for i in 0..iterations {
                prepared.run(gpu).expect("a working device");
                if (i + 1) % QUEUED == 0 {
                    gpu.wait().expect("a working device");
                }
            }
            gpu.wait().expect("a working device");
            watch.elapsed()
        });
    });
    group.finish();
}

/// All workloads but the large ones, in 32 bits and in half precision.
fn workloads(c: &mut Criterion) {
    let gpu = context().gpu;
    for w in WORKLOADS.iter().filter(|w| !w.heavy) {
        for direction in w.directions {
            for half in [false, true] {
                let case = w.case(*direction, half).expect("the workload builds");
                let planned = case.plan(&gpu.caps, &[]).expect("the workload plans");
                let prepared = case.prepare(context(), planned).expect("the workload compiles");
                let name = format!("{}{direction}", if half { "in half, " } else { "" });
                measure(c, &format!("{} {}", w.id, w.title), &name, &prepared);
            }
        }
    }
}

/// A training step's plan cut into one plan for each kernel; what the launches read
/// is whatever lies there, which takes as long.
fn by_kernel(c: &mut Criterion) {
    let w = WORKLOADS.iter().find(|w| w.id == "W6").expect("a training step");
    let case = w.case(w.directions[0], false).expect("the workload builds");
    let planned = case.plan(&context().gpu.caps, &[]).expect("the workload plans");
    let mut launches = BTreeMap::new();
    for d in &planned.plan.dispatches {
        *launches.entry(d.kernel.name).or_insert(0) += 1;
    }
    for (kernel, count) in launches {
        let prepared = only(&case, planned.clone(), kernel);
        measure(c, "W6 by kernel", &format!("{kernel}, {count} launches"), &prepared);
    }
}

fn only(case: &Case, mut planned: Planned, kernel: &str) -> Prepared {
    planned.plan.dispatches.retain(|d| d.kernel.name == kernel);
    planned.results.clear();
    case.prepare(context(), planned).expect("the part compiles")
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .without_plots()
}

criterion_group! { name = benches; config = settings(); targets = workloads, by_kernel }
criterion_main!(benches);
