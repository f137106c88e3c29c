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

use super::pixels::Blocks;
use super::{VEC_HALF, groups};
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, accumulate, read};
use crate::{Error, Result, params};

params! {
    struct Params { rows: u32, w: u32, c: u32, quads: u32, pixels: u32, blocks: u32, factor: f32 }
}

static RESAMPLE: Kernel = Kernel {
    name: "resample",
    source: include_str!("../../shaders/resample.wgsl"),
    bindings: &[read("x").half("HALF"), accumulate("y").half("HALF")],
    params: Params::FIELDS,
    defines: &["VEC", "SPREAD", "ACC", "HALF"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let of = |[vec, half]: [i64; 2]| (0..4).map(move |b| vec![vec, b & 1, b >> 1, half]);
    vec![(&RESAMPLE, VEC_HALF.into_iter().flat_map(of).collect())]
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
    Ok(g.push_as(Resample { up: true }, &[x], &[&[n, 2 * h, 2 * w, c]], dtype)[0])
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
    Ok(g.push_as(Resample { up: false }, &[x], &[&[n, h / 2, w / 2, c]], dtype)[0])
}

/// Spreads x over y (twice its height and width) or gathers x into y (half).
fn launch(lower: &mut Lower, x: TensorId, y: Target, spread: bool, factor: f32) -> Result<()> {
    let small = lower.shape(if spread { x } else { y.tensor });
    let [rows, w, c] = [small[0] * small[1], small[2], small[3]];
    let len = rows * w * c;
    let b = Blocks::new(lower, rows, w, c.div_ceil(4));
    let p = Params {
        rows: rows as u32,
        w: w as u32,
        c: c as u32,
        quads: b.quads as u32,
        pixels: b.pixels as u32,
        blocks: b.blocks as u32,
        factor,
    };
    lower.launch(Launch {
        kernel: &RESAMPLE,
        defines: &[c.is_multiple_of(4).into(), spread.into(), y.add.into(), lower.half(x)],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(x), Some(y.tensor)],
        groups: groups(b.invocations as u64),
        flops: 4 * len as u64,
    })
}

impl Op for Resample {
    fn name(&self) -> &'static str {
        if self.up { "upsample2" } else { "downsample2" }
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let factor = if self.up { 1.0 } else { 0.25 };
        launch(lower, node.inputs[0], Target::assign(node.outputs[0]), self.up, factor)
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        let factor = if self.up { 1.0 } else { 0.25 };
        match lower.grad_target(node.inputs[0]) {
            Some(dx) => launch(lower, dy, dx, !self.up, factor),
            None => Ok(()),
        }
    }
}
