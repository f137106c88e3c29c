//! Linear layer: y[n, o] = bias[o] + sum over i of x[n, i] * weight[i, o].
//!
//! A 1x1 convolution of n images of one pixel, so it runs conv2d's kernels in
//! all passes.

use super::conv2d::{Additions, Forward, Geometry, forward, input_grad_of, weight_grad_of};
use crate::graph::{FileLayout, Graph, Init, Lower, Node, Op, ParamInfo, TensorId};
use crate::{Result, named};

#[derive(Debug)]
struct Linear {
    geometry: Geometry,
}

/// Options of [`linear_with`].
#[derive(Debug, Clone, Copy)]
pub struct LinearOptions {
    /// Width of the result.
    pub outputs: usize,
    /// How files hold the weight: a convolution over one pixel is stored as
    /// one.
    pub layout: FileLayout,
    /// Weight and bias start at zero.
    pub zeroed: bool,
}

/// Maps `x` [n, inputs] to [n, outputs] with new parameters `weight` and
/// `bias` of the current scope, initialised as PyTorch does.
///
/// # Errors
/// [`crate::Error::Shape`] if x is not of rank 2.
pub fn linear(g: &mut Graph, x: TensorId, outputs: usize) -> Result<TensorId> {
    linear_with(g, x, LinearOptions { outputs, layout: FileLayout::Linear, zeroed: false })
}

/// [`linear`] with another layout in files or initial value.
///
/// # Errors
/// [`crate::Error::Shape`] if x is not of rank 2.
pub fn linear_with(g: &mut Graph, x: TensorId, options: LinearOptions) -> Result<TensorId> {
    let LinearOptions { outputs, layout, zeroed } = options;
    let [n, inputs] = g.dims("linear", x)?;
    let init = if zeroed { Init::Zeros } else { Init::Uniform(1.0 / (inputs as f32).sqrt()) };
    let shape = match layout {
        FileLayout::Conv2d | FileLayout::Conv1d => vec![1, 1, inputs, outputs],
        FileLayout::Linear | FileLayout::Plain => vec![inputs, outputs],
    };
    let weight = g.param(ParamInfo { name: "weight".into(), shape, layout, init });
    let bias = g.param(ParamInfo {
        name: "bias".into(),
        shape: vec![outputs],
        layout: FileLayout::Plain,
        init,
    });
    let geometry = Geometry::of_linear(n, inputs, outputs);
    Ok(g.add_node(Linear { geometry }, &named![x, weight, bias], &[("y", &[n, outputs])])[0])
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let add = Additions { bias: node.input("bias")?, emb: None, residual: None };
        let (x, weight, y) = (node.input("x")?, node.input("weight")?, node.output("y")?);
        forward(lower, &self.geometry, Forward { x, weight, add, y })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        weight_grad_of(lower, &self.geometry, node, dy)?;
        input_grad_of(lower, &self.geometry, node, dy)
    }
}
