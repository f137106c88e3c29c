//! Inverted dropout (Srivastava et al. 2014): y = x * mask / (1 - p).
//!
//! The mask is no tensor: its bits are Philox words of (element, image, step,
//! node), so backward runs the same kernel on dy and draws them again, and an
//! image's mask does not depend on the batch it is in.

use super::quads::{Quads, expect};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::rng::dropout_stream;
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { n: u32, len: u32, quads: u32, stream: u32, probability: f32, scale: f32 }
}

defines! {
    struct Defines { vec: bool, acc: bool, half: bool }
    where |d| d.vec || !d.half
}

static KERNEL: KernelOf<Params, Defines> = KernelOf::new(
    "dropout",
    include_str!("../../shaders/dropout.wgsl"),
    &[read("x").half("HALF"), read("rng"), accumulate("y").half("HALF")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![KERNEL.with_variants()]
}

#[derive(Debug)]
struct Dropout {
    quads: Quads,
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
    let op = Dropout { quads: Quads::of("dropout", &shape)?, probability: p };
    Ok(g.add_node_as(op, &named![x, rng], &[("y", &shape)], dtype)[0])
}

impl Dropout {
    fn launch(&self, lower: &mut Lower, x: TensorId, rng: TensorId, y: Target) -> Result<()> {
        let b = self.quads;
        let p = Params {
            n: b.n,
            len: b.len,
            quads: b.quads,
            // Networks have far fewer nodes than 65,536.
            stream: dropout_stream(lower.node_index() as u16),
            probability: self.probability,
            scale: 1.0 / (1.0 - self.probability),
        };
        lower.launch(Launch {
            kernel: &KERNEL,
            defines: Defines { vec: b.vec(), acc: y.add, half: lower.is_half(x) },
            params: p,
            bindings: &named![x, rng, y: y.tensor],
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
        self.launch(lower, node.input("x")?, node.input("rng")?, Target::assign(node.output("y")?))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        match lower.grad_target(node.input("x")?) {
            Some(dx) => self.launch(lower, dy, node.input("rng")?, dx),
            None => Ok(()),
        }
    }
}
