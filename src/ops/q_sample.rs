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

use super::gaussian::{RNG, no_gradient};
use super::quads::{Quads, expect};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::rng::STREAM_NOISE_TRAIN;
use crate::{Result, defines, named, params};

const OP: &str = "q_sample";

params! {
    struct Params { n: u32, len: u32, quads: u32, stream: u32 }
}

defines! {
    struct Defines {
        vec: bool,
        /// The noise is drawn, and handed out.
        drawn: bool,
        /// The noise is an operand.
        given: bool,
    }
    where |d| d.drawn != d.given
}

static Q_SAMPLE: KernelOf<Params, Defines> = KernelOf::new(
    "q_sample",
    include_str!("../../shaders/q_sample.wgsl"),
    &[
        read("x0"),
        read("coefs"),
        read("rng").when("DRAWN"),
        read("given").when("GIVEN"),
        write("noise").when("DRAWN"),
        write("x_t"),
    ],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![Q_SAMPLE.with_variants()]
}

#[derive(Debug)]
struct QSample {
    quads: Quads,
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
    let op = QSample { quads: Quads::of(OP, &shape)?, given: false };
    let out = g.add_node(op, &named![x0, coefs, rng], &[("x_t", &shape), ("noise", &shape)]);
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
    let op = QSample { quads: Quads::of(OP, &shape)?, given: true };
    Ok(g.add_node(op, &named![x0, coefs, given: noise], &[("x_t", &shape)])[0])
}

impl Op for QSample {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Quads { n, len, quads } = self.quads;
        let p = Params { n, len, quads, stream: STREAM_NOISE_TRAIN };
        lower.launch(Launch {
            kernel: &Q_SAMPLE,
            defines: Defines { vec: self.quads.vec(), drawn: !self.given, given: self.given },
            params: p,
            bindings: &named![
                x0: node.input("x0")?,
                coefs: node.input("coefs")?,
                rng: node.optional_input("rng"),
                given: node.optional_input("given"),
                noise: node.optional_output("noise"),
                x_t: node.output("x_t")?,
            ],
            groups: self.quads.groups(),
            flops: if self.given { 3 } else { 53 } * self.quads.elements(),
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Err(no_gradient(OP))
    }
}
