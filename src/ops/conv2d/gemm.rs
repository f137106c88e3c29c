//! Batches of matrix products: what Winograd's convolutions consist of between their
//! transforms ([`super::winograd`]). All is 32 bits and by `vec4`s.

use super::tiles::{
    COLUMNS, Division, LANES, ROWS, RegisterTile, STAGED_ROWS, STAGED_WEIGHT_TILE, StagedTile,
    TILES, TileDefines, UNIFORM_GEMM_TILES, UNIFORM_TURNS, UNIFORM_WEIGHT_TILES, WEIGHT_TILES,
    busy_invocations, uniform_fits,
};
use super::way::{TiledProduct, Tiles, choose_tiles, staged_for_products};
use crate::graph::{Launch, Lower, TensorId, bucket};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::ops::LOOP_TURNS;
use crate::{Result, defines, named, params};

params! {
    struct Params { batch: u32, rows: u32, columns: u32, depth: u32, across: u32, down: u32 }
}

params! {
    struct SplitParams {
        batch: u32, rows: u32, columns: u32, depth: u32, across: u32, down: u32,
        splits: u32, first_split: u32, per_split: u32,
    }
}

defines! {
    struct ProductDefines {
        tm: u32 in ROWS,
        tn: u32 in COLUMNS,
        uni: bool,
        wg: u32 in LANES,
        /// The columns of b lie along the depth.
        transposed: bool,
    }
    where |d| TileDefines { tm: d.tm, tn: d.tn, uni: d.uni, wg: d.wg }
        .is_one_of(if d.uni { &UNIFORM_GEMM_TILES } else { &TILES })
}

defines! {
    struct GradDefines {
        tm: u32 in ROWS,
        tn: u32 in COLUMNS,
        uni: bool,
        wg: u32 in LANES,
        /// Depth that a turn takes.
        px: u32 in [1, UNIFORM_TURN],
    }
    where |d| d.px == turn(d.uni)
        && TileDefines { tm: d.tm, tn: d.tn, uni: d.uni, wg: d.wg }
            .is_one_of(if d.uni { &UNIFORM_WEIGHT_TILES } else { &WEIGHT_TILES })
}

defines! {
    struct StagedDefines {
        /// Rows that an invocation owns.
        tm: u32 in STAGED_ROWS,
        /// The columns of b lie along the depth.
        transposed: bool,
    }
}

static GEMM: KernelOf<Params, ProductDefines> = KernelOf::new(
    "gemm",
    include_str!("../../../shaders/gemm.wgsl"),
    &[read("a"), read("b"), write("c")],
);

/// The launches of one split range together define every element.
static GEMM_DW: KernelOf<SplitParams, GradDefines> = KernelOf::new(
    "gemm_dw",
    include_str!("../../../shaders/gemm_dw.wgsl"),
    &[read("a"), read("b"), write("c")],
);

static GEMM_STAGED: KernelOf<Params, StagedDefines> = KernelOf::new(
    "gemm_staged",
    include_str!("../../../shaders/gemm_staged.wgsl"),
    &[read("a"), read("b"), write("c")],
);

