//! What a device can do at best, measured by kernels that do one thing: the
//! ceilings under which all others work.

use super::measure::{Effort, Timing, measure};
use crate::caps::Coop;
use crate::graph::{DType, FlatKind, Graph, Launch, Lower, Plan, PlanOptions, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program};
use crate::{Result, defines, named, params};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// Invocations of a workgroup.
const GROUP: u64 = 64;

params! {
    struct FmaParams { len: u32, turns: u32, factor: f32, step: f32 }
}

params! {
    struct CoopParams { turns: u32, value: f32 }
}

params! {
    struct CopyParams { quads: u32 }
}

params! {
    struct LoadsParams { len: u32, turns: u32, mask: u32 }
}

defines! {
    struct FmaDefines {
        chains: u32 in CHAINS,
        unroll: u32 in [UNROLL],
        f16: bool,
    }
}

static FMA: KernelOf<FmaParams, FmaDefines> =
    KernelOf::new("bench_fma", include_str!("../../shaders/bench_fma.wgsl"), &[write("y")]);

defines! {
    struct CoopDefines {
        /// Rows and columns of a matrix.
        coop: u32 in [8, 16],
        /// Invocations of a workgroup.
        wg: u32 in Coop::INVOCATIONS,
        chains: u32 in CHAINS,
        unroll: u32 in [COOP_UNROLL],
    }
}

static COOP: KernelOf<CoopParams, CoopDefines> =
    KernelOf::new("bench_coop", include_str!("../../shaders/bench_coop.wgsl"), &[write("y")]);

defines! {
    struct CopyDefines { each: u32 in [EACH] }
}

static COPY: KernelOf<CopyParams, CopyDefines> = KernelOf::new(
    "bench_copy",
    include_str!("../../shaders/bench_copy.wgsl"),
    &[read("x"), write("y")],
);

defines! {
    struct LoadsDefines {
        /// From workgroup memory; without it from storage.
        shared: bool,
        unroll: u32 in [UNROLL],
    }
}

static LOADS: KernelOf<LoadsParams, LoadsDefines> = KernelOf::new(
    "bench_loads",
    include_str!("../../shaders/bench_loads.wgsl"),
    &[read("x"), write("y")],
);

/// Chains that are tried: few stay in a processor's registers, many hide a GPU's
/// latency.
const CHAINS: [u32; 4] = [1, 2, 4, 8];
/// Multiply-adds of a chain in a turn, loads in a turn.
const UNROLL: u32 = 16;
/// Products of matrices of a chain in a turn.
const COOP_UNROLL: u32 = 4;
/// `vec4`s an invocation copies.
const EACH: u32 = 4;

/// The kernels of this module with all their variants, as [`crate::ops::kernels`] lists
/// those of the ops. Those with F16 set need the device's half-precision arithmetic, those
/// with COOP its cooperative matrices.
pub fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![COOP.with_variants(), FMA.with_variants(), COPY.with_variants(), LOADS.with_variants()]
}

/// What a device can do at best.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Ceilings {
    /// Multiply-adds in 32 bits, in GFLOP/s (each counts two).
    pub fma_gflops: f64,
    /// The same in half precision, where the device has such arithmetic.
    pub fma_f16_gflops: Option<f64>,
    /// Products of cooperative matrices of halves, added up in 32 bits, where the device
    /// has them.
    #[serde(default)]
    pub coop_gflops: Option<f64>,
    /// Copying from buffer to buffer, in GB/s read and written together.
    pub copy_gbs: f64,
    /// Loads of single floats that a cache holds, in thousand millions a second.
    pub storage_gloads: f64,
    /// The same from workgroup memory.
    pub workgroup_gloads: f64,
    /// A launch that depends on the one before and does nearly nothing, in
    /// microseconds.
    pub dispatch_us: f64,
}

/// The things that are measured, for dividing the time.
const PARTS: u32 = CHAINS.len() as u32 * 3 + 4;

impl Ceilings {
    /// Measures all of them within about `effort.budget`.
    ///
    /// # Errors
    /// As compiling and running any program.
    pub fn measure(ctx: Context, effort: Effort) -> Result<Ceilings> {
        let part = (effort.budget / PARTS).max(Duration::from_millis(1));
        let effort = Effort { budget: part, ..effort };
        Ok(Ceilings {
            fma_gflops: fma(ctx, effort, false)?,
            fma_f16_gflops: match ctx.gpu.has_f16() {
                true => Some(fma(ctx, effort, true)?),
                false => None,
            },
            coop_gflops: match ctx.gpu.caps.coop {
                Some(offered) => Some(coop(ctx, effort, offered)?),
                None => None,
            },
            copy_gbs: copy(ctx, effort)?,
            storage_gloads: loads(ctx, effort, false)?,
            workgroup_gloads: loads(ctx, effort, true)?,
            dispatch_us: dispatch(ctx, effort)?,
        })
    }
}

/// A billion things a second, at the best of the rounds.
fn rate(count: u64, timing: Timing) -> f64 {
    count as f64 / (timing.min_ms * 1e6).max(1e-3)
}

/// Invocations that keep the device busy.
fn invocations(ctx: Context) -> u64 {
    if ctx.gpu.caps.software { 1 << 12 } else { 1 << 20 }
}

