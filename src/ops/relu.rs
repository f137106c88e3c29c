//! ReLU: y = max(x, 0), between the linear layers of a classifier's spatial
//! pool. Backward keeps x: dx = dy where x > 0, else 0.

use super::groups;
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, accumulate, read};
use crate::{Result, params};

params! {
    struct Params { len: u32 }
}

static RELU: Kernel = Kernel {
    name: "relu",
    source: include_str!("../../shaders/relu.wgsl"),
    bindings: &[read("x"), read("dy").when("BACKWARD"), accumulate("y")],
    params: Params::FIELDS,
    defines: &["VEC", "BACKWARD", "ACC"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let variants = [0, 1].map(|v| [vec![v, 0, 0], vec![v, 1, 0], vec![v, 1, 1]]);
    vec![(&RELU, variants.concat())]
}

#[derive(Debug)]
struct Relu;

/// y = max(x, 0), any shape.
///
/// # Errors
/// None at present; the type matches the other ops.
pub fn relu(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let shape = g.shape(x).to_vec();
    Ok(g.push(Relu, &[x], &[&shape])[0])
}

fn launch(lower: &mut Lower, x: TensorId, dy: Option<TensorId>, y: Target) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>();
    lower.launch(Launch {
        kernel: &RELU,
        defines: &[len.is_multiple_of(4).into(), dy.is_some().into(), y.add.into()],
        params: bytemuck::bytes_of(&Params { len: len as u32 }),
        bindings: &[Some(x), dy, Some(y.tensor)],
        groups: groups(len.div_ceil(4) as u64),
        flops: len as u64,
    })
}

impl Op for Relu {
    fn name(&self) -> &'static str {
        "relu"
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
