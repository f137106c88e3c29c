//! The gradient norm and the AdamW step on flat, chunked parameters, against
//! their CPU twins; what a bad gradient does; a small training loop.

mod harness;

use demist::engine::caps::Caps;
use demist::engine::gpu::Gpu;
use demist::engine::graph::{
    DType, FileLayout, FlatKind, Graph, Init, Lower, ParamInfo, ParamLayout, Plan, PlanOptions,
    verify_slots,
};
use demist::engine::ops::{self, AdamW, Conv2d, OptimizerTensors, optimizer_step};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::reference::{adamw as twin, grad_norm};
use harness::{device, narrow_device, rel_err, subgroup_device, values};

const KINDS: [FlatKind; 5] =
    [FlatKind::Weights, FlatKind::Grads, FlatKind::ExpAvg, FlatKind::ExpAvgSq, FlatKind::Ema(0)];

/// Parameters of the given sizes and a plan that only steps them.
struct Bench {
    gpu: &'static Gpu,
    graph: Graph,
    layout: ParamLayout,
    flat: FlatBuffers,
    program: Program,
    tensors: OptimizerTensors,
}

type Values = Vec<Vec<f32>>;

impl Bench {
    fn new(sizes: &[usize], max_bytes: u64) -> Self {
        Self::on(device(), sizes, max_bytes)
    }

    fn on((gpu, pipelines): &'static (Gpu, Pipelines), sizes: &[usize], max_bytes: u64) -> Self {
        let mut graph = Graph::new();
        for (i, len) in sizes.iter().enumerate() {
            graph.param(ParamInfo {
                name: format!("p{i}"),
                shape: vec![*len],
                layout: FileLayout::Plain,
                init: Init::Zeros,
            });
        }
        let caps = Caps { max_binding: max_bytes, ..gpu.caps.clone() };
        let layout = ParamLayout::new(&graph.params, max_bytes);
        let mut lower = Lower::new(&graph, &caps);
        let tensors = optimizer_step(&mut lower, &layout, false).unwrap();
        let plan = Plan::new(&graph, lower, &[], PlanOptions::default()).unwrap();
        verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
        let flat = FlatBuffers::new(gpu, &layout, &KINDS).unwrap();
        let options = CompileOptions { poison: true, ..Default::default() };
        let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options).unwrap();
        Bench { gpu, graph, layout, flat, program, tensors }
    }

    fn values(&self, seed: u32, scale: f32) -> Values {
        let params = self.graph.params.iter().enumerate();
        params
            .map(|(i, p)| values(seed + i as u32, p.len()).iter().map(|v| scale * v).collect())
            .collect()
    }

    fn write(&self, kind: FlatKind, v: &Values) {
        self.flat.write(self.gpu, kind, &self.graph.params, v).unwrap();
    }

    fn read(&self, kind: FlatKind) -> Values {
        self.flat.read(self.gpu, kind, &self.graph.params).unwrap()
    }

    /// One step; returns the norm.
    fn step(&self, optimizer: &AdamW, step: u64, grads: &Values) -> f32 {
        let gpu = self.gpu;
        self.write(FlatKind::Grads, grads);
        self.program.write(gpu, self.tensors.hyper, &optimizer.hyper(step)).unwrap();
        self.program.run(gpu).unwrap();
        self.program.read(gpu, &[self.tensors.norm]).unwrap()[0][0]
    }
}

fn norm_of(grads: &Values) -> f64 {
    grad_norm::forward(&grads.iter().map(Vec::as_slice).collect::<Vec<_>>())
}

/// The twin's state: weights, moments, average.
struct Host {
    w: Values,
    m: Values,
    v: Values,
    ema: Values,
}

impl Host {
    fn step(&mut self, o: &AdamW, step: u64, grads: &Values) {
        let grad_scale =
            if o.max_norm > 0.0 { grad_norm::clip_scale(norm_of(grads), o.max_norm) } else { 1.0 };
        let params = twin::AdamwParams {
            lr: o.lr,
            beta1: o.beta1,
            beta2: o.beta2,
            eps: o.eps,
            weight_decay: o.weight_decay,
            step,
            grad_scale,
        };
        for (i, grad) in grads.iter().enumerate() {
            twin::step(&params, &mut self.w[i], &mut self.m[i], &mut self.v[i], grad);
            twin::ema_update(&mut self.ema[i], &self.w[i], o.ema_rate);
        }
    }
}

/// Sizes that fill four chunks of 16 KiB, padding between them.
const SIZES: [usize; 6] = [3000, 1200, 7, 4096, 1, 65];
const CHUNK_BYTES: u64 = 16384;

