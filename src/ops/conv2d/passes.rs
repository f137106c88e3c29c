//! The three passes of a convolution, each launched in the way that is chosen for it.

use super::geometry::{Forward, Geometry, InputGrad, WeightGrad};
use super::way::{Tiles, Way, WeightWay, choose_forward, choose_input_grad, choose_weight_grad};
use super::{direct, staged, winograd};
use crate::Result;
use crate::graph::{Lower, Node, TensorId};

/// Launches y = conv(x, weight) + additions.
pub fn forward(lower: &mut Lower, g: &Geometry, t: Forward) -> Result<()> {
    match choose_forward(lower, g, &t) {
        Way::Winograd(filter) => winograd::forward(lower, g, filter, &t),
        Way::Direct(Tiles::Register(division)) => direct::forward(lower, g, division, &t),
        Way::Direct(Tiles::Staged(tile)) => staged::forward(lower, g, tile, &t),
    }
}

/// Launches the gradient of the input "x" of a node from that of its result, if anybody
/// wants it.
pub fn input_grad_of(lower: &mut Lower, g: &Geometry, node: &Node, dy: TensorId) -> Result<()> {
    let (x, weight) = (node.input("x")?, node.input("weight")?);
    match lower.grad_target(x) {
        Some(dx) => input_grad(lower, g, InputGrad { dy, weight, dx }),
        None => Ok(()),
    }
}

fn input_grad(lower: &mut Lower, g: &Geometry, t: InputGrad) -> Result<()> {
    match choose_input_grad(lower, g, &t) {
        Way::Winograd(filter) => winograd::input_grad(lower, g, filter, &t),
        Way::Direct(Tiles::Register(division)) => direct::input_grad(lower, g, division, &t),
        Way::Direct(Tiles::Staged(tile)) => staged::input_grad(lower, g, tile, &t),
    }
}

/// Launches the gradients of a node's parameters "weight" and "bias" from that of its
/// result, if anybody wants them.
pub fn weight_grad_of(lower: &mut Lower, g: &Geometry, node: &Node, dy: TensorId) -> Result<()> {
    let (x, weight, bias) = (node.input("x")?, node.input("weight")?, node.input("bias")?);
    match (lower.grad_target(weight), lower.grad_target(bias)) {
        (Some(dweight), Some(dbias)) => weight_grad(lower, g, WeightGrad { x, dy, dweight, dbias }),
        _ => Ok(()),
    }
}

fn weight_grad(lower: &mut Lower, g: &Geometry, t: WeightGrad) -> Result<()> {
    match choose_weight_grad(lower, g, &t) {
        WeightWay::Winograd(filter) => winograd::weight_grad(lower, g, filter, &t),
        WeightWay::Direct(tile) => direct::weight_grad(lower, g, tile, &t),
    }
}
