//! The sizes of a convolution, and what its launches read and write.

use crate::graph::{Lower, Target, TensorId};
use crate::params;

params! {
    /// The sizes as the kernels of the direct sum take them. `tiles` counts the tiles of
    /// the result, `tiles_n` those along its channels.
    pub(super) struct Params {
        n: u32, h: u32, w: u32, cin: u32, oh: u32, ow: u32, cout: u32,
        kernel: u32, stride: u32, pad: u32, tiles_n: u32, tiles: u32,
    }
}

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub struct Geometry {
    /// Images.
    pub n: usize,
    /// Rows of the input.
    pub h: usize,
    /// Columns of the input.
    pub w: usize,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Rows and columns of the window.
    pub kernel: usize,
    /// Input pixels from one window to the next.
    pub stride: usize,
}

impl Geometry {
    /// A linear layer: a 1x1 convolution of `n` images of one pixel.
    pub fn of_linear(n: usize, inputs: usize, outputs: usize) -> Self {
        Geometry { n, h: 1, w: 1, cin: inputs, cout: outputs, kernel: 1, stride: 1 }
    }

    /// Zeros on each side of the input.
    pub fn pad(&self) -> usize {
        self.kernel / 2
    }

    /// Rows of the result.
    pub fn oh(&self) -> usize {
        self.out(self.h)
    }

    /// Columns of the result.
    pub fn ow(&self) -> usize {
        self.out(self.w)
    }

    fn out(&self, extent: usize) -> usize {
        (extent + 2 * self.pad() - self.kernel) / self.stride + 1
    }

    /// Pixels of the input, of all images.
    pub fn input_pixels(&self) -> usize {
        self.n * self.h * self.w
    }

    /// Pixels of the result, of all images.
    pub fn output_pixels(&self) -> usize {
        self.n * self.oh() * self.ow()
    }

    /// Positions in the window.
    pub fn taps(&self) -> usize {
        self.kernel * self.kernel
    }

    /// Whether channels can be loaded and stored by four.
    pub fn vec(&self) -> bool {
        self.cin.is_multiple_of(4) && self.cout.is_multiple_of(4)
    }

    /// Arithmetic of one direction. A multiply-add counts two.
    pub fn flops(&self) -> u64 {
        2 * self.output_pixels() as u64 * (self.taps() * self.cin * self.cout) as u64
    }

    /// The uniform block of a launch with `tiles` tiles, `tiles_n` along the channels.
    pub(super) fn params(&self, tiles_n: u32, tiles: u32) -> Params {
        Params {
            n: self.n as u32,
            h: self.h as u32,
            w: self.w as u32,
            cin: self.cin as u32,
            oh: self.oh() as u32,
            ow: self.ow() as u32,
            cout: self.cout as u32,
            kernel: self.kernel as u32,
            stride: self.stride as u32,
            pad: self.pad() as u32,
            tiles_n,
            tiles,
        }
    }

    /// The convolution as one product of matrices.
    pub(super) fn product(&self, direction: Direction) -> Product {
        match direction {
            Direction::Forward => {
                Product { rows: self.output_pixels(), columns: self.cout, depth: self.cin }
            }
            Direction::InputGrad => {
                Product { rows: self.input_pixels(), columns: self.cin, depth: self.cout }
            }
        }
    }
}

/// The two directions whose result is an image: they run the same kernels, with the roles
/// of input and output exchanged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From x to y.
    Forward,
    /// From the gradient of y to that of x.
    InputGrad,
}

/// A product of matrices whose rows are the pixels of a result and whose columns are its
/// channels. At each tap of the window it sums over `depth` channels.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

/// What is added to a result on its way to memory.
#[derive(Debug, Clone, Copy)]
pub struct Additions {
    /// `[cout]`.
    pub bias: TensorId,
    /// A bias of each image, [n, cout].
    pub emb: Option<TensorId>,
    /// An image of the result's shape.
    pub residual: Option<TensorId>,
}

/// The tensors of y = conv(x, weight) + additions.
#[derive(Debug, Clone, Copy)]
pub struct Forward {
    /// [n, h, w, cin].
    pub x: TensorId,
    /// [kernel, kernel, cin, cout].
    pub weight: TensorId,
    /// What else y is made of.
    pub add: Additions,
    /// [n, oh, ow, cout].
    pub y: TensorId,
}

/// The tensors of the gradient of x.
#[derive(Debug, Clone, Copy)]
pub(super) struct InputGrad {
    /// [n, oh, ow, cout].
    pub dy: TensorId,
    /// [kernel, kernel, cin, cout].
    pub weight: TensorId,
    /// [n, h, w, cin].
    pub dx: Target,
}

/// The tensors of the gradients of weight and bias.
#[derive(Debug, Clone, Copy)]
pub(super) struct WeightGrad {
    /// [n, h, w, cin].
    pub x: TensorId,
    /// [n, oh, ow, cout].
    pub dy: TensorId,
    /// [kernel, kernel, cin, cout].
    pub dweight: Target,
    /// `[cout]`; it is added exactly if `dweight` is.
    pub dbias: Target,
}

/// Whether all of these tensors are stored as half.
pub(super) fn all_half(lower: &Lower, tensors: &[TensorId]) -> bool {
    tensors.iter().all(|t| lower.is_half(*t))
}

/// Bits of an element of `tensor`: what choices are tuned by.
pub(super) fn bits(lower: &Lower, tensor: TensorId) -> usize {
    if lower.is_half(tensor) { 16 } else { 32 }
}
