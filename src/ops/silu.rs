//! SiLU: y = x * sigmoid(x) (Hendrycks and Gimpel, 2016; Elfwing et al., 2017).
//!
//! Backward keeps x: dx = dy * s * (1 + x * (1 - s)) with s = sigmoid(x).
//! After a norm it is fused into [`super::group_norm`].

use super::groups;
use super::pixels::share;
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Result, defines, named, params};

params! {
    struct Params { len: u32, turns: u32 }
}

defines! {
    struct Defines { vec: bool, backward: bool, acc: bool, half: bool }
    where |d| (d.vec || !d.half) && (d.backward || !d.acc)
}

static SILU: KernelOf<Params, Defines> = KernelOf::new(
    "silu",
    include_str!("../../shaders/silu.wgsl"),
    &[
        read("x").half("HALF"),
        read("dy").when("BACKWARD").half("HALF"),
        accumulate("y").half("HALF"),
    ],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![SILU.with_variants()]
}

#[derive(Debug)]
struct Silu;

/// y = x * sigmoid(x), any shape.
///
/// # Errors
/// None at present; the type matches the other ops.
pub fn silu(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let (shape, dtype) = (g.shape(x).to_vec(), g.dtype(x));
    Ok(g.add_node_as(Silu, &named![x], &[("y", &shape)], dtype)[0])
}

fn launch(lower: &mut Lower, x: TensorId, dy: Option<TensorId>, y: Target) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>();
    let quads = len.div_ceil(4);
    let turns = share(lower, quads, 1);
    let p = Params { len: len as u32, turns: turns as u32 };
    lower.launch(Launch {
        kernel: &SILU,
        defines: Defines {
            vec: len.is_multiple_of(4),
            backward: dy.is_some(),
            acc: y.add,
            half: lower.is_half(x),
        },
        params: p,
        bindings: &named![x, dy, y: y.tensor],
        groups: groups(quads.div_ceil(turns) as u64),
        flops: 8 * len as u64,
    })
}

impl Op for Silu {
    fn name(&self) -> &'static str {
        "silu"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        launch(lower, node.input("x")?, None, Target::assign(node.output("y")?))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        match lower.grad_target(node.input("x")?) {
            Some(dx) => launch(lower, node.input("x")?, Some(dy), dx),
            None => Ok(()),
        }
    }
}
