//! SiLU: y = x * sigmoid(x) (Hendrycks and Gimpel, 2016; Elfwing et al., 2017).
//!
//! Backward keeps x: dx = dy * s * (1 + x * (1 - s)) with s = sigmoid(x).
//! After a norm it is fused into [`super::group_norm`].

use super::pixels::share;
use super::{VEC_HALF, groups};
use crate::Result;
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, accumulate, read};
use crate::params;

params! {
    struct Params { len: u32, turns: u32 }
}

static SILU: Kernel = Kernel {
    name: "silu",
    source: include_str!("../../shaders/silu.wgsl"),
    bindings: &[
        read("x").half("HALF"),
        read("dy").when("BACKWARD").half("HALF"),
        accumulate("y").half("HALF"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "BACKWARD", "ACC", "HALF"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let variants = VEC_HALF.map(|[v, h]| [vec![v, 0, 0, h], vec![v, 1, 0, h], vec![v, 1, 1, h]]);
    vec![(&SILU, variants.concat())]
}

#[derive(Debug)]
struct Silu;

/// y = x * sigmoid(x), any shape.
///
/// # Errors
/// None at present; the type matches the other ops.
pub fn silu(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let (shape, dtype) = (g.shape(x).to_vec(), g.dtype(x));
    Ok(g.push_as(Silu, &[x], &[&shape], dtype)[0])
}

fn launch(lower: &mut Lower, x: TensorId, dy: Option<TensorId>, y: Target) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>();
    let quads = len.div_ceil(4);
    let turns = share(lower, quads, 1);
    let p = Params { len: len as u32, turns: turns as u32 };
    lower.launch(Launch {
        kernel: &SILU,
        defines: &[len.is_multiple_of(4).into(), dy.is_some().into(), y.add.into(), lower.half(x)],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(x), dy, Some(y.tensor)],
        groups: groups(quads.div_ceil(turns) as u64),
        flops: 8 * len as u64,
    })
}

impl Op for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        launch(lower, node.inputs[0], None, Target::assign(node.outputs[0]))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        match lower.grad_target(node.inputs[0]) {
            Some(dx) => launch(lower, node.inputs[0], Some(dy), dx),
            None => Ok(()),
        }
    }
}
