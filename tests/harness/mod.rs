//! Runs one op on the device, alone and in the middle of a graph, and
//! compares it with its CPU twin and with finite differences.
//!
//! The graph around the op is  u = x + x;  y = op(u);  out = y + y;
//! side = u + u,  with loss <c, out> + <s, side>: dy is twice an arbitrary
//! vector, never ones, and u has a second consumer, so that gradients are
//! accumulated. All memory is filled with NaN before the run. With `DEMIST_CHECKED=1`
//! guard words lie around every tensor, and the run fails if one changes.
//!
//! In half precision the images are cast to half before and the result is cast
//! back; the twin gets values that half holds exactly, so that what is left is
//! the rounding of results.
#![allow(dead_code)]

use demist::engine::caps::Caps;
use demist::engine::gpu::Gpu;
use demist::engine::graph::{
    DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId, verify_slots,
};
use demist::engine::ops;
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};

use std::sync::OnceLock;

/// The device of the whole test binary; without one the tests fail.
pub fn device() -> &'static (Gpu, Pipelines) {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    DEVICE.get_or_init(|| open(|_| ()))
}

/// The same device allowed so few workgroups per dimension that almost every
/// launch is folded, mostly with a remainder.
pub fn narrow_device() -> &'static (Gpu, Pipelines) {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    DEVICE.get_or_init(|| open(|caps| caps.max_groups = 41))
}

/// The same device, but kernels divide their work as on a GPU.
pub fn parallel_device() -> &'static (Gpu, Pipelines) {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    DEVICE.get_or_init(|| open(as_a_gpu))
}

/// The same device, but kernels also reduce within subgroups, as on a GPU; a driver
/// without subgroups gets what it would get.
pub fn subgroup_device() -> &'static (Gpu, Pipelines) {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    DEVICE.get_or_init(|| {
        let (mut gpu, pipelines) = open(as_a_gpu);
        gpu.caps.subgroups = gpu.has_subgroups();
        (gpu, pipelines)
    })
}

/// The same device, with guard words around every tensor.
pub fn guarded_device() -> &'static (Gpu, Pipelines) {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    DEVICE.get_or_init(|| open(|caps| caps.guarded = true))
}

/// Kernels are those of a GPU.
fn as_a_gpu(caps: &mut Caps) {
    caps.software = false;
    caps.wide_accesses = false;
}

fn open(edit: impl Fn(&mut Caps)) -> (Gpu, Pipelines) {
    let selector = std::env::var("DEMIST_DEVICE").ok();
    let mut gpu = Gpu::open(selector.as_deref()).expect("a GPU adapter");
    gpu.caps.forced = demist::engine::tuning::Forced::from_env().expect("variants to force");
    gpu.caps.guarded = std::env::var_os("DEMIST_CHECKED").is_some_and(|v| v == "1");
    edit(&mut gpu.caps);
    (gpu, Pipelines::new())
}

/// Deterministic values in [-1, 1) without symmetry.
pub fn values(seed: u32, len: usize) -> Vec<f32> {
    let mut state = u64::from(seed).wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03;
    (0..len)
        .map(|_| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            ((state >> 40) as f32) / 8388608.0 - 1.0
        })
        .collect()
}

/// ||a - b|| / ||b||, and infinity where a is not finite or lengths differ.
pub fn rel_err(a: &[f32], b: &[f32]) -> f64 {
    if a.len() != b.len() || a.iter().any(|v| !v.is_finite()) {
        return f64::INFINITY;
    }
    let diff: f64 = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
    let norm: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
    if norm == 0.0 { diff.sqrt() } else { (diff / norm).sqrt() }
}

/// Relative error by norm of results that are stored as half: an element is off
/// by up to 2^-11 of itself, 2e-4 on average, and a gradient is stored up to
/// three times.
const HALF_TOLERANCE: f64 = 6e-4;

type Build<'a> = Box<dyn Fn(&mut Graph, &[TensorId], &[TensorId]) -> demist::Result<TensorId> + 'a>;
type TwinFn<'a> = Box<dyn Fn(&Args) -> Twin + 'a>;

/// One op at one set of shapes.
pub struct Case<'a> {
    /// Shown on failure.
    pub name: String,
    /// Shapes of the float inputs.
    pub inputs: Vec<Vec<usize>>,
    /// Integer inputs (labels).
    pub integers: Vec<Vec<u32>>,
    /// Appends the op to a graph, given float and integer inputs.
    pub build: Build<'a>,
    /// The CPU twin.
    pub twin: TwinFn<'a>,
    /// Largest relative error by norm against the twin.
    pub tolerance: f64,
    /// False for ops whose output does not depend smoothly on the input.
    pub differentiable: bool,
}

