//! ReLU: y = max(x, 0), between the linear layers of a classifier's spatial
//! pool. Backward keeps x: dx = dy where x > 0, else 0.

use super::groups;
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Result, defines, named, params};

params! {
    struct Params { len: u32 }
}

defines! {
    struct Defines { vec: bool, backward: bool, acc: bool }
    where |d| d.backward || !d.acc
}

static RELU: KernelOf<Params, Defines> = KernelOf::new(
    "relu",
    include_str!("../../shaders/relu.wgsl"),
    &[read("x"), read("dy").when("BACKWARD"), accumulate("y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![RELU.with_variants()]
}

#[derive(Debug)]
struct Relu;

/// y = max(x, 0), any shape.
///
/// # Errors
/// None at present; the type matches the other ops.
pub fn relu(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let shape = g.shape(x).to_vec();
    Ok(g.add_node(Relu, &named![x], &[("y", &shape)])[0])
}

fn launch(lower: &mut Lower, x: TensorId, dy: Option<TensorId>, y: Target) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>();
    lower.launch(Launch {
        kernel: &RELU,
        defines: Defines { vec: len.is_multiple_of(4), backward: dy.is_some(), acc: y.add },
        params: Params { len: len as u32 },
        bindings: &named![x, dy, y: y.tensor],
        groups: groups(len.div_ceil(4) as u64),
        flops: len as u64,
    })
}

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
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
