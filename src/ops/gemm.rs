//! Batches of matrix products: what Winograd's convolutions consist of between
//! their transforms ([`super::winograd`]). All is 32 bits and by `vec4`s.

use super::LOOP_TURNS;
use super::staged::{self, STAGED_DW};
use super::tiles::{
    Division, Product, TILES, Tile, UNIFORM_GEMM_TILES, UNIFORM_TURNS, UNIFORM_WEIGHT_TILES,
    WEIGHT_TILES, Way, divide, uniform_fits, wanted_invocations,
};
use crate::Result;
use crate::graph::{Launch, Lower, TensorId, bucket};
use crate::kernel::{Kernel, read, write};
use crate::params;

params! {
    pub(super) struct Params { batch: u32, rows: u32, columns: u32, depth: u32, across: u32, down: u32 }
}

params! {
    pub(super) struct SplitParams {
        batch: u32, rows: u32, columns: u32, depth: u32, across: u32, down: u32,
        splits: u32, first_split: u32, per_split: u32,
    }
}

static GEMM: Kernel = Kernel {
    name: "gemm",
    source: include_str!("../../shaders/gemm.wgsl"),
    bindings: &[read("a"), read("b"), write("c")],
    params: Params::FIELDS,
    defines: &["TM", "TN", "UNI", "WG", "TRANSPOSED"],
};

/// The launches of one split range together define every element.
static GEMM_DW: Kernel = Kernel {
    name: "gemm_dw",
    source: include_str!("../../shaders/gemm_dw.wgsl"),
    bindings: &[read("a"), read("b"), write("c")],
    params: SplitParams::FIELDS,
    defines: &["TM", "TN", "UNI", "WG", "PX"],
};

/// Depth that a turn of the uniform `gemm_dw` takes.
const TURN: i64 = 4;

/// Largest depth of a split of the uniform one: what uniform loads can count.
const UNIFORM_DEPTH: u64 = LEAST_DEPTH as u64;

/// What every split can have, if the depth is there.
pub(super) const LEAST_DEPTH: usize = UNIFORM_TURNS;

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let (mut products, mut gradients) = (Vec::new(), Vec::new());
    for t in [&TILES[..], &UNIFORM_GEMM_TILES].concat() {
        for wg in t.widths() {
            let [tm, tn, uni, wg] = t.defines(wg);
            products.extend([vec![tm, tn, uni, wg, 0], vec![tm, tn, uni, wg, 1]]);
        }
    }
    for t in [&WEIGHT_TILES[..], &UNIFORM_WEIGHT_TILES].concat() {
        for wg in t.widths() {
            let [tm, tn, uni, wg] = t.defines(wg);
            gradients.push(vec![tm, tn, uni, wg, turn(t)]);
        }
    }
    vec![(&GEMM, products), (&GEMM_DW, gradients)]
}

fn turn(tile: Tile) -> i64 {
    if tile.uniform { TURN } else { 1 }
}

/// `batch` products of `rows` x `depth` by `depth` x `columns`.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shape {
    pub batch: usize,
    pub rows: usize,
    pub columns: usize,
    pub depth: usize,
}

impl Shape {
    /// With the number of tiles across and down.
    pub fn params(&self, [across, down]: [u32; 2]) -> Params {
        Params {
            batch: self.batch as u32,
            rows: self.rows as u32,
            columns: self.columns as u32,
            depth: self.depth as u32,
            across,
            down,
        }
    }
}

/// `c` = `a` `b` for matrices `a` [batch, rows, depth] and `b` [batch, depth,
/// columns], or, `transposed`, [batch, columns, depth].
pub(super) fn launch(
    lower: &mut Lower,
    s: Shape,
    [a, b, c]: [TensorId; 3],
    transposed: bool,
    flops: u64,
) -> Result<()> {
    let (op, shared) = match transposed {
        false => ("gemm", [s.batch * s.depth, s.columns]),
        true => ("gemm_dx", [s.batch * s.columns, s.depth]),
    };
    let key = [s.batch, bucket(s.rows), s.columns, s.depth];
    let product = Product {
        batch: s.batch,
        rows: s.rows,
        columns: s.columns,
        vec: true,
        scalar: false,
        uniform: &UNIFORM_GEMM_TILES,
        shared,
        turns: s.depth / 4,
    };
    let sizes = [s.batch, s.rows, s.columns];
    let blocks = staged::blocks(lower, sizes, wanted_invocations(lower));
    let d = match divide(lower, op, &key, product, blocks) {
        Way::Tiles(division) => division,
        Way::Block(block) => {
            return staged::launch_product(lower, block, s, [a, b, c], transposed, flops);
        }
    };
    let [tm, tn, uni, wg] = d.tile.defines(d.lanes);
    let p = s.params([d.across, d.down]);
    lower.launch(Launch {
        kernel: &GEMM,
        defines: &[tm, tn, uni, wg, transposed.into()],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(a), Some(b), Some(c)],
        groups: d.groups,
        flops,
    })
}

