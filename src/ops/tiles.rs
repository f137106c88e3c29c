//! Register tiles of the matrix products: which there are, what suits a shape,
//! and how a launch is divided into workgroups.
//!
//! An invocation owns `tm` rows (pixels) by `tn` columns (channels) of a result.
//! In the plain tiles neighbouring invocations take neighbouring columns of the
//! same rows. In the uniform ones a workgroup has one tile of columns and its
//! lanes are rows, so that all lanes load the same weights at once
//! (`shaders/uniform.wgsl`); they are for drivers that gain by it
//! ([`crate::caps::Caps::uniform_loads`]).

use super::staged::Block;
use super::{GROUP, groups};
use crate::graph::Lower;

/// A register tile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile {
    pub tm: u32,
    pub tn: u32,
    /// Whether lanes share the loads of columns.
    pub uniform: bool,
    pub name: &'static str,
}

impl Tile {
    /// Workgroup sizes that it may run with.
    pub fn widths(self) -> Vec<u32> {
        if self.uniform { UNIFORM_LANES.to_vec() } else { vec![GROUP as u32] }
    }

    /// TM, TN, UNI and, of `lanes` invocations, WG.
    pub fn defines(self, lanes: u32) -> [i64; 4] {
        [self.tm.into(), self.tn.into(), self.uniform.into(), lanes.into()]
    }
}

const fn plain(tm: u32, tn: u32, name: &'static str) -> Tile {
    Tile { tm, tn, uniform: false, name }
}

const fn uniform(tm: u32, tn: u32, name: &'static str) -> Tile {
    Tile { tm, tn, uniform: true, name }
}

/// Plain tiles of pixels x channels, largest first. The first spills on GPUs;
/// software drivers keep registers in memory anyway and gain from fewer loads.
pub(super) const TILES: [Tile; 4] = [
    plain(16, 8, "tile16x8"),
    plain(8, 8, "tile8x8"),
    plain(4, 8, "tile4x8"),
    plain(4, 4, "tile4x4"),
];

/// Uniform tiles, best first.
pub(super) const UNIFORM_TILES: [Tile; 4] = [
    uniform(4, 16, "uniform4x16"),
    uniform(4, 8, "uniform4x8"),
    uniform(2, 16, "uniform2x16"),
    uniform(2, 8, "uniform2x8"),
];

/// The same for [`super::gemm`], whose text is short enough to compile in a larger one.
pub(super) const UNIFORM_GEMM_TILES: [Tile; 5] = [
    uniform(4, 32, "uniform4x32"),
    UNIFORM_TILES[0],
    UNIFORM_TILES[1],
    UNIFORM_TILES[2],
    UNIFORM_TILES[3],
];

/// Tiles of a weight's gradient (input x output channels).
pub(super) const WEIGHT_TILES: [Tile; 6] = [
    plain(16, 8, "tile16x8"),
    plain(8, 8, "tile8x8"),
    plain(4, 8, "tile4x8"),
    plain(16, 4, "tile16x4"),
    plain(8, 4, "tile8x4"),
    plain(4, 4, "tile4x4"),
];

/// The same with uniform loads.
pub(super) const UNIFORM_WEIGHT_TILES: [Tile; 2] =
    [uniform(4, 16, "uniform4x16"), uniform(4, 8, "uniform4x8")];

/// Lanes of a workgroup with a uniform tile: fewer where rows are few.
const UNIFORM_LANES: [u32; 2] = [64, 16];

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

/// Invocations that keep a device busy; a software driver needs a few per
/// core, a GPU thousands.
pub(super) fn wanted_invocations(lower: &Lower) -> u64 {
    if lower.caps.software { 4 * GROUP } else { 256 * GROUP }
}

