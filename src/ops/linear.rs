//! Linear layer: y[n, o] = bias[o] + sum over i of x[n, i] * weight[i, o].
//!
//! A 1x1 convolution over n images of one pixel, so it shares conv2d's
//! kernels in both directions.

use super::conv2d::{Geometry, launch_backward_weight, launch_backward_x, launch_forward};
use crate::Result;
use crate::graph::{FileLayout, Graph, Init, Lower, Node, Op, ParamInfo, TensorId};

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
    let geometry = Geometry { n, h: 1, w: 1, cin: inputs, cout: outputs, kernel: 1, stride: 1 };
    Ok(g.push(Linear { geometry }, &[x, weight, bias], &[&[n, outputs]])[0])
}

impl Op for Linear {
    fn name(&self) -> &'static str {
        "linear"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let i = &node.inputs;
        launch_forward(lower, self.geometry, i[0], [i[1], i[2]], None, None, node.outputs[0])
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        let i = &node.inputs;
        if let (Some(dweight), Some(dbias)) = (lower.grad_target(i[1]), lower.grad_target(i[2])) {
            launch_backward_weight(lower, self.geometry, i[0], dy, dweight, dbias)?;
        }
        match lower.grad_target(i[0]) {
            Some(dx) => launch_backward_x(lower, self.geometry, dy, i[1], dx),
            None => Ok(()),
        }
    }
}