/// The launches of one split range together define every element.
static GEMM_DW_STAGED: KernelOf<SplitParams, ()> = KernelOf::new(
    "gemm_dw_staged",
    include_str!("../../../shaders/gemm_dw_staged.wgsl"),
    &[read("a"), read("b"), write("c")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![
        GEMM.with_variants(),
        GEMM_DW.with_variants(),
        GEMM_STAGED.with_variants(),
        GEMM_DW_STAGED.with_variants(),
    ]
}

/// Depth that a turn of the uniform `gemm_dw` takes.
const UNIFORM_TURN: u32 = 4;

fn turn(uniform: bool) -> u32 {
    if uniform { UNIFORM_TURN } else { 1 }
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
    fn params(&self, [across, down]: [u32; 2]) -> Params {
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

/// The matrices of a product.
#[derive(Debug, Clone, Copy)]
pub(super) struct Matrices {
    pub a: TensorId,
    pub b: TensorId,
    /// The result.
    pub c: TensorId,
}

/// `c` = `a` `b` for matrices `a` [batch, rows, depth] and `b` [batch, depth,
/// columns], or, `transposed`, [batch, columns, depth].
pub(super) fn launch(
    lower: &mut Lower,
    s: Shape,
    m: Matrices,
    transposed: bool,
    flops: u64,
) -> Result<()> {
    let (op, shared) = match transposed {
        false => ("gemm", [s.batch * s.depth, s.columns]),
        true => ("gemm_dx", [s.batch * s.columns, s.depth]),
    };
    let key = [s.batch, bucket(s.rows), s.columns, s.depth];
    let product = TiledProduct {
        batch: s.batch,
        rows: s.rows,
        columns: s.columns,
        vec: true,
        uniform_scalars: false,
        uniform: &UNIFORM_GEMM_TILES,
        shared,
        turns: s.depth / 4,
    };
    let sizes = [s.batch, s.rows, s.columns];
    let staged = staged_for_products(lower, sizes, busy_invocations(lower));
    match choose_tiles(lower, op, &key, product, staged) {
        Tiles::Register(d) => launch_register(lower, s, d, m, transposed, flops),
        Tiles::Staged(tile) => launch_staged(lower, s, tile, m, transposed, flops),
    }
}

fn launch_register(
    lower: &mut Lower,
    s: Shape,
    d: Division,
    Matrices { a, b, c }: Matrices,
    transposed: bool,
    flops: u64,
) -> Result<()> {
    let TileDefines { tm, tn, uni, wg } = d.defines();
    lower.launch(Launch {
        kernel: &GEMM,
        defines: ProductDefines { tm, tn, uni, wg, transposed },
        params: s.params([d.across, d.down]),
        bindings: &named![a, b, c],
        groups: d.groups,
        flops,
    })
}

fn launch_staged(
    lower: &mut Lower,
    s: Shape,
    tile: StagedTile,
    Matrices { a, b, c }: Matrices,
    transposed: bool,
    flops: u64,
) -> Result<()> {
    lower.launch(Launch {
        kernel: &GEMM_STAGED,
        defines: StagedDefines { tm: tile.tm(), transposed },
        params: s.params(tile.tiles(s.rows, s.columns)),
        bindings: &named![a, b, c],
        groups: tile.groups(s.batch, s.rows, s.columns),
        flops,
    })
}

/// Most bytes that the sums of all splits should take.
const PARTIAL_BYTES: u64 = 32 << 20;

/// Most splits of a round.
const MOST_SPLITS: u64 = 64;

/// How the depth of transposed products is split.
#[derive(Debug, Clone, Copy)]
pub(super) struct DepthSplit {
    /// A register tile, or none where workgroups own staged ones.
    tile: Option<RegisterTile>,
    /// Depth of a split; the last one may be less deep.
    per_split: usize,
}

impl DepthSplit {
    /// Chooses a tile and splits for transposed products of this shape, in each of
    /// `rounds`.
    pub fn choose(lower: &mut Lower, s: Shape, rounds: usize) -> Self {
        let shares = uniform_fits(lower, [s.batch * s.depth, s.columns], UNIFORM_TURNS);
        let divides = |t: &RegisterTile| s.columns.is_multiple_of(t.tn as usize);
        let uniform = UNIFORM_WEIGHT_TILES.into_iter().filter(|t| shares && divides(t));
        let fits = |t: &RegisterTile| t.tm == 4 || s.rows >= t.tm as usize;
        let wide = |t: &RegisterTile| t.tn == 4 || s.columns > 4;
        let plain = WEIGHT_TILES.into_iter().filter(|t| fits(t) && wide(t));
        let tiles: Vec<RegisterTile> = uniform.chain(plain).collect();
        let modest = |t: &RegisterTile| lower.caps.software || t.tm * t.tn <= 64;
        let staged = staged_for_products(lower, [s.batch, s.rows, s.columns], 0).rule.is_some();
        let rule = match staged {
            true => tiles.len(),
            false => tiles.iter().position(modest).unwrap_or(0),
        };
        let key = [s.batch, bucket(s.depth), s.rows, s.columns];
        let names: Vec<_> = tiles.iter().map(|t| t.name).chain([STAGED_WEIGHT_TILE.name]).collect();
        let tile = tiles.get(lower.choose("gemm_dw", &key, &names, rule)).copied();
        let (invocations, longest) = match tile {
            None => (STAGED_WEIGHT_TILE.groups(s.batch, s.rows, s.columns) * 256, LOOP_TURNS),
            Some(tile) => {
                let longest = if tile.uniform { UNIFORM_TURNS as u64 } else { LOOP_TURNS };
                (Division::new(tile, [s.rows, s.columns], s.batch).tiles, longest)
            }
        };
        let bytes = (rounds * s.batch * (s.rows + 1) * s.columns * size_of::<f32>()) as u64;
        let room = (PARTIAL_BYTES / bytes).clamp(1, MOST_SPLITS);
        let wanted = busy_invocations(lower).div_ceil(invocations).clamp(1, room);
        let per_split = (s.depth as u64).div_ceil(wanted).min(longest).max(1) as usize;
        DepthSplit { tile, per_split }
    }

    /// Splits of a depth.
    pub fn splits(self, depth: usize) -> usize {
        depth.div_ceil(self.per_split)
    }
}

/// The splits from `first_split` on of `c` [splits, batch * (rows + 1) * columns]:
/// `a`^T `b` for `a` [batch, depth, rows] and `b` [batch, depth, columns], and behind
/// them the columns of `b` added up.
pub(super) fn launch_dw(
    lower: &mut Lower,
    s: Shape,
    split: DepthSplit,
    Matrices { a, b, c }: Matrices,
    first_split: usize,
    flops: u64,
) -> Result<()> {
    let splits = split.splits(s.depth);
    let params = |[across, down]: [u32; 2]| SplitParams {
        batch: s.batch as u32,
        rows: s.rows as u32,
        columns: s.columns as u32,
        depth: s.depth as u32,
        across,
        down,
        splits: splits as u32,
        first_split: first_split as u32,
        per_split: split.per_split as u32,
    };
    let Some(tile) = split.tile else {
        return lower.launch(Launch {
            kernel: &GEMM_DW_STAGED,
            defines: (),
            params: params(STAGED_WEIGHT_TILE.tiles(s.rows, s.columns)),
            bindings: &named![a, b, c],
            groups: STAGED_WEIGHT_TILE.groups(s.batch * splits, s.rows, s.columns),
            flops,
        });
    };
    let d = Division::new(tile, [s.rows, s.columns], s.batch * splits);
    let TileDefines { tm, tn, uni, wg } = d.defines();
    lower.launch(Launch {
        kernel: &GEMM_DW,
        defines: GradDefines { tm, tn, uni, wg, px: turn(uni) },
        params: params([d.across, d.down]),
        bindings: &named![a, b, c],
        groups: d.groups,
        flops,
    })
}