/// One of `tiles`, by default `rule`.
pub(super) fn choose(
    lower: &mut Lower,
    op: &'static str,
    key: &[usize],
    tiles: Vec<Tile>,
    rule: Tile,
) -> Tile {
    let names: Vec<_> = tiles.iter().map(|t| t.name).collect();
    let rule = tiles.iter().position(|t| *t == rule).unwrap_or(0);
    tiles[lower.choose(op, key, &names, rule)]
}

/// How a product is divided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Division {
    pub tile: Tile,
    /// Invocations of a workgroup.
    pub lanes: u32,
    /// Tiles along the columns.
    pub across: u32,
    /// Along the rows: tiles, or workgroups of `lanes` uniform ones.
    pub down: u32,
    /// Tiles of all matrices, those that lanes without rows would have included.
    pub tiles: u64,
    /// Workgroups in all.
    pub groups: u64,
}

impl Division {
    pub fn new(tile: Tile, [rows, columns]: [usize; 2], batch: usize) -> Self {
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
}

/// Products of matrices to be divided, one for each of `batch`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Product {
    pub batch: usize,
    pub rows: usize,
    pub columns: usize,
    /// Everything goes by `vec4`s of channels.
    pub vec: bool,
    /// Without: whether uniform tiles can do single channels.
    pub scalar: bool,
    /// Uniform tiles that there are.
    pub uniform: &'static [Tile],
    /// Rows, of all matrices, and row length of the operand that the lanes of
    /// uniform tiles share.
    pub shared: [usize; 2],
    /// Turns of the loop over the depth.
    pub turns: usize,
}

/// How a product is done: by register tiles, or by blocks of whole workgroups.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    Tiles(Division),
    Block(Block),
}

/// A tile for products. Of the `blocks` one is taken if their own rule says so. Else, by
/// default, a uniform tile where the driver gains by it and the columns divide;
/// else the largest that leaves enough invocations and does not waste columns.
pub(super) fn divide(
    lower: &mut Lower,
    op: &'static str,
    key: &[usize],
    Product { batch, rows, columns, vec, scalar, uniform, shared, turns }: Product,
    (blocks, block_rule): (Vec<Block>, Option<Block>),
) -> Way {
    let division = |t: Tile| Division::new(t, [rows, columns], batch);
    let shares = (vec || scalar) && uniform_fits(lower, shared, turns);
    let divides = |t: &Tile| match vec {
        true => columns.is_multiple_of(t.tn as usize),
        false => t.tn == 8 || columns >= t.tn as usize,
    };
    let shared: Vec<Tile> = uniform.iter().copied().filter(|t| shares && divides(t)).collect();
    let wide: Vec<Tile> = TILES.into_iter().filter(|t| columns > 4 || t.tn == 4).collect();
    // Channel by channel large tiles take software drivers too long to compile.
    let largest = match (lower.caps.software, vec) {
        (true, true) => u32::MAX,
        (true, false) => 32,
        (false, _) => 64,
    };
    let fits = |t: &Tile| t.tm * t.tn <= largest;
    let busy = |t: &Tile| division(*t).tiles >= wanted_invocations(lower);
    let last = TILES[TILES.len() - 1];
    let tall = |t: &Tile| rows >= 8 * t.tm as usize;
    let rule = match shared.iter().find(|t| tall(t)).or(shared.last()) {
        Some(t) => *t,
        None => wide.iter().copied().find(|t| fits(t) && busy(t)).unwrap_or(last),
    };
    let tiles = [shared, wide].concat();
    let names: Vec<_> = tiles.iter().map(|t| t.name).chain(blocks.iter().map(|b| b.name)).collect();
    let rule = match block_rule.and_then(|r| blocks.iter().position(|b| *b == r)) {
        Some(i) => tiles.len() + i,
        None => tiles.iter().position(|t| *t == rule).unwrap_or(0),
    };
    match lower.choose(op, key, &names, rule) {
        i if i < tiles.len() => Way::Tiles(division(tiles[i])),
        i => Way::Block(blocks[i - tiles.len()]),
    }
}
