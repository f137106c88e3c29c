//! What a group norm and the convolutions before and after it tell each other, as notes
//! on the tensor between them ([`Lower::note`](crate::graph::Lower::note)).

use crate::graph::TensorId;

/// A note on a group norm's result: how it follows from what the norm read, by the
/// coefficients of `shaders/group_norm_stats.wgsl` and SiLU. A convolution that applies
/// this itself need not read the result; without readers, nobody computes it.
#[derive(Debug, Clone, Copy)]
pub struct Normed {
    /// The image before the norm, [n, h, w, c].
    pub x: TensorId,
    /// a, b, offset and 1 / deviation of every channel, [n, 4, c].
    pub coefs: TensorId,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// A note on an image that a group norm reads: it would rather be given [`Moments`].
#[derive(Debug, Clone, Copy)]
pub struct WantsMoments;

/// A note on an image: what the convolution that computed it left for a group norm.
#[derive(Debug, Clone, Copy)]
pub struct Moments {
    /// Mean and squared deviations of every tile's pixels, [n, tiles, 2, c].
    pub tensor: TensorId,
    /// Tiles of an image, all of as many pixels.
    pub tiles: usize,
}