/// Most bytes that splits should take.
const PARTIAL_BYTES: u64 = 32 << 20;

/// How the depth of transposed products is split.
#[derive(Debug, Clone, Copy)]
pub(super) struct SplitPlan {
    /// A register tile, or none where workgroups own staged ones.
    tile: Option<Tile>,
    per_split: usize,
}

impl SplitPlan {
    /// Splits of a depth.
    pub fn splits(self, depth: usize) -> usize {
        depth.div_ceil(self.per_split)
    }
}

/// A tile and splits for transposed products of this shape, in each of `rounds`.
pub(super) fn split(lower: &mut Lower, s: Shape, rounds: usize) -> SplitPlan {
    let shares = uniform_fits(lower, [s.batch * s.depth, s.columns], UNIFORM_TURNS);
    let divides = |t: &Tile| s.columns.is_multiple_of(t.tn as usize);
    let uniform = UNIFORM_WEIGHT_TILES.into_iter().filter(|t| shares && divides(t));
    let fits = |t: &Tile| t.tm == 4 || s.rows >= t.tm as usize;
    let wide = |t: &Tile| t.tn == 4 || s.columns > 4;
    let plain = WEIGHT_TILES.into_iter().filter(|t| fits(t) && wide(t));
    let tiles: Vec<Tile> = uniform.chain(plain).collect();
    let modest = |t: &&Tile| lower.caps.software || t.tm * t.tn <= 64;
    let rule = tiles.iter().position(|t| modest(&t)).unwrap_or(0);
    let key = [s.batch, bucket(s.depth), s.rows, s.columns];
    let bytes = (rounds * s.batch * (s.rows + 1) * s.columns * size_of::<f32>()) as u64;
    let room = (PARTIAL_BYTES / bytes).clamp(1, 64);
    let (_, staged) = staged::blocks(lower, [s.batch, s.rows, s.columns], 0);
    let names: Vec<_> = tiles.iter().map(|t| t.name).chain([STAGED_DW.name]).collect();
    let rule = if staged.is_some() { tiles.len() } else { rule };
    let tile = tiles.get(lower.choose("gemm_dw", &key, &names, rule)).copied();
    let Some(tile) = tile else {
        let groups = STAGED_DW.groups(s.batch, s.rows, s.columns);
        return SplitPlan {
            tile,
            per_split: per_split(lower, s.depth, [groups * 256, room], LOOP_TURNS),
        };
    };
    let d = Division::new(tile, [s.rows, s.columns], s.batch);
    let longest = if tile.uniform { UNIFORM_DEPTH } else { LOOP_TURNS };
    SplitPlan { tile: Some(tile), per_split: per_split(lower, s.depth, [d.tiles, room], longest) }
}

/// Depth of a split, so that there are enough of them for `invocations` each, but at
/// most `room`.
fn per_split(lower: &Lower, depth: usize, [invocations, room]: [u64; 2], longest: u64) -> usize {
    let wanted = wanted_invocations(lower).div_ceil(invocations).clamp(1, room);
    (depth as u64).div_ceil(wanted).min(longest).max(1) as usize
}

/// The splits from `first_split` on of `c` [splits, batch * (rows + 1) * columns]:
/// `a`^T `b` for `a` [batch, depth, rows] and `b` [batch, depth, columns], and behind
/// them the columns of `b` added up.
pub(super) fn launch_dw(
    lower: &mut Lower,
    s: Shape,
    plan: SplitPlan,
    [a, b, c]: [TensorId; 3],
    first_split: usize,
    flops: u64,
) -> Result<()> {
    let splits = plan.splits(s.depth);
    let division = plan.tile.map(|t| Division::new(t, [s.rows, s.columns], s.batch * splits));
    let [across, down] = match division {
        Some(d) => [d.across, d.down],
        None => STAGED_DW.tiles(s.rows, s.columns),
    };
    let p = SplitParams {
        batch: s.batch as u32,
        rows: s.rows as u32,
        columns: s.columns as u32,
        depth: s.depth as u32,
        across,
        down,
        splits: splits as u32,
        first_split: first_split as u32,
        per_split: plan.per_split as u32,
    };
    let Some(d) = division else {
        return staged::launch_product_dw(lower, p, [a, b, c], flops);
    };
    let [tm, tn, uni, wg] = d.tile.defines(d.lanes);
    lower.launch(Launch {
        kernel: &GEMM_DW,
        defines: &[tm, tn, uni, wg, turn(d.tile)],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(a), Some(b), Some(c)],
        groups: d.groups,
        flops,
    })
}
