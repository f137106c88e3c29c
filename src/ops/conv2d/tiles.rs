//! The tiles in which the product of a convolution is computed, and how many of them a
//! result has.
//!
//! A *register tile* belongs to one invocation, which holds its sums in registers: `tm`
//! rows (pixels) by `tn` columns (channels). In plain register tiles neighbouring
//! invocations take neighbouring columns of the same rows. In uniform ones a workgroup has
//! one tile of columns and its lanes are rows, so that all lanes load the same weights at
//! once (`shaders/uniform.wgsl`); they are for drivers that gain by it
//! ([`crate::caps::Caps::uniform_loads`]).
//!
//! A *staged tile* belongs to a whole workgroup, which copies slabs of both operands into
//! workgroup memory first. They are for GPUs.

use crate::graph::Lower;
use crate::ops::{GROUP, groups};

/// A tile that one invocation owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RegisterTile {
    /// Rows.
    pub tm: u32,
    /// Columns.
    pub tn: u32,
    /// Whether lanes share the loads of columns.
    pub uniform: bool,
    /// As a candidate.
    pub name: &'static str,
}

const fn plain(tm: u32, tn: u32, name: &'static str) -> RegisterTile {
    RegisterTile { tm, tn, uniform: false, name }
}

const fn uniform(tm: u32, tn: u32, name: &'static str) -> RegisterTile {
    RegisterTile { tm, tn, uniform: true, name }
}

/// Plain tiles of pixels x channels, largest first. The first does not fit the registers
/// of a GPU. Software drivers keep registers in memory anyway and gain from fewer loads.
pub(super) const TILES: [RegisterTile; 4] = [
    plain(16, 8, "tile16x8"),
    plain(8, 8, "tile8x8"),
    plain(4, 8, "tile4x8"),
    plain(4, 4, "tile4x4"),
];

/// Uniform tiles of pixels x channels, best first.
pub(super) const UNIFORM_TILES: [RegisterTile; 4] = [
    uniform(4, 16, "uniform4x16"),
    uniform(4, 8, "uniform4x8"),
    uniform(2, 16, "uniform2x16"),
    uniform(2, 8, "uniform2x8"),
];

/// The same for [`super::gemm`], whose text is short enough to compile in a larger tile.
pub(super) const UNIFORM_GEMM_TILES: [RegisterTile; 5] = [
    uniform(4, 32, "uniform4x32"),
    UNIFORM_TILES[0],
    UNIFORM_TILES[1],
    UNIFORM_TILES[2],
    UNIFORM_TILES[3],
];

/// Plain tiles of a weight's gradient (input x output channels).
pub(super) const WEIGHT_TILES: [RegisterTile; 6] = [
    plain(16, 8, "tile16x8"),
    plain(8, 8, "tile8x8"),
    plain(4, 8, "tile4x8"),
    plain(16, 4, "tile16x4"),
    plain(8, 4, "tile8x4"),
    plain(4, 4, "tile4x4"),
];

/// Uniform tiles of a weight's gradient.
pub(super) const UNIFORM_WEIGHT_TILES: [RegisterTile; 2] =
    [uniform(4, 16, "uniform4x16"), uniform(4, 8, "uniform4x8")];

/// Lanes of a workgroup with a uniform tile: fewer where rows are few.
const UNIFORM_LANES: [u32; 2] = [64, 16];

/// Every number of rows, of columns and of invocations that some register tile has: the
/// domains of the defines TM, TN and WG.
pub(super) const ROWS: [u32; 4] = [2, 4, 8, 16];
pub(super) const COLUMNS: [u32; 4] = [4, 8, 16, 32];
pub(super) const LANES: [u32; 2] = UNIFORM_LANES;

/// The defines of a register tile, which all kernels share that have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TileDefines {
    /// Rows of the tile.
    pub tm: u32,
    /// Columns of the tile.
    pub tn: u32,
    /// Whether the tile is uniform.
    pub uni: bool,
    /// Invocations of a workgroup.
    pub wg: u32,
}

impl TileDefines {
    /// Whether one of `tiles` runs so.
    pub fn is_one_of(self, tiles: &[RegisterTile]) -> bool {
        let same = |t: &RegisterTile| (t.tm, t.tn, t.uniform) == (self.tm, self.tn, self.uni);
        let lanes =
            if self.uni { UNIFORM_LANES.contains(&self.wg) } else { self.wg == GROUP as u32 };
        lanes && tiles.iter().any(same)
    }
}

impl RegisterTile {
    /// Its defines in a workgroup of `lanes` invocations.
    pub fn defines(self, lanes: u32) -> TileDefines {
        TileDefines { tm: self.tm, tn: self.tn, uni: self.uniform, wg: lanes }
    }
}

