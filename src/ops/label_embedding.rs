//! Label embedding: y[n] = table[labels[n]].
//!
//! Backward adds dy over the images of each class, gathered per element of
//! the table, so that it needs no atomics and is deterministic.

use super::groups;
use crate::graph::{FileLayout, Graph, Init, Launch, Lower, Node, Op, ParamInfo, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { n: u32, classes: u32, dim: u32 }
}

static FORWARD: KernelOf<Params, ()> = KernelOf::new(
    "label_embedding",
    include_str!("../../shaders/label_embedding.wgsl"),
    &[read("labels"), read("table"), write("y")],
);

defines! {
    struct BackwardDefines { acc: bool }
}

static BACKWARD: KernelOf<Params, BackwardDefines> = KernelOf::new(
    "label_embedding_backward",
    include_str!("../../shaders/label_embedding_backward.wgsl"),
    &[read("labels"), read("dy"), accumulate("dtable")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![FORWARD.with_variants(), BACKWARD.with_variants()]
}

#[derive(Debug)]
struct LabelEmbedding {
    params: Params,
}

/// Looks `labels` `[n]` (u32) up in a new parameter `weight` [classes, dim] of
/// the current scope.
///
/// # Errors
/// [`Error::Shape`] if labels are not of rank 1, or without classes.
pub fn label_embedding(
    g: &mut Graph,
    labels: TensorId,
    classes: usize,
    dim: usize,
) -> Result<TensorId> {
    let [n] = g.dims("label_embedding", labels)?;
    if classes == 0 {
        return Err(Error::shape("label_embedding", "there are no classes"));
    }
    let table = g.param(ParamInfo {
        name: "weight".into(),
        shape: vec![classes, dim],
        layout: FileLayout::Plain,
        init: Init::Normal,
    });
    let params = Params { n: n as u32, classes: classes as u32, dim: dim as u32 };
    let op = LabelEmbedding { params };
    Ok(g.add_node(op, &named![labels, table], &[("y", &[n, dim])])[0])
}

impl Op for LabelEmbedding {
    fn name(&self) -> &'static str {
        "label_embedding"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let len = u64::from(self.params.n) * u64::from(self.params.dim);
        lower.launch(Launch {
            kernel: &FORWARD,
            defines: (),
            params: self.params,
            bindings: &named![
                labels: node.input("labels")?,
                table: node.input("table")?,
                y: node.output("y")?,
            ],
            groups: groups(len),
            flops: 0,
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let Some(dtable) = lower.grad_target(node.input("table")?) else { return Ok(()) };
        let len = u64::from(self.params.classes) * u64::from(self.params.dim);
        lower.launch(Launch {
            kernel: &BACKWARD,
            defines: BackwardDefines { acc: dtable.add },
            params: self.params,
            bindings: &named![labels: node.input("labels")?, dy, dtable: dtable.tensor],
            groups: groups(len),
            flops: u64::from(self.params.n) * u64::from(self.params.dim),
        })
    }
}
