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

/// Maps `x` [n, inputs] to [n, outputs] with new parameters `weight` and
/// `bias` of the current scope, initialised as PyTorch does.
///
/// # Errors
/// [`crate::Error::Shape`] if x is not of rank 2.
pub fn linear(g: &mut Graph, x: TensorId, outputs: usize) -> Result<TensorId> {
    let [n, inputs] = g.dims("linear", x)?;
    let init = Init::Uniform(1.0 / (inputs as f32).sqrt());
    let shape = vec![inputs, outputs];
    let weight =
        g.param(ParamInfo { name: "weight".into(), shape, layout: FileLayout::Linear, init });
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
        if let (Some(dweight), Some((dbias, _))) =
            (lower.grad_target(i[1]), lower.grad_target(i[2]))
        {
            launch_backward_weight(lower, self.geometry, i[0], dy, dweight, dbias)?;
        }
        match lower.grad_target(i[0]) {
            Some(dx) => launch_backward_x(lower, self.geometry, dy, i[1], dx),
            None => Ok(()),
        }
    }
}
