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

use super::quads::{Quads, expect};
use super::sum_rows;
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Result, defines, named, params};

params! {
    struct Params {
        n: u32, len: u32, quads: u32, splits: u32, quads_per_split: u32, c: u32, wide: u32,
        scale: f32,
    }
}

params! {
    struct BackwardParams {
        n: u32, len: u32, quads: u32, c: u32, wide: u32, channels: u32, factor: f32,
    }
}

defines! {
    struct Defines {
        vec: bool,
        /// The prediction has more channels than the target.
        wide: bool,
        subgroup: bool,
    }
}

static MSE: KernelOf<Params, Defines> = KernelOf::new(
    "mse",
    include_str!("../../shaders/mse.wgsl"),
    &[read("pred"), read("goal"), write("partial")],
);

defines! {
    struct BackwardDefines { vec: bool, acc: bool }
}

static MSE_BACKWARD: KernelOf<BackwardParams, BackwardDefines> = KernelOf::new(
    "mse_backward",
    include_str!("../../shaders/mse_backward.wgsl"),
    &[read("pred"), read("goal"), read("dy"), accumulate("d")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![MSE.with_variants(), MSE_BACKWARD.with_variants()]
}

/// Quads per workgroup: an image of 64 x 64 x 3 takes one.
const QUADS_PER_SPLIT: u32 = 4096;

#[derive(Debug)]
struct Mse {
    /// Division of the target.
    quads: Quads,
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
    let quads = Quads::of("mse", &[n, h, w, c])?;
    let op = Mse { quads, c: c as u32, wide: wide as u32 };
    Ok(g.add_node(op, &named![pred, target], &[("y", &[n])])[0])
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
        let quads = Quads::of("mse", &shape)?;
        let p = BackwardParams {
            n: quads.n,
            len: quads.len,
            quads: quads.quads,
            c,
            wide,
            channels,
            factor: sign * 2.0 / self.quads.len as f32,
        };
        lower.launch(Launch {
            kernel: &MSE_BACKWARD,
            defines: BackwardDefines { vec: quads.vec() && wide == c, acc: d.add },
            params: p,
            bindings: &named![
                pred: node.input("pred")?,
                goal: node.input("target")?,
                dy,
                d: d.tensor,
            ],
            groups: quads.groups(),
            flops: 3 * quads.elements(),
        })
    }
}

impl Op for Mse {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Mse { quads: Quads { n, len, quads }, c, wide } = *self;
        let splits = quads.div_ceil(QUADS_PER_SPLIT);
        let p = Params {
            n,
            len,
            quads,
            splits,
            quads_per_split: quads.div_ceil(splits),
            c,
            wide,
            scale: 1.0 / len as f32,
        };
        let y = node.output("y")?;
        let [rows, columns] = [n as usize, splits as usize];
        let partial = if splits == 1 { y } else { lower.temp("partial", &[rows, columns]) };
        lower.launch(Launch {
            kernel: &MSE,
            defines: Defines {
                vec: self.quads.vec(),
                wide: wide != c,
                subgroup: lower.caps.subgroups,
            },
            params: p,
            bindings: &named![pred: node.input("pred")?, goal: node.input("target")?, partial],
            groups: u64::from(n) * u64::from(splits),
            flops: 3 * self.quads.elements(),
        })?;
        match splits {
            1 => Ok(()),
            _ => sum_rows(lower, partial, [rows, columns, 1], Target::assign(y)),
        }
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        if let Some(dpred) = lower.grad_target(node.input("pred")?) {
            self.launch_backward(lower, node, dy, (self.wide, 1.0), dpred)?;
        }
        match lower.grad_target(node.input("target")?) {
            Some(dtarget) => self.launch_backward(lower, node, dy, (self.c, -1.0), dtarget),
            None => Ok(()),
        }
    }
}