fn check(name: &str, optimizer: AdamW, sizes: &[usize], max_bytes: u64, chunks: usize) {
    for device in [device(), subgroup_device()] {
        check_on(Bench::on(device, sizes, max_bytes), name, optimizer, chunks);
    }
}

fn check_on(bench: Bench, name: &str, optimizer: AdamW, chunks: usize) {
    assert_eq!(bench.layout.chunks.len(), chunks, "{name}");
    let zeros = || bench.values(0, 0.0);
    let mut host = Host { w: bench.values(10, 1.0), m: zeros(), v: zeros(), ema: zeros() };
    host.ema = host.w.clone();
    bench.write(FlatKind::Weights, &host.w);
    bench.write(FlatKind::Ema(0), &host.ema);
    for step in 1..=4u64 {
        // The learning rate moves, as under a schedule.
        let optimizer = AdamW { lr: optimizer.lr / step as f64, ..optimizer };
        let grads = bench.values(100 * step as u32, 0.02 * step as f32);
        let norm = bench.step(&optimizer, step, &grads);
        let e = (f64::from(norm) / norm_of(&grads) - 1.0).abs();
        assert!(e < 1e-6, "{name}: norm {norm} is off by {e:.2e}");
        host.step(&optimizer, step, &grads);
        for (kind, want, tolerance) in [
            (FlatKind::Weights, &host.w, 1e-6),
            (FlatKind::ExpAvg, &host.m, 1e-6),
            (FlatKind::ExpAvgSq, &host.v, 1e-6),
            (FlatKind::Ema(0), &host.ema, 1e-6),
        ] {
            for (got, want) in bench.read(kind).iter().zip(want) {
                let e = rel_err(got, want);
                assert!(e < tolerance, "{name}, step {step}: {kind:?} {e:.2e}");
            }
        }
    }
}

const PLAIN: AdamW = AdamW {
    lr: 0.01,
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    ema_rate: 0.9,
    max_norm: 0.0,
};

#[test]
fn steps_match_the_twin() {
    let decay = AdamW { weight_decay: 0.3, beta1: 0.7, eps: 1e-3, ..PLAIN };
    check("plain", PLAIN, &SIZES, CHUNK_BYTES, 4);
    check("decay", decay, &SIZES, CHUNK_BYTES, 4);
    check("one chunk", decay, &SIZES, 1 << 20, 1);
    check("one element", decay, &[1], 1 << 20, 1);
    let folded = Bench::on(narrow_device(), &[190_000, 3], 1 << 20);
    check_on(folded, "folded launches", decay, 1);
    check("several workgroups", decay, &[100_000, 3], 1 << 20, 1);
    check("no average", AdamW { ema_rate: 0.0, ..PLAIN }, &[70], 1 << 20, 1);
}

#[test]
fn clipping_matches_the_twin() {
    // The gradients' norm is about 1 at the first step and 4 at the last.
    check("clipped", AdamW { max_norm: 0.5, eps: 1e-3, ..PLAIN }, &SIZES, CHUNK_BYTES, 4);
    check("partly", AdamW { max_norm: 2.0, eps: 1e-3, ..PLAIN }, &SIZES, CHUNK_BYTES, 4);
    check("never", AdamW { max_norm: 100.0, ..PLAIN }, &SIZES, CHUNK_BYTES, 4);
}

/// The average of constant weights is those weights, also at a rate whose
/// complement is not exact.
#[test]
fn the_average_rests_on_constant_weights() {
    let bench = Bench::new(&[130], 1 << 20);
    let weights = bench.values(1, 1.0);
    bench.write(FlatKind::Weights, &weights);
    bench.write(FlatKind::Ema(0), &weights);
    let still = AdamW { lr: 0.0, ema_rate: 0.9999, ..PLAIN };
    for step in 1..=50 {
        bench.step(&still, step, &bench.values(step as u32, 1.0));
    }
    assert_eq!(bench.read(FlatKind::Weights), weights);
    assert_eq!(bench.read(FlatKind::Ema(0)), weights);
}

/// The same bits every time.
#[test]
fn the_norm_is_reproducible() {
    for device in [device(), subgroup_device()] {
        let bench = Bench::on(device, &[50_000, 3000], 1 << 20);
        let grads = bench.values(5, 1.0);
        let norms: Vec<u32> = (1..=5).map(|s| bench.step(&PLAIN, s, &grads).to_bits()).collect();
        assert!(norms.iter().all(|n| *n == norms[0]), "{norms:?}");
        let zero = bench.step(&PLAIN, 6, &bench.values(0, 0.0));
        assert_eq!(zero, 0.0);
    }
}

/// A gradient that overflowed, wherever it is, leaves all state as it was to
/// the bit; the next good one is taken.
#[test]
fn bad_gradients_are_skipped() {
    for device in [device(), subgroup_device()] {
        skips_bad_gradients(&Bench::on(device, &SIZES, CHUNK_BYTES));
    }
}