/// Largest `vec4` index, largest number of `vec4`s along a row, and most turns of a loop
/// that uniform loads can name.
const UNIFORM_INDICES: usize = 1 << 25;
const UNIFORM_ROW: usize = 1 << 10;
pub(super) const UNIFORM_TURNS: usize = 1 << 10;

/// Whether loads of a `rows` x `columns` matrix can be uniform: by `vec4`s of
/// channels, in tiles that divide the columns, counted by a loop of `turns`.
pub(super) fn uniform_fits(lower: &Lower, [rows, columns]: [usize; 2], turns: usize) -> bool {
    let quads = if columns.is_multiple_of(4) { columns / 4 } else { columns };
    let all = rows.saturating_mul(quads);
    let small = quads < UNIFORM_ROW && all < UNIFORM_INDICES && turns <= UNIFORM_TURNS;
    lower.caps.uniform_loads && small
}

/// The smallest number of lanes that holds `lanes`, up to a whole workgroup.
pub(super) fn lanes_for(lanes: usize) -> u32 {
    UNIFORM_LANES.into_iter().rev().find(|l| *l as usize >= lanes).unwrap_or(UNIFORM_LANES[0])
}

/// Invocations of a product that keep a device busy. A software driver needs a few per
/// core, a GPU thousands.
pub(super) fn busy_invocations(lower: &Lower) -> u64 {
    if lower.caps.software { 4 * GROUP } else { 256 * GROUP }
}

/// How a product is divided into register tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    pub tile: RegisterTile,
    /// Invocations of a workgroup.
    pub lanes: u32,
    /// Tiles along the columns.
    pub across: u32,
    /// Along the rows: tiles, or workgroups of `lanes` uniform ones.
    pub down: u32,
    /// Tiles of all matrices. Lanes of uniform tiles that have no rows count too.
    pub tiles: u64,
    /// Workgroups in all.
    pub groups: u64,
}

impl Division {
    /// Divides `batch` matrices of `rows` x `columns`.
    pub fn new(tile: RegisterTile, [rows, columns]: [usize; 2], batch: usize) -> Self {
        let across = (columns as u32).div_ceil(tile.tn);
        let tall = (rows as u32).div_ceil(tile.tm);
        let lanes = if tile.uniform { lanes_for(tall as usize) } else { GROUP as u32 };
        let down = if tile.uniform { tall.div_ceil(lanes) } else { tall };
        let units = batch as u64 * u64::from(down) * u64::from(across);
        let (tiles, groups) = match tile.uniform {
            true => (units * u64::from(lanes), units),
            false => (units, groups(units)),
        };
        Division { tile, lanes, across, down, tiles, groups }
    }

    /// The defines of its tile.
    pub fn defines(self) -> TileDefines {
        self.tile.defines(self.lanes)
    }
}

/// A tile that a workgroup owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct StagedTile {
    /// Rows.
    pub rows: u32,
    /// Columns.
    pub columns: u32,
    /// Rows and columns of a cooperative matrix, 0 where single numbers are multiplied.
    pub coop: u32,
    /// As a candidate.
    pub name: &'static str,
}

/// Staged tiles of 32 bits, largest first: 256 invocations of 8 x 4 or 4 x 4 elements.
pub(super) const STAGED_TILES: [StagedTile; 2] = [
    StagedTile { rows: 128, columns: 64, coop: 0, name: "staged128x64" },
    StagedTile { rows: 64, columns: 64, coop: 0, name: "staged64x64" },
];

/// The staged tile of a weight's gradient.
pub(super) const STAGED_WEIGHT_TILE: StagedTile = STAGED_TILES[1];

/// Staged tiles on cooperative matrices, best first.
pub(super) const COOP_TILES: [StagedTile; 2] = [
    StagedTile { rows: 64, columns: 64, coop: 16, name: "coop16x16" },
    StagedTile { rows: 64, columns: 64, coop: 8, name: "coop8x8" },
];

/// Invocations of a workgroup with a staged tile of 32 bits.
pub(super) const STAGED_GROUP: u64 = 256;

/// Rows that an invocation owns of each staged tile: the domain of the define TM of staged
/// kernels.
pub(super) const STAGED_ROWS: [u32; 2] = [STAGED_TILES[0].tm(), STAGED_TILES[1].tm()];

impl StagedTile {
    /// Tiles across and down a product.
    pub fn tiles(&self, rows: usize, columns: usize) -> [u32; 2] {
        [(columns as u32).div_ceil(self.columns), (rows as u32).div_ceil(self.rows)]
    }

    /// Workgroups, and so tiles, of a batch of products.
    pub fn groups(&self, batch: usize, rows: usize, columns: usize) -> u64 {
        let [across, down] = self.tiles(rows, columns);
        batch as u64 * u64::from(across) * u64::from(down)
    }

    /// Rows that an invocation owns.
    pub const fn tm(&self) -> u32 {
        self.rows / 16
    }
}
