//! A batch several times over, as classifier-free guidance needs it to run the
//! network with and without classes at once:
//!
//! ```text
//! y[k * n + i] = x[i]  for k = 0, 1, .., times - 1.
//! ```
//!
//! Backward adds the copies' gradients: dx[i] = sum over k of dy[k * n + i].

use super::quads::expect;
use super::{LOOP_TURNS, groups, sum_rows};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::{Error, Result, named, params};

const OP: &str = "repeat_batch";

params! {
    struct Params { len: u32, times: u32 }
}

static REPEAT: KernelOf<Params, ()> =
    KernelOf::new("repeat", include_str!("../../shaders/repeat.wgsl"), &[read("x"), write("y")]);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![REPEAT.with_variants()]
}

#[derive(Debug)]
struct Repeat {
    params: Params,
}

/// `x` [n, ..] repeated along the batch: [times * n, ..].
///
/// # Errors
/// [`Error::Shape`] for a tensor without elements, of integers, or `times`
/// that is 0 or beyond any use.
pub fn repeat_batch(g: &mut Graph, x: TensorId, times: usize) -> Result<TensorId> {
    let mut shape = g.shape(x).to_vec();
    expect(g, OP, "x", x, DType::F32, &shape)?;
    let len: usize = shape.iter().product();
    // Each element's invocation writes four times as many.
    if shape.is_empty() || len == 0 || times == 0 || times as u64 > LOOP_TURNS / 4 {
        return Err(Error::shape(OP, format!("{shape:?} repeated {times} times")));
    }
    shape[0] *= times;
    let op = Repeat { params: Params { len: len as u32, times: times as u32 } };
    Ok(g.add_node(op, &named![x], &[("y", &shape)])[0])
}

impl Op for Repeat {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        lower.launch(Launch {
            kernel: &REPEAT,
            defines: (),
            params: self.params,
            bindings: &named![x: node.input("x")?, y: node.output("y")?],
            groups: groups(u64::from(self.params.len).div_ceil(4)),
            flops: 0,
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let Some(dx) = lower.grad_target(node.input("x")?) else { return Ok(()) };
        let Params { len, times } = self.params;
        sum_rows(lower, dy, [1, times as usize, len as usize], dx)
    }
}
