//! Sinusoidal timestep embedding (Ho et al. 2020, in guided-diffusion's order):
//!
//! y[n] = [cos(t f_0), ..., cos(t f_{half-1}), sin(t f_0), ...],
//! f_i = 10000^(-i/half), half = dim/2; an odd dim gets a last zero.
//!
//! t may be fractional, from 0 to below 8192. It is data, not a variable of
//! the loss: nothing flows back.

use super::groups;
use crate::graph::{Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::{Error, Result, named, params};

/// Powers of q = 10000^(-1/half): q^(2^k) for the bits of i.
const POWERS: usize = 12;

params! {
    struct Params {
        n: u32, dim: u32,
        q0: u32, q1: u32, q2: u32, q3: u32, q4: u32, q5: u32,
        q6: u32, q7: u32, q8: u32, q9: u32, q10: u32, q11: u32,
    }
}

static KERNEL: KernelOf<Params, ()> = KernelOf::new(
    "timestep_embedding",
    include_str!("../../shaders/timestep_embedding.wgsl"),
    &[read("t"), write("y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![KERNEL.with_variants()]
}

#[derive(Debug)]
struct TimestepEmbedding {
    params: Params,
}

/// Embeds `t` `[n]` into [n, dim].
///
/// # Errors
/// [`Error::Shape`] if t is not of rank 1 or dim is not in 2..=8192.
pub fn timestep_embedding(g: &mut Graph, t: TensorId, dim: usize) -> Result<TensorId> {
    let [n] = g.dims("timestep_embedding", t)?;
    if !(2..=2 << POWERS).contains(&dim) {
        return Err(Error::shape(
            "timestep_embedding",
            format!("a width of {dim} is not in 2..=8192"),
        ));
    }
    let half = (dim / 2) as f64;
    // q^(2^k) in units of 2^-32; all are below 1.
    let q = |k: i32| (10_000f64.powf(-2f64.powi(k) / half) * 2f64.powi(32)).round() as u32;
    let params = Params {
        n: n as u32,
        dim: dim as u32,
        q0: q(0),
        q1: q(1),
        q2: q(2),
        q3: q(3),
        q4: q(4),
        q5: q(5),
        q6: q(6),
        q7: q(7),
        q8: q(8),
        q9: q(9),
        q10: q(10),
        q11: q(11),
    };
    Ok(g.add_node(TimestepEmbedding { params }, &named![t], &[("y", &[n, dim])])[0])
}

impl Op for TimestepEmbedding {
    fn name(&self) -> &'static str {
        "timestep_embedding"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let len = u64::from(self.params.n) * u64::from(self.params.dim);
        lower.launch(Launch {
            kernel: &KERNEL,
            defines: (),
            params: self.params,
            bindings: &named![t: node.input("t")?, y: node.output("y")?],
            groups: groups(len),
            flops: 4 * len,
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Ok(())
    }
}
