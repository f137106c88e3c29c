//! Label embedding: y[n] = table[labels[n]].
//!
//! Backward adds dy over the images of each class, gathered per element of
//! the table, so that it needs no atomics and is deterministic.

use super::groups;
use crate::graph::{FileLayout, Graph, Init, Launch, Lower, Node, Op, ParamInfo, TensorId};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Error, Result, params};

params! {
    struct Params { n: u32, classes: u32, dim: u32 }
}

static FORWARD: Kernel = Kernel {
    name: "label_embedding",
    source: include_str!("../../shaders/label_embedding.wgsl"),
    bindings: &[read("labels"), read("table"), write("y")],
    params: Params::FIELDS,
    defines: &[],
};

static BACKWARD: Kernel = Kernel {
    name: "label_embedding_backward",
    source: include_str!("../../shaders/label_embedding_backward.wgsl"),
    bindings: &[read("labels"), read("dy"), accumulate("dtable")],
    params: Params::FIELDS,
    defines: &["ACC"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![(&FORWARD, vec![vec![]]), (&BACKWARD, vec![vec![0], vec![1]])]
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
    let weight = g.param(ParamInfo {
        name: "weight".into(),
        shape: vec![classes, dim],
        layout: FileLayout::Plain,
        init: Init::Normal,
    });
    let params = Params { n: n as u32, classes: classes as u32, dim: dim as u32 };
    Ok(g.push(LabelEmbedding { params }, &[labels, weight], &[&[n, dim]])[0])
}

impl Op for LabelEmbedding {
    fn name(&self) -> &'static str {
        "label_embedding"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let len = u64::from(self.params.n) * u64::from(self.params.dim);
        lower.launch(Launch {
            kernel: &FORWARD,
            defines: &[],
            params: bytemuck::bytes_of(&self.params),
            bindings: &[Some(node.inputs[0]), Some(node.inputs[1]), Some(node.outputs[0])],
            groups: groups(len),
            flops: 0,
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        let Some(dtable) = lower.grad_target(node.inputs[1]) else { return Ok(()) };
        let len = u64::from(self.params.classes) * u64::from(self.params.dim);
        lower.launch(Launch {
            kernel: &BACKWARD,
            defines: &[dtable.add.into()],
            params: bytemuck::bytes_of(&self.params),
            bindings: &[Some(node.inputs[0]), Some(dy), Some(dtable.tensor)],
            groups: groups(len),
            flops: u64::from(self.params.n) * u64::from(self.params.dim),
        })
    }
}
