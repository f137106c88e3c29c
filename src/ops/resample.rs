//! Resampling by two without parameters: nearest-neighbour doubling and 2x2
//! averages, NHWC.
//!
//! ```text
//! up:    y[n, 2i+a, 2j+b, c] = x[n, i, j, c]            a, b = 0, 1
//! down:  y[n, i, j, c] = 1/4 * sum over a, b of x[n, 2i+a, 2j+b, c]
//! ```
//!
//! Each is the other's transpose up to the factor, so the two kernels serve
//! both directions: `spread` writes a pixel to four places, `gather` adds
//! four pixels. Backward keeps nothing.

use super::groups;
use super::pixels::PixelRuns;
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { rows: u32, w: u32, c: u32, quads: u32, pixels: u32, runs: u32, factor: f32 }
}

defines! {
    struct Defines {
        vec: bool,
        /// Writes a pixel to four places; without it four pixels are added.
        spread: bool,
        acc: bool,
        half: bool,
    }
    where |d| d.vec || !d.half
}

static RESAMPLE: KernelOf<Params, Defines> = KernelOf::new(
    "resample",
    include_str!("../../shaders/resample.wgsl"),
    &[read("x").half("HALF"), accumulate("y").half("HALF")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![RESAMPLE.with_variants()]
}

#[derive(Debug)]
struct Resample {
    up: bool,
}

/// Nearest-neighbour doubling: `x` [n, h, w, c] to [n, 2h, 2w, c].
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4.
pub fn upsample2(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let [n, h, w, c] = g.dims("upsample2", x)?;
    let dtype = g.dtype(x);
    Ok(g.add_node_as(Resample { up: true }, &named![x], &[("y", &[n, 2 * h, 2 * w, c])], dtype)[0])
}

/// 2x2 averages: `x` [n, h, w, c] to [n, h/2, w/2, c].
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4, or its height or width is odd.
pub fn downsample2(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let [n, h, w, c] = g.dims("downsample2", x)?;
    if !h.is_multiple_of(2) || !w.is_multiple_of(2) {
        let detail = format!("{h}x{w} pixels cannot be halved, both must be even");
        return Err(Error::shape("downsample2", detail));
    }
    let dtype = g.dtype(x);
    Ok(g.add_node_as(Resample { up: false }, &named![x], &[("y", &[n, h / 2, w / 2, c])], dtype)[0])
}

/// Spreads x over y (twice its height and width) or gathers x into y (half).
fn launch(lower: &mut Lower, x: TensorId, y: Target, spread: bool, factor: f32) -> Result<()> {
    let small = lower.shape(if spread { x } else { y.tensor });
    let [rows, w, c] = [small[0] * small[1], small[2], small[3]];
    let len = rows * w * c;
    let runs = PixelRuns::new(lower, rows, w, c.div_ceil(4));
    let p = Params {
        rows: rows as u32,
        w: w as u32,
        c: c as u32,
        quads: runs.quads as u32,
        pixels: runs.pixels as u32,
        runs: runs.runs as u32,
        factor,
    };
    lower.launch(Launch {
        kernel: &RESAMPLE,
        defines: Defines { vec: c.is_multiple_of(4), spread, acc: y.add, half: lower.is_half(x) },
        params: p,
        bindings: &named![x, y: y.tensor],
        groups: groups(runs.invocations as u64),
        flops: 4 * len as u64,
    })
}

impl Op for Resample {
    fn name(&self) -> &'static str {
        if self.up { "upsample2" } else { "downsample2" }
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let factor = if self.up { 1.0 } else { 0.25 };
        launch(lower, node.input("x")?, Target::assign(node.output("y")?), self.up, factor)
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let factor = if self.up { 1.0 } else { 0.25 };
        match lower.grad_target(node.input("x")?) {
            Some(dx) => launch(lower, dy, dx, !self.up, factor),
            None => Ok(()),
        }
    }
}