/// What the twin is given.
pub struct Args<'a> {
    pub inputs: &'a [Vec<f32>],
    pub integers: &'a [Vec<u32>],
    /// In device layout and graph order.
    pub params: &'a [Vec<f32>],
    pub dy: &'a [f32],
    /// Number of the op's node in the graph.
    pub node: u16,
}

/// What the twin returns; gradients in the order of inputs and parameters.
/// An empty gradient means that the op gives none: to it the input is constant.
pub struct Twin {
    pub y: Vec<f32>,
    pub input_grads: Vec<Vec<f32>>,
    pub param_grads: Vec<Vec<f32>>,
}

/// Results of a device run.
struct Run {
    out: Vec<f32>,
    side: Vec<Vec<f32>>,
    input_grads: Vec<Vec<f32>>,
    param_grads: Vec<Vec<f32>>,
}

struct Bench<'a> {
    case: &'a Case<'a>,
    device: &'static (Gpu, Pipelines),
    graph: Graph,
    floats: Vec<TensorId>,
    integers: Vec<TensorId>,
    out: TensorId,
    sides: Vec<TensorId>,
    seeds: Vec<(TensorId, TensorId)>,
    mid: bool,
    half: bool,
    node: u16,
    forced: Forced<'a>,
}

/// Variants to force: choice and candidate.
pub type Forced<'a> = &'a [(&'static str, &'static str)];

/// Images that half precision can hold.
fn packs(shape: &[usize]) -> bool {
    shape.len() == 4 && shape[3].is_multiple_of(4)
}

impl<'a> Bench<'a> {
    fn new(case: &'a Case<'a>, device: &'static (Gpu, Pipelines), mid: bool, half: bool) -> Self {
        let mut graph = Graph::new();
        graph.half = half;
        let floats: Vec<_> = case
            .inputs
            .iter()
            .enumerate()
            .map(|(i, s)| graph.input(&format!("x{i}"), s, DType::F32))
            .collect();
        let integers: Vec<_> = case
            .integers
            .iter()
            .enumerate()
            .map(|(i, v)| graph.input(&format!("i{i}"), &[v.len()], DType::U32))
            .collect();
        let mut used = floats.clone();
        for x in used.iter_mut().filter(|_| half) {
            if packs(graph.shape(*x)) {
                *x = ops::cast(&mut graph, *x, DType::F16).unwrap();
            }
        }
        if mid {
            used.iter_mut().for_each(|x| *x = ops::add(&mut graph, *x, *x).unwrap());
        }
        let node = graph.nodes.len() as u16;
        let y = (case.build)(&mut graph, &used, &integers)
            .unwrap_or_else(|e| panic!("{}: {e}", case.name));
        assert_eq!(graph.dtype(y) == DType::F16, half, "{}", case.name);
        let mut ends = vec![y];
        if mid {
            ends.extend(&used);
            ends.iter_mut().for_each(|t| *t = ops::add(&mut graph, *t, *t).unwrap());
        }
        ends.iter_mut().for_each(|t| *t = ops::cast(&mut graph, *t, DType::F32).unwrap());
        let (out, sides) = (ends[0], ends.split_off(1));
        let mut seeds = Vec::new();
        for (i, t) in std::iter::once(&out).chain(&sides).enumerate() {
            let shape = graph.shape(*t).to_vec();
            seeds.push((*t, graph.input(&format!("seed{i}"), &shape, DType::F32)));
        }
        Bench {
            case,
            device,
            graph,
            floats,
            integers,
            out,
            sides,
            seeds,
            mid,
            half,
            node,
            forced: &[],
        }
    }

