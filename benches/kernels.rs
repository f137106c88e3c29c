//! Benchmarks of the kernels, of a whole network, and of a training step on the
//! device that `DEMIST_DEVICE` selects (by default the one all commands use).
//!
//! Throughput is in floating-point operations: criterion's "Gelem/s" reads as
//! GFLOP/s, a multiply-add counts two. The count is the algorithm's (padding of
//! tiles not included); for kernels bound by memory it is only a yardstick.
//!
//! ```text
//! cargo bench                        all
//! cargo bench -- W2                  one workload
//! cargo bench -- "W6 by kernel"      where the time of a training step goes
//! DEMIST_BENCH_CPU=1 cargo bench     processor time instead of elapsed time
//! ```
//!
//! The last is for a software driver on a machine that others use too: it adds
//! up the time that all threads of the process ran (Linux only), so waiting for
//! a core does not count. Divided by the cores it is what an idle machine needs
//! at best.

use criterion::{Criterion, SamplingMode, Throughput, criterion_group, criterion_main};
use demist::diffusion::DiffusionConfig;
use demist::gpu::Gpu;
use demist::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use demist::model::{UNetConfig, UNetInputs, build, initialise};
use demist::ops::{self, AttentionOrder, Conv2d, GroupNorm};
use demist::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::train::{MicroBatch, Noise, TrainConfig, TrainStep};
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// Runs submitted before the host waits, so that a fast device is not measured
/// by the latency of a submit.
const QUEUED: u64 = 32;

/// Opens the device once and says which it is.
fn context() -> Context<'static> {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    let (gpu, pipelines) = DEVICE.get_or_init(|| {
        let gpu = Gpu::open(std::env::var("DEMIST_DEVICE").ok().as_deref()).expect("a GPU adapter");
        let s = &gpu.summary;
        println!("device: {} ({}, {}, {})", s.name, s.kind, s.backend, s.driver);
        (gpu, Pipelines::new())
    });
    Context { gpu, pipelines }
}

/// Deterministic values in [-1, 1).
fn values(len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / 8_388_608.0 - 1.0)
        .collect()
}

/// Measures elapsed or, on request, processor time.
enum Watch {
    Elapsed(Instant),
    Processor(BTreeMap<OsString, u64>),
}

impl Watch {
    fn start() -> Self {
        match std::env::var_os("DEMIST_BENCH_CPU") {
            Some(_) => Watch::Processor(processor_times()),
            None => Watch::Elapsed(Instant::now()),
        }
    }

    fn elapsed(&self) -> Duration {
        match self {
            Watch::Elapsed(begun) => begun.elapsed(),
            Watch::Processor(begun) => {
                let since = |(task, ran)| ran - begun.get(&task).copied().unwrap_or(0);
                Duration::from_nanos(processor_times().into_iter().map(since).sum())
            }
        }
    }
}

/// How long each live thread of this process has run, in nanoseconds: the first
/// number of its schedstat. What a thread did that ended meanwhile is lost.
fn processor_times() -> BTreeMap<OsString, u64> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("Linux");
    let ran = |task: std::io::Result<std::fs::DirEntry>| {
        let task = task.ok()?;
        let text = std::fs::read_to_string(task.path().join("schedstat")).ok()?;
        Some((task.file_name(), text.split(' ').next()?.parse().ok()?))
    };
    tasks.filter_map(ran).collect()
}

/// Measures `run`, which submits `flops` of work.
fn measure(c: &mut Criterion, group: &str, name: &str, flops: u64, mut run: impl FnMut()) {
    let mut group = c.benchmark_group(group);
    group.sampling_mode(SamplingMode::Flat);
    if flops > 0 {
        group.throughput(Throughput::Elements(flops));
    }
    group.bench_function(name, |bencher| {
        bencher.iter_custom(|iterations| {
            let watch = Watch::start();
            for i in 0..iterations {
                run();
                if (i + 1) % QUEUED == 0 {
                    context().gpu.wait().expect("a working device");
                }
            }
            context().gpu.wait().expect("a working device");
            watch.elapsed()
        });
    });
    group.finish();
}

