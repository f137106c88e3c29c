//! Sizes and options of a group norm.

use super::super::LOOP_TURNS;
use super::super::pixels::PixelRuns;
use crate::graph::Lower;

/// Options of [`super::group_norm`].
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm {
    /// Runs of channels that are normalised together.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Apply SiLU to the result.
    pub silu: bool,
}

impl GroupNorm {
    /// The reference's GroupNorm32: 32 groups, eps 1e-5, no SiLU.
    pub fn g32() -> Self {
        GroupNorm { groups: 32, eps: 1e-5, silu: false }
    }

    /// The same followed by SiLU.
    pub fn with_silu(self) -> Self {
        GroupNorm { silu: true, ..self }
    }
}

/// Most channels of a group: a workgroup holds a group's channels in its memory.
pub(super) const MAX_WIDTH: usize = 256;

/// Most turns of a loop over pixels or images.
pub(super) const MAX_TURNS: usize = LOOP_TURNS as usize;

/// One group norm of `n` images of `hw` pixels and `c` channels.
#[derive(Debug)]
pub(super) struct GroupNormOp {
    pub options: GroupNorm,
    pub n: usize,
    pub hw: usize,
    pub c: usize,
}

impl GroupNormOp {
    /// Channels of a group.
    pub fn width(&self) -> usize {
        self.c / self.options.groups
    }

    /// Whether the reductions load whole quads of channels.
    pub fn vec(&self) -> bool {
        self.c.is_multiple_of(4) && lcm(self.width(), 4) <= MAX_WIDTH
    }

    /// Elements of x.
    pub fn elements(&self) -> u64 {
        self.elements_of(self.hw)
    }

    /// Elements of images with `places` places.
    pub fn elements_of(&self, places: usize) -> u64 {
        (self.n * places * self.c) as u64
    }

    /// How the elementwise kernels deal out the pixels.
    pub fn runs(&self, lower: &Lower) -> PixelRuns {
        PixelRuns::new(lower, self.n, self.hw, self.c.div_ceil(4))
    }
}

/// Least common multiple.
pub(super) fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}
