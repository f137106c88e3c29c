//! Cross-entropy of class scores, and whether they find the class:
//!
//! ```text
//! loss[n] = log(sum over i of exp(logits[n, i])) - logits[n, labels[n]]
//!         = -log p(labels[n] | n),
//! top1[n], top5[n] = 1 if no, or fewer than five, logits of n exceed the label's, else 0.
//! ```
//!
//! Backward keeps the logits and the loss, from which the softmax follows:
//!     dlogits[n, i] = dy[n] * (exp(logits[n, i] - logits[n, label] - loss[n]) - [i = label]).
//! The accuracies have no gradient.
//!
//! Seeded with dy = -scale instead of loss weights, the same backward walk gives
//! a classifier's guidance, the gradient of scale * log p(y | x) (Dhariwal and
//! Nichol 2021, section 4).

use super::quads::expect;
use super::{LOOP_TURNS, groups};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Error, Result, defines, named, params};

const OP: &str = "cross_entropy";

params! {
    struct Params { n: u32, k: u32 }
}

defines! {
    struct Defines { subgroup: bool }
}

static FORWARD: KernelOf<Params, Defines> = KernelOf::new(
    "cross_entropy",
    include_str!("../../shaders/cross_entropy.wgsl"),
    &[read("logits"), read("labels"), write("loss"), write("top1"), write("top5")],
);

defines! {
    struct BackwardDefines { acc: bool }
}

static BACKWARD: KernelOf<Params, BackwardDefines> = KernelOf::new(
    "cross_entropy_backward",
    include_str!("../../shaders/cross_entropy_backward.wgsl"),
    &[read("logits"), read("labels"), read("loss"), read("dy"), accumulate("dlogits")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![FORWARD.with_variants(), BACKWARD.with_variants()]
}

/// What [`cross_entropy`] returns, each `[n]`.
#[derive(Debug, Clone, Copy)]
pub struct CrossEntropy {
    /// -log p(label).
    pub loss: TensorId,
    /// 1 where the label has the highest score, else 0.
    pub top1: TensorId,
    /// 1 where it is among the five highest, else 0.
    pub top5: TensorId,
}

#[derive(Debug)]
struct CrossEntropyOp {
    params: Params,
}

/// Cross-entropy of `logits` [n, k] against `labels` `[n]` (u32, below k).
///
/// # Errors
/// [`Error::Shape`] if the two do not fit.
pub fn cross_entropy(g: &mut Graph, logits: TensorId, labels: TensorId) -> Result<CrossEntropy> {
    let [n, k] = g.dims(OP, logits)?;
    expect(g, OP, "logits", logits, DType::F32, &[n, k])?;
    expect(g, OP, "labels", labels, DType::U32, &[n])?;
    if n == 0 || k == 0 || k as u64 > LOOP_TURNS {
        return Err(Error::shape(OP, format!("{n} rows of {k} classes")));
    }
    let op = CrossEntropyOp { params: Params { n: n as u32, k: k as u32 } };
    let out =
        g.add_node(op, &named![logits, labels], &[("loss", &[n]), ("top1", &[n]), ("top5", &[n])]);
    Ok(CrossEntropy { loss: out[0], top1: out[1], top5: out[2] })
}

impl Op for CrossEntropyOp {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Params { n, k } = self.params;
        lower.launch(Launch {
            kernel: &FORWARD,
            defines: Defines { subgroup: lower.caps.subgroups },
            params: self.params,
            bindings: &named![
                logits: node.input("logits")?,
                labels: node.input("labels")?,
                loss: node.output("loss")?,
                top1: node.output("top1")?,
                top5: node.output("top5")?,
            ],
            groups: n.into(),
            flops: 4 * u64::from(n) * u64::from(k),
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("loss")?) else { return Ok(()) };
        let Some(dlogits) = lower.grad_target(node.input("logits")?) else { return Ok(()) };
        let elements = u64::from(self.params.n) * u64::from(self.params.k);
        lower.launch(Launch {
            kernel: &BACKWARD,
            defines: BackwardDefines { acc: dlogits.add },
            params: self.params,
            bindings: &named![
                logits: node.input("logits")?,
                labels: node.input("labels")?,
                loss: node.output("loss")?,
                dy,
                dlogits: dlogits.tensor,
            ],
            groups: groups(elements),
            flops: 4 * elements,
        })
    }
}
