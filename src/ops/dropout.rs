//! Inverted dropout (Srivastava et al. 2014): y = x * mask / (1 - p).
//!
//! The mask is no tensor: its bits are Philox words of (element, image, step,
//! node), so backward runs the same kernel on dy and draws them again, and an
//! image's mask does not depend on the batch it is in.

use super::VEC_HALF;
use super::blocks::{Blocks, expect};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, accumulate, read};
use crate::rng::dropout_stream;
use crate::{Error, Result, params};

params! {
    struct Params { n: u32, len: u32, blocks: u32, stream: u32, probability: f32, scale: f32 }
}

static KERNEL: Kernel = Kernel {
    name: "dropout",
    source: include_str!("../../shaders/dropout.wgsl"),
    bindings: &[read("x").half("HALF"), read("rng"), accumulate("y").half("HALF")],
    params: Params::FIELDS,
    defines: &["VEC", "ACC", "HALF"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let variants = VEC_HALF.map(|[vec, half]| [vec![vec, 0, half], vec![vec, 1, half]]);
    vec![(&KERNEL, variants.concat())]
}

#[derive(Debug)]
struct Dropout {
    blocks: Blocks,
    probability: f32,
}

/// Drops elements of `x` [n, ..] with probability `p`. `rng` is the random
/// state `[4]` (u32): seed low, seed high, step, number of the first image. With
/// p = 0 this is x itself.
///
/// # Errors
/// [`Error::Config`] for a probability outside [0, 1), [`Error::Shape`] for
/// operands that do not fit.
pub fn dropout(g: &mut Graph, x: TensorId, p: f32, rng: TensorId) -> Result<TensorId> {
    if !(0.0..1.0).contains(&p) {
        return Err(Error::Config(format!("dropout: probability {p} is not in [0, 1)")));
    }
    if p == 0.0 {
        return Ok(x);
    }
    expect(g, "dropout", "rng", rng, DType::U32, &[4])?;
    let (shape, dtype) = (g.shape(x).to_vec(), g.dtype(x));
    let blocks = Blocks::of("dropout", &shape)?;
    Ok(g.push_as(Dropout { blocks, probability: p }, &[x, rng], &[&shape], dtype)[0])
}

impl Dropout {
    fn launch(&self, lower: &mut Lower, x: TensorId, rng: TensorId, y: Target) -> Result<()> {
        let b = self.blocks;
        let p = Params {
            n: b.n,
            len: b.len,
            blocks: b.blocks,
            // Networks have far fewer nodes than 65,536.
            stream: dropout_stream(lower.node_index() as u16),
            probability: self.probability,
            scale: 1.0 / (1.0 - self.probability),
        };
        lower.launch(Launch {
            kernel: &KERNEL,
            defines: &[b.vec().into(), y.add.into(), lower.half(x)],
            params: bytemuck::bytes_of(&p),
            bindings: &[Some(x), Some(rng), Some(y.tensor)],
            groups: b.groups(),
            flops: b.elements(),
        })
    }
}

impl Op for Dropout {
    fn name(&self) -> &'static str {
        "dropout"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        self.launch(lower, node.inputs[0], node.inputs[1], Target::assign(node.outputs[0]))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        match lower.grad_target(node.inputs[0]) {
            Some(dx) => self.launch(lower, dy, node.inputs[1], dx),
            None => Ok(()),
        }
    }
}