fn measure_program(c: &mut Criterion, group: &str, name: &str, program: &Program) {
    let flops = program.plan().report().flops;
    measure(c, group, name, flops, || {
        program.run(context().gpu).expect("a working device");
    });
}

/// Compiles one op applied to an input of `shape`, forward or forward and
/// backward, in 32 bits or in half precision.
fn compile_op(
    shape: &[usize],
    op: &dyn Fn(&mut Graph, TensorId) -> demist::Result<TensorId>,
    backward: bool,
    half: bool,
) -> demist::Result<Program> {
    let ctx = context();
    let mut g = Graph::new();
    g.half = half;
    let x = g.input("x", shape, if half { DType::F16 } else { DType::F32 });
    let y = op(&mut g, x)?;
    let out = g.shape(y).to_vec();
    let dy = g.input("dy", &out, g.dtype(y));
    let mut lower = Lower::new(&g, &ctx.gpu.caps);
    lower.forward()?;
    let mut keep = vec![y];
    if backward {
        lower.backward(&[(y, dy)], &[x])?;
        keep.extend(lower.grad(x));
    }
    let plan = Plan::new(&g, lower, &keep, PlanOptions::default())?;
    let kinds = [FlatKind::Weights, FlatKind::Half, FlatKind::Grads];
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &kinds)?;
    flat.write(ctx.gpu, FlatKind::Weights, &g.params, &initialise(&g.params, 0))?;
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default())?;
    for (id, shape) in [(x, shape), (dy, &out)] {
        let values = values(shape.iter().product());
        if half {
            let halves: Vec<_> = values.into_iter().map(half::f16::from_f32).collect();
            program.write(ctx.gpu, id, &halves)?;
        } else {
            program.write(ctx.gpu, id, &values)?;
        }
    }
    Ok(program)
}

fn bench_op(
    c: &mut Criterion,
    group: &str,
    shape: &[usize],
    op: &dyn Fn(&mut Graph, TensorId) -> demist::Result<TensorId>,
) {
    for (name, backward, half) in [
        ("forward", false, false),
        ("forward and backward", true, false),
        ("in half, forward", false, true),
        ("in half, forward and backward", true, true),
    ] {
        let program = compile_op(shape, op, backward, half).expect("the workload compiles");
        measure_program(c, group, name, &program);
    }
}

/// W1 to W4: single ops, batches of 4.
fn single_ops(c: &mut Criterion) {
    let conv = |cout| move |g: &mut Graph, x| ops::conv2d(g, x, Conv2d::k3(cout), None, None);
    bench_op(c, "W1 conv 3x3 64 to 64, 32x32", &[4, 32, 32, 64], &conv(64));
    bench_op(c, "W2 conv 3x3 128 to 128, 16x16", &[4, 16, 16, 128], &conv(128));
    let norm = GroupNorm { groups: 32, eps: 1e-5, silu: true };
    bench_op(c, "W3 group norm 32 + SiLU, 128 channels, 32x32", &[4, 32, 32, 128], &|g, x| {
        ops::group_norm(g, x, norm, None)
    });
    bench_op(c, "W4 attention, 4 heads of 32, 256 tokens", &[4, 16, 16, 3 * 128], &|g, qkv| {
        ops::attention(g, qkv, 4, AttentionOrder::Legacy)
    });
}

/// The U-Net of the faces: 16x16 pixels, base width 32.
fn unet(out_channels: usize) -> UNetConfig {
    UNetConfig {
        image_size: 16,
        in_channels: 3,
        model_channels: 32,
        out_channels,
        num_res_blocks: 1,
        attention_resolutions: vec![2],
        dropout: 0.0,
        channel_mult: vec![1.0, 2.0, 2.0],
        conv_resample: true,
        num_classes: Some(5),
        null_class: false,
        small_size: None,
        use_checkpoint: false,
        num_heads: 2,
        num_head_channels: None,
        num_heads_upsample: None,
        use_scale_shift_norm: true,
        resblock_updown: true,
        use_new_attention_order: false,
    }
}

const BATCH: usize = 16;

fn labels() -> Vec<u32> {
    (0..BATCH as u32).map(|i| i % 5).collect()
}

