//! Residual add: y = a + b.
//!
//! Backward hands dy to both operands: without a copy where the operand has
//! no other gradient yet, otherwise added to what is there.

use super::groups;
use crate::graph::{Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { len: u32 }
}

defines! {
    struct Defines {
        /// Adds two operands; without it the first one is copied or added to the result.
        b: bool,
        acc: bool,
        half: bool,
    }
    where |d| !(d.b && d.acc)
}

static ADD: KernelOf<Params, Defines> = KernelOf::new(
    "add",
    include_str!("../../shaders/add.wgsl"),
    &[read("a").half("HALF"), read("b").when("B").half("HALF"), accumulate("y").half("HALF")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![ADD.with_variants()]
}

#[derive(Debug)]
struct Add;

/// y = a + b for tensors of one shape and element type.
///
/// # Errors
/// [`Error::Shape`] if the shapes or types differ.
pub fn add(g: &mut Graph, a: TensorId, b: TensorId) -> Result<TensorId> {
    let (sa, sb) = (g.shape(a).to_vec(), g.shape(b));
    if sa != sb {
        return Err(Error::shape("add", format!("{sa:?} and {sb:?} differ")));
    }
    let dtype = g.same_dtype("add", a, b)?;
    Ok(g.add_node_as(Add, &named![a, b], &[("y", &sa)], dtype)[0])
}

impl Op for Add {
    fn name(&self) -> &'static str {
        "add"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        launch(lower, node.input("a")?, Some(node.input("b")?), Target::assign(node.output("y")?))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        add_grad(lower, node.input("b")?, dy)?;
        give_grad(lower, node.input("a")?, dy)
    }
}

fn launch(lower: &mut Lower, a: TensorId, b: Option<TensorId>, y: Target) -> Result<()> {
    let len = lower.shape(a).iter().product::<usize>();
    lower.launch(Launch {
        kernel: &ADD,
        defines: Defines { b: b.is_some(), acc: y.add, half: lower.is_half(y.tensor) },
        params: Params { len: len as u32 },
        bindings: &named![a, b, y: y.tensor],
        groups: groups((len as u64).div_ceil(4)),
        flops: len as u64,
    })
}

/// Copies or adds `dy` to the gradient of `id`.
pub(crate) fn add_grad(lower: &mut Lower, id: TensorId, dy: TensorId) -> Result<()> {
    match lower.grad_target(id) {
        Some(dx) => launch(lower, dy, None, dx),
        None => Ok(()),
    }
}

/// As [`add_grad`], but gives the tensor away where that is possible; must be
/// the last use of `dy` by its node.
pub(crate) fn give_grad(lower: &mut Lower, id: TensorId, dy: TensorId) -> Result<()> {
    if lower.donate_grad(id, dy) { Ok(()) } else { add_grad(lower, id, dy) }
}
