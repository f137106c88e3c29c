//! Convolution, 3x3 or 1x1, stride 1 or 2, padding kernel/2, NHWC.
//!
//! ```text
//! y[n,oy,ox,co] = bias[co] + sum over r,s,ci of
//!     x[n, oy*stride+r-pad, ox*stride+s-pad, ci] * weight[r,s,ci,co]
//! ```
//!
//! Two additions can ride on the store: `emb`, a bias of each image and channel (the
//! additive timestep embedding), and a `residual` of y's shape.
//!
//! Backward keeps only x:
//!
//! ```text
//! dx        = dy convolved with the transposed weight (gathered)
//! dweight   = x correlated with dy, summed over the pixels
//! dbias     = dy summed over the pixels (computed together with dweight)
//! demb      = dy summed over the pixels of each image
//! dresidual = dy
//! ```
//!
//! In half precision x, y, the weight and the gradients of x and y are stored as half.
//! Sums, the bias, emb and the weight's gradient have 32 bits. A stem reads a 32-bit image
//! and weight and writes half. Linear layers run the same kernels on images of one pixel.
//!
//! # The ways
//!
//! There are three passes: forward, the gradient of x (*dx*), and the gradients of weight
//! and bias (*dw*). Each is a product of matrices. For the first two its rows are the
//! pixels of the result, its columns the result's channels, and at each tap of the window
//! it sums over the other channels. A pass can be computed in several ways, which give the
//! same result but for rounding:
//!
//! | way | kernels | taken by rule |
//! |---|---|---|
//! | direct, register tiles ([`direct`]) | `conv2d`, `conv2d_dx`, `conv2d_dw`, `sum_splits` | on software drivers, for small shapes, for channels that are no multiple of four; dw wherever it does not go by a filter |
//! | direct, staged tiles ([`staged`]) | `conv2d_staged`, `conv2d_dx_staged` | on GPUs, from 64 pixels and 64 channels of the result on |
//! | the same on cooperative matrices ([`coop`]) | `conv2d_coop`, `conv2d_dx_coop` | there too, if the device has them and images and weight are half |
//! | Winograd's filters ([`winograd`]) | `winograd_*` around `gemm`, `gemm_dw` or their staged siblings ([`gemm`]) | for 3x3 windows of stride 1 with enough channels and pixels, unless cooperative matrices are faster |
//!
//! Where a result has few staged tiles, several workgroups share each of them ([`split`]).
//!
//! # The files
//!
//! A file uses only files above it in this list.
//!
//! * [`geometry`]: sizes, and the tensors of each pass.
//! * [`tiles`]: register tiles and staged tiles.
//! * [`filter`]: the sizes of Winograd's filters, and the tiles of an image in rounds.
//! * [`way`]: the chooser. It returns a [`way::Way`] and launches nothing.
//! * [`direct`], [`split`], [`family`], [`coop`], [`staged`], [`gemm`], [`winograd`]: the
//!   kernels of each way and their launches.
//! * [`passes`]: asks the chooser, then launches.
//! * This file: the op, which checks shapes and knows about gradients.
//!
//! Read them in this order; the shaders have the same names as the kernels.

mod coop;
mod direct;
mod family;
mod filter;
mod gemm;
mod geometry;
mod passes;
mod split;
mod staged;
mod tiles;
mod way;
mod winograd;

pub(super) use geometry::{Additions, Forward, Geometry};
pub(super) use passes::{forward, input_grad_of, weight_grad_of};

use super::add::give_grad;
use super::sum_rows;
use crate::graph::{DType, FileLayout, Graph, Init, Lower, Node, Op, ParamInfo, TensorId};
use crate::kernel::Kernel;
use crate::{Error, Result, named};

/// The kernels of all ways.
pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let all = [
        direct::kernels(),
        gemm::kernels(),
        staged::kernels(),
        split::kernels(),
        winograd::kernels(),
    ];
    all.concat()
}

/// Options of [`conv2d`].
#[derive(Debug, Clone, Copy)]
pub struct Conv2d {
    /// Output channels.
    pub cout: usize,
    /// Window: 1 or 3.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Start at zero (the reference's `zero_module`).
    pub zero: bool,
    /// Layout of the weight in files.
    pub layout: FileLayout,
}

