//! The direct sum in register tiles: the portable kernels.
//!
//! `conv2d` and `conv2d_dx` give each invocation a few pixels by a few channels of the
//! result. `conv2d_dw` gives it a few input by a few output channels of one tap of the
//! window; it sums over the pixels of one split, and `sum_splits` adds the splits up in
//! order, so the result does not depend on which workgroup ran first.

use super::geometry::{Forward, Geometry, InputGrad, Params, WeightGrad};
use super::tiles::{
    COLUMNS, Division, LANES, ROWS, RegisterTile, TILES, TileDefines, UNIFORM_TILES,
    UNIFORM_WEIGHT_TILES, WEIGHT_TILES, busy_invocations, lanes_for,
};
use crate::graph::{Launch, Lower, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::ops::{GROUP, LOOP_TURNS, groups};
use crate::{Result, defines, named, params};

params! {
    struct WeightParams {
        n: u32, h: u32, w: u32, cin: u32, oh: u32, ow: u32, cout: u32,
        kernel: u32, stride: u32, pad: u32, tiles_m: u32, tiles_n: u32, tiles: u32, rows_per_split: u32,
    }
}

params! {
    struct SplitParams { weights: u32, biases: u32, splits: u32 }
}

// TM, TN, UNI and WG of all three kernels: see `TileDefines`.
defines! {
    struct ForwardDefines {
        /// Channels go by four.
        vec: bool,
        tm: u32 in ROWS,
        tn: u32 in COLUMNS,
        uni: bool,
        wg: u32 in LANES,
        emb: bool,
        residual: bool,
        /// x and the weight hold halves.
        half_x: bool,
        /// y and the residual hold halves.
        half_y: bool,
    }
    where |d| types_exist(d.vec, d.half_x, d.half_y)
        // Stems and heads, whose channels are no multiples of four, are uniform in 32 bits only.
        && (d.vec || !d.uni || !d.half_y)
        && tile(d.tm, d.tn, d.uni, d.wg).is_one_of(if d.uni { &UNIFORM_TILES } else { &TILES })
}

defines! {
    struct InputDefines {
        /// Channels go by four.
        vec: bool,
        tm: u32 in ROWS,
        tn: u32 in COLUMNS,
        uni: bool,
        wg: u32 in LANES,
        /// The window moves by one pixel.
        stride1: bool,
        acc: bool,
        /// dx and the weight hold halves.
        half_x: bool,
        /// dy holds halves.
        half_y: bool,
    }
    where |d| types_exist(d.vec, d.half_x, d.half_y)
        && (d.vec || !d.uni)
        && tile(d.tm, d.tn, d.uni, d.wg).is_one_of(if d.uni { &UNIFORM_TILES } else { &TILES })
}

defines! {
    struct WeightDefines {
        /// Channels go by four.
        vec: bool,
        tm: u32 in ROWS,
        tn: u32 in COLUMNS,
        uni: bool,
        wg: u32 in LANES,
        /// Pixels of a row that a turn takes.
        px: u32 in PIXELS,
        half_x: bool,
        half_y: bool,
        /// The result is the sum of one of several splits.
        split: bool,
        /// The result is the gradient.
        whole: bool,
        acc: bool,
    }
    where |d| types_exist(d.vec, d.half_x, d.half_y)
        && (d.uni || d.px == 1)
        && (d.vec || !d.uni)
        && d.whole != d.split
        && (d.whole || !d.acc)
        && tile(d.tm, d.tn, d.uni, d.wg)
            .is_one_of(if d.uni { &UNIFORM_WEIGHT_TILES } else { &WEIGHT_TILES })
}

defines! {
    struct SumDefines { acc: bool }
}

/// Everything is 32 bits, everything is half (which comes in fours), or a 32-bit image
/// becomes a half one (a stem).
fn types_exist(vec: bool, half_x: bool, half_y: bool) -> bool {
    !half_x || (vec && half_y)
}

fn tile(tm: u32, tn: u32, uni: bool, wg: u32) -> TileDefines {
    TileDefines { tm, tn, uni, wg }
}

static FORWARD: KernelOf<Params, ForwardDefines> = KernelOf::new(
    "conv2d",
    include_str!("../../../shaders/conv2d.wgsl"),
    &[
        read("x").half("HALF_X"),
        read("weight").half("HALF_X"),
        read("bias"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("HALF_Y"),
        write("y").half("HALF_Y"),
    ],
);

static INPUT_GRAD: KernelOf<Params, InputDefines> = KernelOf::new(
    "conv2d_dx",
    include_str!("../../../shaders/conv2d_dx.wgsl"),
    &[read("dy").half("HALF_Y"), read("weight").half("HALF_X"), accumulate("dx").half("HALF_X")],
);

static WEIGHT_GRAD: KernelOf<WeightParams, WeightDefines> = KernelOf::new(
    "conv2d_dw",
    include_str!("../../../shaders/conv2d_dw.wgsl"),
    &[
        read("x").half("HALF_X"),
        read("dy").half("HALF_Y"),
        write("partial").when("SPLIT"),
        accumulate("dweight").when("WHOLE"),
        accumulate("dbias").when("WHOLE"),
    ],
);

static SUM_SPLITS: KernelOf<SplitParams, SumDefines> = KernelOf::new(
    "sum_splits",
    include_str!("../../../shaders/sum_splits.wgsl"),
    &[read("partial"), accumulate("dweight"), accumulate("dbias")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![
        FORWARD.with_variants(),
        INPUT_GRAD.with_variants(),
        WEIGHT_GRAD.with_variants(),
        SUM_SPLITS.with_variants(),
    ]
}

/// Launches y = conv(x, weight) + additions.
pub(super) fn forward(lower: &mut Lower, g: &Geometry, d: Division, t: &Forward) -> Result<()> {
    let Forward { x, weight, add, y } = *t;
    let TileDefines { tm, tn, uni, wg } = d.defines();
    lower.launch(Launch {
        kernel: &FORWARD,
        defines: ForwardDefines {
            vec: g.vec(),
            tm,
            tn,
            uni,
            wg,
            emb: add.emb.is_some(),
            residual: add.residual.is_some(),
            half_x: lower.is_half(x),
            half_y: lower.is_half(y),
        },
        params: g.params(d.across, d.tiles as u32),
        bindings: &named![x, weight, bias: add.bias, emb: add.emb, residual: add.residual, y],
        groups: d.groups,
        flops: g.flops(),
    })
}

/// Launches the gradient of x.
pub(super) fn input_grad(
    lower: &mut Lower,
    g: &Geometry,
    d: Division,
    t: &InputGrad,
) -> Result<()> {
    let InputGrad { dy, weight, dx } = *t;
    let TileDefines { tm, tn, uni, wg } = d.defines();
    lower.launch(Launch {
        kernel: &INPUT_GRAD,
        defines: InputDefines {
            vec: g.vec(),
            tm,
            tn,
            uni,
            wg,
            stride1: g.stride == 1,
            acc: dx.add,
            half_x: lower.is_half(dx.tensor),
            half_y: lower.is_half(dy),
        },
        params: g.params(d.across, d.tiles as u32),
        bindings: &named![dy, weight, dx: dx.tensor],
        groups: d.groups,
        flops: g.flops(),
    })
}

/// Pixels of a row that a turn of the uniform weight gradient takes, by divisibility of
/// the row.
const PIXELS: [u32; 3] = [4, 2, 1];

/// Most splits of a weight's gradient.
const MOST_SPLITS: u64 = 64;

/// How the gradient of a weight is divided among invocations.
struct WeightDivision {
    tile: RegisterTile,
    /// Invocations of a workgroup.
    lanes: u32,
    /// Tiles along the input channels of one tap.
    tiles_m: usize,
    /// Tiles along the output channels.
    tiles_n: usize,
    /// Tiles of all taps.
    tiles: u64,
    /// Rows of the result, of all images, that a split sums.
    rows_per_split: u64,
    splits: u64,
}

impl WeightDivision {
    fn new(lower: &Lower, g: &Geometry, tile: RegisterTile) -> Self {
        let tiles_m = g.cin.div_ceil(tile.tm as usize);
        let tiles_n = g.cout.div_ceil(tile.tn as usize);
        let lanes = if tile.uniform { lanes_for(g.taps() * tiles_m) } else { GROUP as u32 };
        let tiles = (g.taps() * tiles_m * tiles_n) as u64;
        let rows = (g.n * g.oh()) as u64;
        let wanted = busy_invocations(lower).div_ceil(tiles).min(MOST_SPLITS);
        let longest = (LOOP_TURNS / (g.ow() as u64 + 1)).max(1);
        let rows_per_split = rows.div_ceil(wanted.min(rows)).min(longest);
        let splits = rows.div_ceil(rows_per_split);
        WeightDivision { tile, lanes, tiles_m, tiles_n, tiles, rows_per_split, splits }
    }

    fn params(&self, g: &Geometry) -> WeightParams {
        let Params { n, h, w, cin, oh, ow, cout, kernel, stride, pad, .. } = g.params(0, 0);
        WeightParams {
            n,
            h,
            w,
            cin,
            oh,
            ow,
            cout,
            kernel,
            stride,
            pad,
            tiles_m: self.tiles_m as u32,
            tiles_n: self.tiles_n as u32,
            tiles: (self.tiles * self.splits) as u32,
            rows_per_split: self.rows_per_split as u32,
        }
    }

    fn groups(&self, g: &Geometry) -> u64 {
        if self.tile.uniform {
            let lanes = (g.taps() * self.tiles_m) as u64;
            lanes.div_ceil(self.lanes.into()) * self.tiles_n as u64 * self.splits
        } else {
            groups(self.tiles * self.splits)
        }
    }
}

/// Launches the gradients of weight and bias.
pub(super) fn weight_grad(
    lower: &mut Lower,
    g: &Geometry,
    tile: RegisterTile,
    t: &WeightGrad,
) -> Result<()> {
    let WeightGrad { x, dy, dweight, dbias } = *t;
    let d = WeightDivision::new(lower, g, tile);
    let sums = g.taps() * g.cin * g.cout + g.cout;
    // One split needs no sum: it is the gradient.
    let partial = (d.splits > 1).then(|| lower.temp("partial", &[d.splits as usize, sums]));
    let whole = partial.is_none();
    let TileDefines { tm, tn, uni, wg } = tile.defines(d.lanes);
    let px = PIXELS.into_iter().find(|p| uni && g.ow().is_multiple_of(*p as usize));
    let result = |target: TensorId| whole.then_some(target);
    lower.launch(Launch {
        kernel: &WEIGHT_GRAD,
        defines: WeightDefines {
            vec: g.vec(),
            tm,
            tn,
            uni,
            wg,
            px: px.unwrap_or(1),
            half_x: lower.is_half(x),
            half_y: lower.is_half(dy),
            split: !whole,
            whole,
            acc: whole && dweight.add,
        },
        params: d.params(g),
        bindings: &named![
            x,
            dy,
            partial,
            dweight: result(dweight.tensor),
            dbias: result(dbias.tensor),
        ],
        groups: d.groups(g),
        flops: g.flops(),
    })?;
    match partial {
        Some(partial) => sum_splits(lower, g, partial, d.splits, t),
        None => Ok(()),
    }
}

/// Adds `splits` splits of `partial` [splits, weights + biases] up.
fn sum_splits(
    lower: &mut Lower,
    g: &Geometry,
    partial: TensorId,
    splits: u64,
    t: &WeightGrad,
) -> Result<()> {
    let weights = g.taps() * g.cin * g.cout;
    let sums = (weights + g.cout) as u64;
    lower.launch(Launch {
        kernel: &SUM_SPLITS,
        defines: SumDefines { acc: t.dweight.add },
        params: SplitParams {
            weights: weights as u32,
            biases: g.cout as u32,
            splits: splits as u32,
        },
        bindings: &named![partial, dweight: t.dweight.tensor, dbias: t.dbias.tensor],
        groups: groups(sums),
        flops: splits * sums,
    })
}