    fn run(&self, inputs: &[Vec<f32>], params: &[Vec<f32>], seeds: &[Vec<f32>]) -> Run {
        let (gpu, pipelines) = self.device;
        let name = &self.case.name;
        let mut lower = Lower::new(&self.graph, &gpu.caps);
        self.forced.iter().for_each(|(op, candidate)| lower.force(op, candidate));
        lower.forward(&self.graph).unwrap_or_else(|e| panic!("{name}: {e}"));
        lower
            .backward(&self.graph, &self.seeds, &self.floats)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let grads: Vec<_> = self.floats.iter().map(|x| lower.grad(*x)).collect();
        let mut keep = vec![self.out];
        keep.extend(&self.sides);
        keep.extend(grads.iter().flatten());
        let plan = Plan::new(&self.graph, lower, &keep, PlanOptions::default())
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for (op, candidate) in self.forced {
            let mut taken = plan.choices.iter().filter(|c| c.op == *op).peekable();
            assert!(taken.peek().is_some(), "{name}: there is no choice {op}");
            taken.for_each(|c| assert_eq!(c.name(), *candidate, "{name}: {op}"));
        }
        verify_slots(&plan.tensors, &plan.dispatches, &plan.slots)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        let layout = self.graph.param_layout(gpu.caps.max_binding);
        let kinds = [FlatKind::Weights, FlatKind::Half, FlatKind::Grads];
        let flat = FlatBuffers::new(gpu, &layout, &kinds).unwrap();
        flat.write(gpu, FlatKind::Weights, &self.graph.params, params).unwrap();
        let nan: Vec<_> = params.iter().map(|p| vec![f32::NAN; p.len()]).collect();
        flat.write(gpu, FlatKind::Grads, &self.graph.params, &nan).unwrap();
        let options = CompileOptions { poison: true, ..Default::default() };
        let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        for (id, v) in self.floats.iter().zip(inputs) {
            program.write(gpu, *id, v).unwrap();
        }
        for (id, v) in self.integers.iter().zip(&self.case.integers) {
            program.write(gpu, *id, v).unwrap();
        }
        for ((_, id), v) in self.seeds.iter().zip(seeds) {
            program.write(gpu, *id, v).unwrap();
        }
        program.run(gpu).unwrap();
        let mut read = program.read(gpu, &keep).unwrap().into_iter();
        Run {
            out: read.next().unwrap(),
            side: read.by_ref().take(self.sides.len()).collect(),
            input_grads: grads
                .iter()
                .map(|g| if g.is_some() { read.next().unwrap() } else { Vec::new() })
                .collect(),
            param_grads: flat.read(gpu, FlatKind::Grads, &self.graph.params).unwrap(),
        }
    }

    fn loss(&self, run: &Run, seeds: &[Vec<f32>]) -> f64 {
        let dot = |a: &[f32], b: &[f32]| -> f64 {
            a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum()
        };
        dot(&run.out, &seeds[0])
            + run.side.iter().zip(&seeds[1..]).map(|(a, b)| dot(a, b)).sum::<f64>()
    }
}

fn rounded(v: Vec<f32>) -> Vec<f32> {
    demist::reference::cast::forward(&v)
}

fn scaled(v: &[f32], by: f32) -> Vec<f32> {
    v.iter().map(|v| v * by).collect()
}

fn close(name: &str, what: &str, got: &[f32], want: &[f32], tolerance: f64) {
    let e = rel_err(got, want);
    assert!(e <= tolerance, "{name}: {what} differs by {e:.2e} (allowed {tolerance:.0e})");
}