fn compile_unet(half: bool) -> demist::Result<Program> {
    let ctx = context();
    let config = unet(6);
    let shape = [BATCH, config.image_size, config.image_size, config.in_channels];
    let mut g = Graph::new();
    g.half = half;
    let x = g.input("x", &shape, DType::F32);
    let t = g.input("t", &[BATCH], DType::F32);
    let y = g.input("y", &[BATCH], DType::U32);
    let out = build(&config, &mut g, UNetInputs { x, t, y: Some(y), low_res: None, rng: None })?;
    let mut lower = Lower::new(&g, &ctx.gpu.caps);
    lower.forward()?;
    let plan = Plan::new(&g, lower, &[out], PlanOptions::default())?;
    let flat = FlatBuffers::inference(ctx.gpu, &plan.params)?;
    flat.write(ctx.gpu, FlatKind::Weights, &g.params, &initialise(&g.params, 0))?;
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default())?;
    program.write(ctx.gpu, x, &values(shape.iter().product()))?;
    program.write(ctx.gpu, t, &(0..BATCH).map(|i| 60.0 * i as f32).collect::<Vec<_>>())?;
    program.write(ctx.gpu, y, &labels())?;
    Ok(program)
}

/// W5: the network forward.
fn network(c: &mut Criterion) {
    for (name, half) in [("forward", false), ("in half, forward", true)] {
        let program = compile_unet(half).expect("the workload compiles");
        measure_program(c, "W5 U-Net 16x16, batch 16", name, &program);
    }
}

/// W6: a training step with everything the host does for it, its optimizer, and
/// the launches of each kernel alone.
fn training(c: &mut Criterion) {
    let ctx = context();
    let model = unet(3);
    let config = TrainConfig { batch_size: BATCH, micro_batch: BATCH, ..Default::default() };
    let step = TrainStep::new(ctx, &model, &DiffusionConfig::default(), &config, Noise::Drawn)
        .expect("the workload compiles");
    let initial = initialise(&step.graph().params, 0);
    for kind in [FlatKind::Weights, FlatKind::Ema(0)] {
        step.flat().write(ctx.gpu, kind, &step.graph().params, &initial).expect("room for weights");
    }
    let images = values(BATCH * model.image_size * model.image_size * model.in_channels);
    let labels = labels();
    let timesteps: Vec<usize> = (0..BATCH).map(|i| 60 * i).collect();
    let group = "W6 training step, batch 16";
    let flops = step.plan().report().flops;
    let mut number = 0;
    measure(c, group, "forward, backward and update", flops, || {
        let batch = MicroBatch {
            images: &images,
            labels: &labels,
            timesteps: &timesteps,
            first: number * BATCH as u64,
            noise: None,
        };
        step.micro_step(ctx, number, 0, &batch).expect("a working device");
        step.update(ctx, number).expect("a working device");
        number += 1;
    });
    let weights = step.plan().params.chunks.iter().sum::<usize>() as u64;
    measure(c, group, "update alone", 22 * weights, || {
        step.update(ctx, number).expect("a working device");
    });
    by_kernel(c, &step).expect("the parts compile");
}

/// A step's plan cut into one plan for each kernel; what the launches read is
/// whatever lies there, which takes as long.
fn by_kernel(c: &mut Criterion, step: &TrainStep) -> demist::Result<()> {
    let mut launches = BTreeMap::new();
    for d in &step.plan().dispatches {
        *launches.entry(d.kernel.name).or_insert(0) += 1;
    }
    for (kernel, count) in launches {
        let mut plan = step.plan().clone();
        plan.dispatches.retain(|d| d.kernel.name == kernel);
        let program = Program::compile(context(), plan, step.flat(), CompileOptions::default())?;
        measure_program(c, "W6 by kernel", &format!("{kernel}, {count} launches"), &program);
    }
    Ok(())
}

fn settings() -> Criterion {
    Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(100))
        .measurement_time(Duration::from_millis(500))
        .without_plots()
}

criterion_group! { name = benches; config = settings(); targets = single_ops, network, training }
criterion_main!(benches);
