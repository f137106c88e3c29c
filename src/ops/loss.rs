//! The squared error that training minimises: y[n] = mean of (pred - target)^2
//! over image n.
//!
//! The network may predict more channels than the target has (a learned
//! variance); the mean runs over the target's, the first ones. Training begins
//! the backward walk at the per-image losses, with their weights as dy.
//!
//! Backward keeps pred and target. With e the elements of a target image:
//!     dpred   = dy[n] * 2 (pred - target) / e, zero in the further channels,
//!     dtarget = -dpred in the target's channels.

use super::blocks::{Blocks, expect};
use super::sum_rows;
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Result, params};

params! {
    struct Params {
        n: u32, len: u32, blocks: u32, splits: u32, blocks_per_split: u32, c: u32, wide: u32, scale: f32,
    }
}

params! {
    struct BackwardParams {
        n: u32, len: u32, blocks: u32, c: u32, wide: u32, channels: u32, factor: f32,
    }
}

static MSE: Kernel = Kernel {
    name: "mse",
    source: include_str!("../../shaders/mse.wgsl"),
    bindings: &[read("pred"), read("goal"), write("partial")],
    params: Params::FIELDS,
    defines: &["VEC", "WIDE", "SUBGROUP"],
};

static MSE_BACKWARD: Kernel = Kernel {
    name: "mse_backward",
    source: include_str!("../../shaders/mse_backward.wgsl"),
    bindings: &[read("pred"), read("goal"), read("dy"), accumulate("d")],
    params: BackwardParams::FIELDS,
    defines: &["VEC", "ACC"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let flags = |n| (0..1i64 << n).map(|bits| (0..n).map(|i| bits >> i & 1).collect()).collect();
    vec![(&MSE, flags(3)), (&MSE_BACKWARD, flags(2))]
}

/// Blocks of four elements per workgroup: an image of 64 x 64 x 3 takes one.
const BLOCKS_PER_SPLIT: u32 = 4096;

#[derive(Debug)]
struct Mse {
    /// Division of the target.
    blocks: Blocks,
    c: u32,
    wide: u32,
}

/// Mean squared error of each image: `pred` [n, h, w, cp] against `target`
/// [n, h, w, c], c <= cp, over the first c channels. Returns `[n]`.
///
/// # Errors
/// [`crate::Error::Shape`] if the two do not fit.
pub fn mse(g: &mut Graph, pred: TensorId, target: TensorId) -> Result<TensorId> {
    let [n, h, w, wide] = g.dims("mse", pred)?;
    let [.., c] = g.dims::<4>("mse", target)?;
    expect(g, "mse", "target", target, DType::F32, &[n, h, w, c.min(wide)])?;
    let blocks = Blocks::of("mse", &[n, h, w, c])?;
    let op = Mse { blocks, c: c as u32, wide: wide as u32 };
    Ok(g.push(op, &[pred, target], &[&[n]])[0])
}

impl Mse {
    /// Puts the gradient of an operand with `channels` channels into `d`;
    /// `sign` is -1 for the target.
    fn launch_backward(
        &self,
        lower: &mut Lower,
        node: &Node,
        dy: TensorId,
        (channels, sign): (u32, f32),
        d: Target,
    ) -> Result<()> {
        let Mse { c, wide, .. } = *self;
        let shape = lower.shape(d.tensor).to_vec();
        let blocks = Blocks::of("mse", &shape)?;
        let p = BackwardParams {
            n: blocks.n,
            len: blocks.len,
            blocks: blocks.blocks,
            c,
            wide,
            channels,
            factor: sign * 2.0 / self.blocks.len as f32,
        };
        lower.launch(Launch {
            kernel: &MSE_BACKWARD,
            defines: &[(blocks.vec() && wide == c).into(), d.add.into()],
            params: bytemuck::bytes_of(&p),
            bindings: &[Some(node.inputs[0]), Some(node.inputs[1]), Some(dy), Some(d.tensor)],
            groups: blocks.groups(),
            flops: 3 * blocks.elements(),
        })
    }
}

impl Op for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Mse { blocks: Blocks { n, len, blocks }, c, wide } = *self;
        let splits = blocks.div_ceil(BLOCKS_PER_SPLIT);
        let p = Params {
            n,
            len,
            blocks,
            splits,
            blocks_per_split: blocks.div_ceil(splits),
            c,
            wide,
            scale: 1.0 / len as f32,
        };
        let y = node.outputs[0];
        let [rows, columns] = [n as usize, splits as usize];
        let partial = if splits == 1 { y } else { lower.temp("partial", &[rows, columns]) };
        lower.launch(Launch {
            kernel: &MSE,
            defines: &[self.blocks.vec(), wide != c, lower.caps.subgroups].map(i64::from),
            params: bytemuck::bytes_of(&p),
            bindings: &[Some(node.inputs[0]), Some(node.inputs[1]), Some(partial)],
            groups: u64::from(n) * u64::from(splits),
            flops: 3 * self.blocks.elements(),
        })?;
        match splits {
            1 => Ok(()),
            _ => sum_rows(lower, partial, [rows, columns, 1], Target::assign(y)),
        }
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        if let Some(dpred) = lower.grad_target(node.inputs[0]) {
            self.launch_backward(lower, node, dy, (self.wide, 1.0), dpred)?;
        }
        match lower.grad_target(node.inputs[1]) {
            Some(dtarget) => self.launch_backward(lower, node, dy, (self.c, -1.0), dtarget),
            None => Ok(()),
        }
    }
}