impl Conv2d {
    /// A 3x3 convolution of stride 1.
    pub fn k3(cout: usize) -> Self {
        Conv2d { cout, kernel: 3, stride: 1, zero: false, layout: FileLayout::Conv2d }
    }

    /// A 1x1 convolution.
    pub fn k1(cout: usize) -> Self {
        Conv2d { kernel: 1, ..Self::k3(cout) }
    }

    /// The same with zero initial weights.
    pub fn zeroed(self) -> Self {
        Conv2d { zero: true, ..self }
    }
}

#[derive(Debug)]
struct Conv2dOp {
    geometry: Geometry,
}

/// Convolves `x` [n, h, w, cin] with new parameters `weight` and `bias` of
/// the current scope; `emb` [n, cout] and `residual` (y's shape) are added.
/// Under [`Graph::half`] the result (and a residual) is half, and the weight is
/// read as half if x is.
///
/// # Errors
/// [`Error::Shape`] for an unsupported window or stride, or operands that do
/// not fit, in their element types too.
pub fn conv2d(
    g: &mut Graph,
    x: TensorId,
    options: Conv2d,
    emb: Option<TensorId>,
    residual: Option<TensorId>,
) -> Result<TensorId> {
    let [n, h, w, cin] = g.dims("conv2d", x)?;
    let Conv2d { cout, kernel, stride, zero, layout } = options;
    if !matches!((kernel, stride), (1, 1) | (3, 1) | (3, 2)) {
        return Err(Error::shape(
            "conv2d",
            format!("a {kernel}x{kernel} window of stride {stride} is not supported"),
        ));
    }
    let geometry = Geometry { n, h, w, cin, cout, kernel, stride };
    let out = [n, geometry.oh(), geometry.ow(), cout];
    for (name, id, shape) in [("emb", emb, &[n, cout][..]), ("residual", residual, &out[..])] {
        if let Some(id) = id
            && g.shape(id) != shape
        {
            return Err(Error::shape(
                "conv2d",
                format!("{name} is {:?}, {shape:?} is needed", g.shape(id)),
            ));
        }
    }
    let dtype = g.result_dtype("conv2d", cout)?;
    let from = g.dtype(x);
    if from == DType::F16 && dtype == DType::F32 {
        return Err(Error::shape("conv2d", "x is half, but the result is to be F32: cast x"));
    }
    if let Some(residual) = residual
        && g.dtype(residual) != dtype
    {
        let detail = format!("residual is {:?}, {dtype:?} is needed", g.dtype(residual));
        return Err(Error::shape("conv2d", detail));
    }
    // PyTorch's kaiming_uniform(a = sqrt 5): both bounds are 1/sqrt(fan_in).
    let bound = Init::Uniform(1.0 / ((kernel * kernel * cin) as f32).sqrt());
    let init = if zero { Init::Zeros } else { bound };
    let shape = vec![kernel, kernel, cin, cout];
    let weight = g.param_as(ParamInfo { name: "weight".into(), shape, layout, init }, from);
    let bias = g.param(ParamInfo {
        name: "bias".into(),
        shape: vec![cout],
        layout: FileLayout::Plain,
        init,
    });
    let inputs = named![x, weight, bias, emb, residual];
    Ok(g.add_node_as(Conv2dOp { geometry }, &inputs, &[("y", &out)], dtype)[0])
}

impl Op for Conv2dOp {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let add = Additions {
            bias: node.input("bias")?,
            emb: node.optional_input("emb"),
            residual: node.optional_input("residual"),
        };
        let (x, weight, y) = (node.input("x")?, node.input("weight")?, node.output("y")?);
        forward(lower, &self.geometry, Forward { x, weight, add, y })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let g = &self.geometry;
        weight_grad_of(lower, g, node, dy)?;
        if let Some(demb) = node.optional_input("emb").and_then(|emb| lower.grad_target(emb)) {
            sum_rows(lower, dy, [g.n, g.oh() * g.ow(), g.cout], demb)?;
        }
        input_grad_of(lower, g, node, dy)?;
        match node.optional_input("residual") {
            Some(residual) => give_grad(lower, residual, dy),
            None => Ok(()),
        }
    }
}
