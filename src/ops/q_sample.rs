//! Forward diffusion to each image's own timestep (Ho et al. 2020, eq. 4):
//!
//! ```text
//! x_t[i] = coefs[i, 0] * x0[i] + coefs[i, 1] * noise[i],
//! coefs[i] = (sqrt(abar_t), sqrt(1 - abar_t)).
//! ```
//!
//! [`q_sample`] draws the noise in the kernel, as [`super::gaussian`] does, on
//! [`STREAM_NOISE_TRAIN`], and hands it out as the training target;
//! [`q_sample_with`] is given it. Neither has a gradient: the image and the
//! noise are data.

use super::blocks::{Blocks, expect};
use super::gaussian::{RNG, no_gradient};
use crate::Result;
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, read, write};
use crate::params;
use crate::rng::STREAM_NOISE_TRAIN;

const OP: &str = "q_sample";

params! {
    struct Params { n: u32, len: u32, blocks: u32, stream: u32 }
}

static Q_SAMPLE: Kernel = Kernel {
    name: "q_sample",
    source: include_str!("../../shaders/q_sample.wgsl"),
    bindings: &[
        read("x0"),
        read("coefs"),
        read("rng").when("DRAWN"),
        read("given").when("GIVEN"),
        write("noise").when("DRAWN"),
        write("x_t"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "DRAWN", "GIVEN"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![(&Q_SAMPLE, vec![vec![1, 1, 0], vec![0, 1, 0], vec![1, 0, 1], vec![0, 0, 1]])]
}

#[derive(Debug)]
struct QSample {
    blocks: Blocks,
    given: bool,
}

fn checked(g: &Graph, x0: TensorId, coefs: TensorId) -> Result<[usize; 4]> {
    let shape = g.dims(OP, x0)?;
    expect(g, OP, "x0", x0, DType::F32, &shape)?;
    expect(g, OP, "coefs", coefs, DType::F32, &[shape[0], 2])?;
    Ok(shape)
}

/// Noises `x0` [n, h, w, c] with `coefs` [n, 2] = (sqrt(abar), sqrt(1 - abar))
/// and fresh noise from the random state `rng` (u32 `[4]`: seed low word, seed
/// high word, step, index of the first image). Returns (x_t, noise).
///
/// # Errors
/// [`crate::Error::Shape`] if an operand does not fit.
pub fn q_sample(
    g: &mut Graph,
    x0: TensorId,
    coefs: TensorId,
    rng: TensorId,
) -> Result<(TensorId, TensorId)> {
    let shape = checked(g, x0, coefs)?;
    expect(g, OP, "rng", rng, DType::U32, RNG)?;
    let op = QSample { blocks: Blocks::of(OP, &shape)?, given: false };
    let out = g.push(op, &[x0, coefs, rng], &[&shape, &shape]);
    Ok((out[0], out[1]))
}

/// As [`q_sample`], with the `noise` [n, h, w, c] given; returns x_t.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand does not fit.
pub fn q_sample_with(
    g: &mut Graph,
    x0: TensorId,
    coefs: TensorId,
    noise: TensorId,
) -> Result<TensorId> {
    let shape = checked(g, x0, coefs)?;
    expect(g, OP, "noise", noise, DType::F32, &shape)?;
    let op = QSample { blocks: Blocks::of(OP, &shape)?, given: true };
    Ok(g.push(op, &[x0, coefs, noise], &[&shape])[0])
}

impl Op for QSample {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Blocks { n, len, blocks } = self.blocks;
        let p = Params { n, len, blocks, stream: STREAM_NOISE_TRAIN };
        let third = Some(node.inputs[2]);
        let (rng, given) = if self.given { (None, third) } else { (third, None) };
        lower.launch(Launch {
            kernel: &Q_SAMPLE,
            defines: &[self.blocks.vec().into(), (!self.given).into(), self.given.into()],
            params: bytemuck::bytes_of(&p),
            bindings: &[
                Some(node.inputs[0]),
                Some(node.inputs[1]),
                rng,
                given,
                node.outputs.get(1).copied(),
                Some(node.outputs[0]),
            ],
            groups: self.blocks.groups(),
            flops: if self.given { 3 } else { 53 } * self.blocks.elements(),
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Err(no_gradient(OP))
    }
}