impl Case<'_> {
    /// Compares with the twin, alone and mid-graph, then with finite differences.
    pub fn check(&self) {
        self.check_on(device(), |_, v| v);
    }

    /// As [`Case::check`] on another device, with the inputs changed by `edit`.
    pub fn check_on(
        &self,
        device: &'static (Gpu, Pipelines),
        edit: impl Fn(usize, Vec<f32>) -> Vec<f32>,
    ) {
        for mid in [false, true] {
            self.check_in(device, [mid, false], &[], &edit);
        }
    }

    /// Compares with the twin in half precision, alone and mid-graph.
    pub fn check_half(&self) {
        self.check_half_on(device(), |_, v| v);
    }

    /// As [`Case::check_half`] on another device, with the inputs changed by `edit`.
    pub fn check_half_on(
        &self,
        device: &'static (Gpu, Pipelines),
        edit: impl Fn(usize, Vec<f32>) -> Vec<f32>,
    ) {
        for mid in [false, true] {
            self.check_in(device, [mid, true], &[], &edit);
        }
    }

    /// Compares with the twin, the op alone in its graph.
    pub fn check_alone(&self) {
        self.check_alone_on(device());
    }

    /// As [`Case::check_alone`] on another device.
    pub fn check_alone_on(&self, device: &'static (Gpu, Pipelines)) {
        self.check_in(device, [false, false], &[], &|_, v| v);
    }

    /// As [`Case::check`], or in `half` precision [`Case::check_half`], with variants that
    /// must be there and taken.
    pub fn check_forced(&self, forced: Forced, half: bool) {
        self.check_forced_on(device(), forced, half);
    }

    /// As [`Case::check_forced`] on another device.
    pub fn check_forced_on(&self, device: &'static (Gpu, Pipelines), forced: Forced, half: bool) {
        for mid in [false, true] {
            self.check_in(device, [mid, half], forced, &|_, v| v);
        }
    }

    fn check_in(
        &self,
        device: &'static (Gpu, Pipelines),
        [mid, half]: [bool; 2],
        forced: Forced,
        edit: &dyn Fn(usize, Vec<f32>) -> Vec<f32>,
    ) {
        let bench = Bench { forced, ..Bench::new(self, device, mid, half) };
        let seed = |i: usize| {
            self.name
                .bytes()
                .fold(i as u32 * 77, |h, b| h.wrapping_mul(31).wrapping_add(u32::from(b)))
        };
        let inputs: Vec<_> = self
            .inputs
            .iter()
            .enumerate()
            .map(|(i, s)| {
                let v = edit(i, values(seed(i), s.iter().product()));
                if half && packs(s) { rounded(v) } else { v }
            })
            .collect();
        let params: Vec<_> = (bench.graph.params.iter().enumerate())
            .zip(bench.graph.packed_params())
            .map(|((i, p), packed)| {
                let v = values(seed(100 + i), p.len());
                if packed { rounded(v) } else { v }
            })
            .collect();
        let seeds: Vec<_> = bench
            .seeds
            .iter()
            .enumerate()
            .map(|(i, (t, _))| {
                let v = values(seed(200 + i), bench.graph.shape(*t).iter().product());
                if half { rounded(v) } else { v }
            })
            .collect();
        let run = bench.run(&inputs, &params, &seeds);
        let constant = self.compare(&bench, &run, &inputs, &params, &seeds);
        // Rounded results have no useful differences.
        if mid && self.differentiable && !half {
            self.finite_differences(&bench, &run, (&inputs, &constant), &params, &seeds);
        }
    }

    /// Returns which inputs have no gradient by the twin.
    fn compare(
        &self,
        bench: &Bench,
        run: &Run,
        inputs: &[Vec<f32>],
        params: &[Vec<f32>],
        seeds: &[Vec<f32>],
    ) -> Vec<bool> {
        let Bench { mid, half, node, .. } = *bench;
        let factor = if mid { 2.0 } else { 1.0 };
        let u: Vec<_> = inputs.iter().map(|x| scaled(x, factor)).collect();
        let dy = scaled(&seeds[0], factor);
        let twin =
            (self.twin)(&Args { inputs: &u, integers: &self.integers, params, dy: &dy, node });
        let place = if mid { " mid-graph" } else { "" };
        let name = format!("{}{place}{}", self.name, if half { " in half" } else { "" });
        let tolerance = if half { self.tolerance.max(HALF_TOLERANCE) } else { self.tolerance };
        close(&name, "y", &run.out, &scaled(&twin.y, factor), tolerance);
        for (i, want) in twin.input_grads.iter().enumerate().filter(|(_, w)| !w.is_empty()) {
            let want: Vec<f32> = if mid {
                want.iter().zip(&seeds[1 + i]).map(|(g, s)| 2.0 * (g + 2.0 * s)).collect()
            } else {
                want.clone()
            };
            close(&name, &format!("gradient of input {i}"), &run.input_grads[i], &want, tolerance);
        }
        for (i, want) in twin.param_grads.iter().enumerate() {
            close(
                &name,
                &format!("gradient of parameter {i}"),
                &run.param_grads[i],
                want,
                tolerance,
            );
        }
        twin.input_grads.iter().map(Vec::is_empty).collect()
    }

    /// Derivative along one random direction through parameters and inputs,
    /// other than the constant ones.
    fn finite_differences(
        &self,
        bench: &Bench,
        run: &Run,
        (inputs, constant): (&[Vec<f32>], &[bool]),
        params: &[Vec<f32>],
        seeds: &[Vec<f32>],
    ) {
        let step = 4e-3f32;
        let all: Vec<&Vec<f32>> = inputs.iter().chain(params).collect();
        let directions: Vec<_> = all
            .iter()
            .enumerate()
            .map(|(i, v)| match constant.get(i) {
                Some(true) => vec![0.0; v.len()],
                _ => values(900 + i as u32, v.len()),
            })
            .collect();
        let moved = |by: f32| -> Vec<Vec<f32>> {
            all.iter()
                .zip(&directions)
                .map(|(v, d)| v.iter().zip(d).map(|(v, d)| v + by * d).collect())
                .collect()
        };
        let loss = |by: f32| {
            let at = moved(by);
            let (x, p) = at.split_at(inputs.len());
            bench.loss(&bench.run(x, p, seeds), seeds)
        };
        let (plus, minus) = (loss(step), loss(-step));
        let numeric = (plus - minus) / (2.0 * f64::from(step));
        let mut analytic = 0.0;
        let mut scale = 0.0;
        for (g, d) in run.input_grads.iter().chain(&run.param_grads).zip(&directions) {
            for (g, d) in g.iter().zip(d) {
                analytic += f64::from(*g) * f64::from(*d);
                scale += (f64::from(*g) * f64::from(*d)).powi(2);
            }
        }
        let error = (numeric - analytic).abs() / scale.sqrt().max(1e-6);
        assert!(
            error < 2e-2,
            "{}: finite difference {numeric:.6} but gradient {analytic:.6}",
            self.name
        );
    }
}
