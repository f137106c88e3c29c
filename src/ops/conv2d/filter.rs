//! Winograd's filters: their sizes, and the tiles of an image in rounds.

use super::geometry::Geometry;
use super::tiles::UNIFORM_TURNS;

/// Results of a tile along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// F(2x2, 3x3).
    F2,
    /// F(4x4, 3x3).
    F4,
}

/// The values of [`Filter::size`].
pub(super) const FILTER_SIZES: [u32; 2] = [2, 4];

impl Filter {
    /// The candidate's name.
    pub fn name(self) -> &'static str {
        match self {
            Filter::F2 => "winograd2",
            Filter::F4 => "winograd4",
        }
    }

    /// Results of a tile along each axis.
    pub fn size(self) -> usize {
        match self {
            Filter::F2 => 2,
            Filter::F4 => 4,
        }
    }

    /// Points, each with a product of matrices.
    pub fn points(self) -> usize {
        (self.size() + 2) * (self.size() + 2)
    }

    /// Tiles of an image across and down.
    pub fn tiles(self, g: &Geometry) -> [usize; 2] {
        [g.w.div_ceil(self.size()), g.h.div_ceil(self.size())]
    }

    /// Bytes of a transformed weight's gradient with the bias's, and so not less than those
    /// of the transformed weight.
    pub fn weight_bytes(self, g: &Geometry) -> u64 {
        (self.points() * (g.cin + 1) * g.cout * size_of::<f32>()) as u64
    }
}

/// Bytes of the transformed tiles of one round: what stays in a large cache.
const ROUND_BYTES: usize = 32 << 20;

/// The depth that every split of a weight's gradient can have, if the depth is there.
const LEAST_DEPTH: usize = UNIFORM_TURNS;

/// Consecutive tiles that are transformed and multiplied at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Round {
    /// Number of the first tile.
    pub first: usize,
    /// Number of tiles.
    pub tiles: usize,
}

/// The tiles of a batch of images, and how many a round takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tiling {
    pub filter: Filter,
    /// Tiles across an image.
    pub across: usize,
    /// Tiles down an image.
    pub down: usize,
    /// Tiles of all images.
    pub all: usize,
    /// Tiles of a round; the last one may have fewer.
    pub round: usize,
}

impl Tiling {
    pub fn new(filter: Filter, g: &Geometry) -> Self {
        let [across, down] = filter.tiles(g);
        let all = g.n * across * down;
        let tile = filter.points() * g.cin.max(g.cout) * size_of::<f32>();
        let rounds = all.div_ceil((ROUND_BYTES / tile).max(1));
        Tiling { filter, across, down, all, round: all.div_ceil(rounds) }
    }

    /// All rounds in order.
    pub fn rounds(self) -> impl Iterator<Item = Round> {
        let round = move |first| Round { first, tiles: self.round.min(self.all - first) };
        (0..self.all).step_by(self.round).map(round)
    }

    /// Bytes of the partial sums of the weight's gradient: one split a round, or as many as
    /// the loops of a round need.
    pub fn partial_bytes(self, g: &Geometry) -> u64 {
        let splits = self.rounds().count() * self.round.div_ceil(LEAST_DEPTH);
        self.filter.weight_bytes(g).saturating_mul(splits as u64)
    }
}
