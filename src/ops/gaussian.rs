//! Standard normal noise: y ~ N(0, 1), the starting point x_T of a sampler.
//!
//! Drawn by Philox and Box-Muller as laid out in [`crate::rng`]: element e of
//! image i is lane e % 4 of the quad with
//!
//! ```text
//! counter = (e / 4, rng[3] + i, rng[2], stream),   key = (rng[0], rng[1]),
//! ```
//!
//! where e counts within the image in NHWC order. So an image's noise does not
//! depend on the batch it lies in.

use super::quads::{Quads, expect};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::{Error, Result, defines, named, params};

const OP: &str = "gaussian";

params! {
    struct Params { n: u32, len: u32, quads: u32, stream: u32 }
}

defines! {
    struct Defines { vec: bool }
}

static GAUSSIAN: KernelOf<Params, Defines> = KernelOf::new(
    "gaussian",
    include_str!("../../shaders/gaussian.wgsl"),
    &[read("rng"), write("y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![GAUSSIAN.with_variants()]
}

/// Extents of the random state that ops read: (seed low word, seed high word,
/// step, index of the batch's first image).
pub(super) const RNG: &[usize] = &[4];

#[derive(Debug)]
struct Gaussian {
    quads: Quads,
    stream: u32,
}

/// Noise of shape [n, h, w, c] from the random state `rng` (u32 `[4]`: seed low
/// word, seed high word, step, index of the first image) and one of the
/// `STREAM_*` numbers of [`crate::rng`].
///
/// # Errors
/// [`Error::Shape`] if `rng` is not u32 `[4]` or an extent is zero.
pub fn gaussian(g: &mut Graph, shape: [usize; 4], rng: TensorId, stream: u32) -> Result<TensorId> {
    expect(g, OP, "rng", rng, DType::U32, RNG)?;
    let quads = Quads::of(OP, &shape)?;
    Ok(g.add_node(Gaussian { quads, stream }, &named![rng], &[("y", &shape)])[0])
}

impl Op for Gaussian {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Quads { n, len, quads } = self.quads;
        let p = Params { n, len, quads, stream: self.stream };
        lower.launch(Launch {
            kernel: &GAUSSIAN,
            defines: Defines { vec: self.quads.vec() },
            params: p,
            bindings: &named![rng: node.input("rng")?, y: node.output("y")?],
            groups: self.quads.groups(),
            flops: 50 * self.quads.elements(),
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Err(no_gradient(OP))
    }
}

/// Asking for a gradient through `op` would silently lose it, so it is refused.
pub(super) fn no_gradient(op: &'static str) -> Error {
    Error::Config(format!("{op} passes no gradient on to its inputs"))
}