/// Compiles what `describe` launches on tensors of its own.
fn compile(
    ctx: Context,
    describe: impl FnOnce(&mut Lower) -> Result<Vec<TensorId>>,
) -> Result<Program> {
    let graph = Graph::new();
    let mut lower = Lower::new(&graph, &ctx.gpu.caps);
    let keep = describe(&mut lower)?;
    let plan = Plan::new(&graph, lower, &keep, PlanOptions::default())?;
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &[FlatKind::Weights])?;
    Program::compile(ctx, plan, &flat, CompileOptions::default())
}

fn time(ctx: Context, effort: Effort, program: &Program) -> Result<Timing> {
    measure(ctx.gpu, effort, || program.run(ctx.gpu).map(drop))
}

/// GFLOP/s of the best number of chains, whose kernel `launch` launches.
fn best_of_chains(
    ctx: Context,
    effort: Effort,
    launch: impl Fn(&mut Lower, u32) -> Result<TensorId>,
) -> Result<f64> {
    let mut best = 0.0f64;
    for chains in CHAINS {
        let program = compile(ctx, |lower| Ok(vec![launch(lower, chains)?]))?;
        let flops = program.plan().dispatches.iter().map(|d| d.cost.flops).sum();
        best = best.max(rate(flops, time(ctx, effort, &program)?));
    }
    Ok(best)
}

/// GFLOP/s of multiply-adds.
fn fma(ctx: Context, effort: Effort, f16: bool) -> Result<f64> {
    let len = invocations(ctx);
    best_of_chains(ctx, effort, |lower, chains| {
        let turns = 256 / chains;
        let y = lower.pinned("y", &[len as usize], DType::F32);
        let p = FmaParams { len: len as u32, turns, factor: 0.999, step: 0.001 };
        lower.launch(Launch {
            kernel: &FMA,
            defines: FmaDefines { chains, unroll: UNROLL, f16 },
            params: p,
            bindings: &named![y],
            groups: len / GROUP,
            flops: len * u64::from(turns) * u64::from(UNROLL * chains * 4 * 2),
        })?;
        Ok(y)
    })
}

/// GFLOP/s of the largest matrices.
fn coop(ctx: Context, effort: Effort, offered: Coop) -> Result<f64> {
    let size: u32 = if offered.has(16) { 16 } else { 8 };
    let groups = invocations(ctx) / u64::from(offered.invocations());
    let elements = size as usize * size as usize;
    best_of_chains(ctx, effort, |lower, chains| {
        let turns = 128 / chains;
        // A workgroup has four subgroups, or more where they are smaller than the largest.
        let products = 4 * groups * u64::from(turns) * u64::from(COOP_UNROLL * chains);
        let y = lower.pinned("y", &[groups as usize * elements], DType::F32);
        let p = CoopParams { turns, value: 0.01 };
        lower.launch(Launch {
            kernel: &COOP,
            defines: CoopDefines {
                coop: size,
                wg: offered.invocations(),
                chains,
                unroll: COOP_UNROLL,
            },
            params: p,
            bindings: &named![y],
            groups,
            flops: products * 2 * u64::from(size).pow(3),
        })?;
        Ok(y)
    })
}

fn launch_copy(lower: &mut Lower, from: TensorId, to: TensorId, quads: u64) -> Result<()> {
    lower.launch(Launch {
        kernel: &COPY,
        defines: CopyDefines { each: EACH },
        params: CopyParams { quads: quads as u32 },
        bindings: &named![x: from, y: to],
        groups: quads.div_ceil(GROUP * u64::from(EACH)),
        flops: 0,
    })
}

/// GB/s, on arrays that no cache holds.
fn copy(ctx: Context, effort: Effort) -> Result<f64> {
    let wanted = if ctx.gpu.caps.software { 64 << 20 } else { 256 << 20 };
    let bytes = ctx.gpu.caps.max_binding.min(wanted) / 16 * 16;
    let program = compile(ctx, |lower| {
        let [x, y] = ["x", "y"].map(|n| lower.pinned(n, &[bytes as usize / 4], DType::F32));
        launch_copy(lower, x, y, bytes / 16)?;
        Ok(vec![y])
    })?;
    Ok(rate(2 * bytes, time(ctx, effort, &program)?))
}

/// Elements of the array that is loaded from.
const HELD: u32 = 1024;

fn loads(ctx: Context, effort: Effort, shared: bool) -> Result<f64> {
    let len = invocations(ctx);
    let turns = 32;
    let program = compile(ctx, |lower| {
        let x = lower.pinned("x", &[HELD as usize], DType::F32);
        let y = lower.pinned("y", &[len as usize], DType::F32);
        let p = LoadsParams { len: len as u32, turns, mask: HELD - 1 };
        lower.launch(Launch {
            kernel: &LOADS,
            defines: LoadsDefines { shared, unroll: UNROLL },
            params: p,
            bindings: &named![x, y],
            groups: len / GROUP,
            flops: 0,
        })?;
        Ok(vec![y])
    })?;
    Ok(rate(len * u64::from(turns) * u64::from(UNROLL), time(ctx, effort, &program)?))
}

/// Microseconds a launch of a chain of them.
fn dispatch(ctx: Context, effort: Effort) -> Result<f64> {
    const LAUNCHES: usize = 64;
    let program = compile(ctx, |lower| {
        let [x, y] = ["x", "y"].map(|n| lower.pinned(n, &[4], DType::F32));
        for _ in 0..LAUNCHES / 2 {
            launch_copy(lower, x, y, 1)?;
            launch_copy(lower, y, x, 1)?;
        }
        Ok(vec![x, y])
    })?;
    Ok(time(ctx, effort, &program)?.min_ms * 1e3 / LAUNCHES as f64)
}