fn skips_bad_gradients(bench: &Bench) {
    bench.write(FlatKind::Weights, &bench.values(1, 1.0));
    bench.write(FlatKind::Ema(0), &bench.values(2, 1.0));
    let good = bench.values(3, 1.0);
    bench.step(&PLAIN, 1, &good);
    let state = || KINDS.map(|k| if k == FlatKind::Grads { Vec::new() } else { bench.read(k) });
    let before = state();
    let bad = [f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN, 1e30, f32::MAX];
    for clip in [0.0, 1.0] {
        let optimizer = AdamW { max_norm: clip, ..PLAIN };
        // The first, a middle and the last chunk, and a lane that is no first one.
        for (parameter, at) in [(0, 0), (1, 1199), (3, 2001), (4, 0), (5, 64)] {
            for value in bad {
                let mut grads = good.clone();
                grads[parameter][at] = value;
                let norm = bench.step(&optimizer, 2, &grads);
                assert_eq!(norm, f32::INFINITY, "{value} at {parameter}, {at}");
                assert!(state() == before, "{value} at {parameter}, {at} changed the state");
            }
        }
    }
    let norm = bench.step(&PLAIN, 2, &good);
    assert!(norm.is_finite() && state() != before);
}

/// Large but finite gradients are stepped on: the limit is 2^46.
#[test]
fn large_gradients_are_taken() {
    let bench = Bench::new(&[300], 1 << 20);
    let mut grads = bench.values(3, 1.0);
    grads[0][299] = -7e13;
    let norm = bench.step(&AdamW { max_norm: 1.0, ..PLAIN }, 1, &grads);
    assert!((f64::from(norm) / 7e13 - 1.0).abs() < 1e-6, "{norm}");
    // Clipped to length 1, the first step moves by the learning rate.
    let moved = bench.read(FlatKind::Weights)[0][299];
    assert!((moved / 0.01 - 1.0).abs() < 1e-5, "{moved}");
}

/// Forward, backward and optimizer in one plan: a 1x1 convolution learns the
/// linear map that made its targets.
#[test]
fn a_plan_that_trains() {
    let (gpu, pipelines) = device();
    let (n, hw, cin, cout) = (4, 5, 3, 2);
    let mut g = Graph::new();
    let x = g.input("x", &[n, hw, hw, cin], DType::F32);
    let target = g.input("target", &[n, hw, hw, cout], DType::F32);
    let weights = g.input("weights", &[n], DType::F32);
    let y = ops::conv2d(&mut g, x, Conv2d::k1(cout), None, None).unwrap();
    let losses = ops::mse(&mut g, y, target).unwrap();
    let layout = ParamLayout::new(&g.params, gpu.caps.max_binding.min(gpu.caps.max_buffer));
    let mut lower = Lower::new(&g, &gpu.caps);
    lower.forward(&g).unwrap();
    lower.backward(&g, &[(losses, weights)], &[]).unwrap();
    let tensors = optimizer_step(&mut lower, &layout, false).unwrap();
    let plan = Plan::new(&g, lower, &[losses], PlanOptions::default()).unwrap();
    verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
    let flat = FlatBuffers::new(gpu, &layout, &KINDS).unwrap();
    let program =
        Program::compile(Context { gpu, pipelines }, plan, &flat, CompileOptions::default())
            .unwrap();

    let map = values(1, cin * cout);
    let images = values(2, n * hw * hw * cin);
    let made: Vec<f32> = images
        .chunks(cin)
        .flat_map(|p| (0..cout).map(|o| (0..cin).map(|i| p[i] * map[i * cout + o]).sum::<f32>()))
        .collect::<Vec<_>>();
    program.write(gpu, x, &images).unwrap();
    program.write(gpu, target, &made).unwrap();
    program.write(gpu, weights, &vec![1.0 / n as f32; n]).unwrap();
    let optimizer = AdamW { lr: 0.05, ema_rate: 0.5, max_norm: 1.0, ..PLAIN };
    let mut history = Vec::new();
    for step in 1..=200 {
        program.write(gpu, tensors.hyper, &optimizer.hyper(step)).unwrap();
        program.run(gpu).unwrap();
        let each = program.read(gpu, &[losses]).unwrap().remove(0);
        history.push(each.iter().sum::<f32>() / n as f32);
    }
    assert!(history[0] > 0.01 && history[199] < 1e-5, "{} {}", history[0], history[199]);
    for kind in [FlatKind::Weights, FlatKind::Ema(0)] {
        let learned = flat.read(gpu, kind, &g.params).unwrap();
        let e = rel_err(&learned[0], &map);
        assert!(e < 1e-2, "{kind:?}: {e:.2e}");
    }
}
