//! Products for GPUs whose workgroups own a whole tile and stage slabs of both
//! operands in workgroup memory, and convolutions in the same manner, also on
//! cooperative matrices. The portable siblings, which load from storage into
//! register tiles, are in [`super::gemm`] and [`super::conv2d`]; which of them runs
//! is one choice ([`super::tiles::divide`]).
//!
//! On software drivers none of these pays: workgroup memory is plain memory there,
//! behind an extra copy and barriers that split the kernel.
//!
//! Cooperative matrices take halves and add their products up in 32 bits. Only
//! convolutions whose images and weight are stored as half use them, so that no operand is
//! rounded for it. Winograd's transforms are not: their values would have to be.

use super::conv2d::{self, BACKWARD_X, FORWARD, Geometry};
use super::conv2d_split;
use super::gemm::{Params, Shape, SplitParams};
use crate::caps::Coop;
use crate::graph::{Launch, Lower, Target, TensorId};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Result, params};

/// A tile that a workgroup owns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Block {
    pub rows: u32,
    pub columns: u32,
    /// Rows and columns of a cooperative matrix, 0 without.
    pub coop: u32,
    pub name: &'static str,
}

/// Staged tiles of 32 bits, largest first: 256 invocations of 8 x 4 or 4 x 4 elements.
const STAGED: [Block; 2] = [
    Block { rows: 128, columns: 64, coop: 0, name: "staged128x64" },
    Block { rows: 64, columns: 64, coop: 0, name: "staged64x64" },
];

/// The tile of weights' gradients.
pub(super) const STAGED_DW: Block = STAGED[1];

/// On cooperative matrices, best first.
const COOP: [Block; 2] = [
    Block { rows: 64, columns: 64, coop: 16, name: "coop16x16" },
    Block { rows: 64, columns: 64, coop: 8, name: "coop8x8" },
];

/// Invocations of a staged workgroup.
const STAGED_GROUP: u64 = 256;

/// Fewest rows and columns for which a staged tile is taken by rule: less would leave
/// half of it beyond the edges.
const FEWEST: usize = 64;

impl Block {
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
    fn tm(&self) -> i64 {
        i64::from(self.rows / 16)
    }
}

/// The staged tiles of a product of 32 bits and which of them, if any, the rule takes:
/// on GPUs, where at least a tile's rows and columns are there. Each invocation owns at least as
/// many elements as in the smallest register tile, so no parallelism is lost, and a
/// slab's element is loaded once for 64 products instead of for four to eight.
/// The larger tile is taken where it still leaves `wanted` invocations.
pub(super) fn blocks(
    lower: &Lower,
    [batch, rows, columns]: [usize; 3],
    wanted: u64,
) -> (Vec<Block>, Option<Block>) {
    let large = !lower.caps.software && rows >= FEWEST && columns >= FEWEST;
    let busy = |b: &&Block| b.groups(batch, rows, columns) * STAGED_GROUP >= wanted;
    let rule = *STAGED.iter().find(busy).unwrap_or(&STAGED[1]);
    (STAGED.to_vec(), large.then_some(rule))
}

/// The same for convolutions; where all images and the weight are `half`, cooperative
/// matrices come first if the device has them.
pub(super) fn conv_blocks(
    lower: &Lower,
    shape: [usize; 3],
    wanted: u64,
    half: bool,
) -> (Vec<Block>, Option<Block>) {
    let (staged, rule) = blocks(lower, shape, wanted);
    let Some(coop) = lower.caps.coop.filter(|_| half) else { return (staged, rule) };
    let offered = COOP.into_iter().filter(|b| coop.has(b.coop));
    let all: Vec<Block> = offered.chain(staged).collect();
    let rule = rule.map(|_| all[0]);
    (all, rule)
}

/// Whether a convolution of 3x3 between half images is better done directly than by Winograd's
/// filters: on cooperative matrices, whose rate exceeds that of 32-bit multiply-adds by
/// more than the four that a filter saves at best.
pub(super) fn prefers_direct(lower: &Lower, [rows, columns]: [usize; 2], half: bool) -> bool {
    let (_, rule) = conv_blocks(lower, [1, rows, columns], 0, half);
    rule.is_some_and(|b| b.coop != 0)
}

static GEMM: Kernel = Kernel {
    name: "gemm_staged",
    source: include_str!("../../shaders/gemm_staged.wgsl"),
    bindings: &[read("a"), read("b"), write("c")],
    params: Params::FIELDS,
    defines: &["TM", "TRANSPOSED"],
};

/// The launches of one split range together define every element.
static GEMM_DW: Kernel = Kernel {
    name: "gemm_dw_staged",
    source: include_str!("../../shaders/gemm_dw_staged.wgsl"),
    bindings: &[read("a"), read("b"), write("c")],
    params: SplitParams::FIELDS,
    defines: &[],
};

const CONV_SOURCE: &str = include_str!("../../shaders/conv2d_staged.wgsl");

static CONV: Kernel = Kernel {
    name: "conv2d_staged",
    source: CONV_SOURCE,
    bindings: FORWARD.bindings,
    params: ConvParams::FIELDS,
    defines: &["TM", "EMB", "RESIDUAL", "HALF_X", "HALF_Y", "DX", "ACC", "SPLIT"],
};

/// The part of a split product.
static CONV_PART: Kernel = Kernel {
    name: "conv2d_staged_part",
    source: CONV_SOURCE,
    bindings: &[read("x").half("HALF_X"), read("weight").half("HALF_X"), write("partial")],
    params: ConvParams::FIELDS,
    defines: CONV.defines,
};

static CONV_DX_PART: Kernel = Kernel {
    name: "conv2d_dx_staged_part",
    source: CONV_SOURCE,
    bindings: &[read("dy").half("HALF_Y"), read("weight").half("HALF_X"), write("partial")],
    params: ConvParams::FIELDS,
    defines: CONV.defines,
};

static CONV_DX: Kernel = Kernel {
    name: "conv2d_dx_staged",
    source: CONV_SOURCE,
    bindings: BACKWARD_X.bindings,
    params: ConvParams::FIELDS,
    defines: CONV.defines,
};

const COOP_SOURCE: &str = include_str!("../../shaders/conv2d_coop.wgsl");

static CONV_COOP: Kernel = Kernel {
    name: "conv2d_coop",
    source: COOP_SOURCE,
    bindings: &[
        read("x").half("COOP"),
        read("weight").half("COOP"),
        read("bias"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("COOP"),
        write("y").half("COOP"),
    ],
    params: ConvParams::FIELDS,
    defines: &["COOP", "WG", "EMB", "RESIDUAL", "DX", "ACC", "SPLIT"],
};

static CONV_COOP_PART: Kernel = Kernel {
    name: "conv2d_coop_part",
    source: COOP_SOURCE,
    bindings: &[read("x").half("COOP"), read("weight").half("COOP"), write("partial")],
    params: ConvParams::FIELDS,
    defines: CONV_COOP.defines,
};

static CONV_DX_COOP_PART: Kernel = Kernel {
    name: "conv2d_dx_coop_part",
    source: COOP_SOURCE,
    bindings: &[read("dy").half("COOP"), read("weight").half("COOP"), write("partial")],
    params: ConvParams::FIELDS,
    defines: CONV_COOP.defines,
};

static CONV_DX_COOP: Kernel = Kernel {
    name: "conv2d_dx_coop",
    source: COOP_SOURCE,
    bindings: &[
        read("dy").half("COOP"),
        read("weight").half("COOP"),
        accumulate("dx").half("COOP"),
    ],
    params: ConvParams::FIELDS,
    defines: CONV_COOP.defines,
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let flags = [0, 1];
    let pairs = flags.map(|a| flags.map(|b| [a, b])).concat();
    let tm = STAGED.map(|b| b.tm());
    let products = tm.iter().flat_map(|tm| flags.map(|t| vec![*tm, t])).collect();
    let [mut forward, mut dx, mut part, mut dx_part] = [const { Vec::new() }; 4];
    for tm in tm {
        // HALF_X, HALF_Y: 32 bits, the border to half, half.
        for [hx, hy] in [[0, 0], [0, 1], [1, 1]] {
            forward.extend(pairs.iter().map(|[e, r]| vec![tm, *e, *r, hx, hy, 0, 0, 0]));
            dx.extend(flags.map(|acc| vec![tm, 0, 0, hx, hy, 1, acc, 0]));
            part.push(vec![tm, 0, 0, hx, hy, 0, 0, 1]);
            dx_part.push(vec![tm, 0, 0, hx, hy, 1, 0, 1]);
        }
    }
    let [mut coop, mut coop_dx, mut coop_part, mut coop_dx_part] = [const { Vec::new() }; 4];
    for size in COOP.map(|b| i64::from(b.coop)) {
        for wg in Coop::INVOCATIONS.map(i64::from) {
            coop.extend(pairs.iter().map(|[e, r]| vec![size, wg, *e, *r, 0, 0, 0]));
            coop_dx.extend(flags.map(|acc| vec![size, wg, 0, 0, 1, acc, 0]));
            coop_part.push(vec![size, wg, 0, 0, 0, 0, 1]);
            coop_dx_part.push(vec![size, wg, 0, 0, 1, 0, 1]);
        }
    }
    vec![
        (&GEMM, products),
        (&GEMM_DW, vec![vec![]]),
        (&CONV, forward),
        (&CONV_DX, dx),
        (&CONV_PART, part),
        (&CONV_DX_PART, dx_part),
        (&CONV_COOP, coop),
        (&CONV_DX_COOP, coop_dx),
        (&CONV_COOP_PART, coop_part),
        (&CONV_DX_COOP_PART, coop_dx_part),
    ]
}

/// [`super::gemm::launch`] with a staged tile.
pub(super) fn launch_product(
    lower: &mut Lower,
    block: Block,
    s: Shape,
    [a, b, c]: [TensorId; 3],
    transposed: bool,
    flops: u64,
) -> Result<()> {
    let [across, down] = block.tiles(s.rows, s.columns);
    lower.launch(Launch {
        kernel: &GEMM,
        defines: &[block.tm(), transposed.into()],
        params: bytemuck::bytes_of(&s.params([across, down])),
        bindings: &[Some(a), Some(b), Some(c)],
        groups: block.groups(s.batch, s.rows, s.columns),
        flops,
    })
}

/// [`super::gemm::launch_dw`] with a staged tile.
pub(super) fn launch_product_dw(
    lower: &mut Lower,
    p: SplitParams,
    [a, b, c]: [TensorId; 3],
    flops: u64,
) -> Result<()> {
    let matrices = p.batch as usize * p.splits as usize;
    lower.launch(Launch {
        kernel: &GEMM_DW,
        defines: &[],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(a), Some(b), Some(c)],
        groups: STAGED_DW.groups(matrices, p.rows as usize, p.columns as usize),
        flops,
    })
}

/// Workgroup size for cooperative kernels: four of the largest subgroups.
fn coop_group(lower: &Lower) -> i64 {
    i64::from(lower.caps.coop.map_or(Coop::INVOCATIONS[0], Coop::invocations))
}

params! {
    /// Those of [`super::conv2d`], and the taps of the window that a workgroup sums.
    struct ConvParams {
        n: u32, h: u32, w: u32, cin: u32, oh: u32, ow: u32, cout: u32,
        kernel: u32, stride: u32, pad: u32, tiles_n: u32, tiles: u32, taps: u32,
    }
}

/// Workgroups of a convolution: tiles across and in all, and how many share each.
#[derive(Clone, Copy)]
struct Shares {
    across: u32,
    tiles: u32,
    splits: u32,
}

impl Shares {
    /// For a result of `rows` x `columns` that sums `depth` channels a tap.
    fn of(lower: &mut Lower, block: Block, g: &Geometry, product: [usize; 3]) -> Shares {
        let [rows, columns, depth] = product;
        let [across, down] = block.tiles(rows, columns);
        let tiles = across * down;
        Shares { across, tiles, splits: conv2d_split::splits(lower, g, tiles.into(), depth) }
    }

    fn params(self, g: &Geometry) -> ConvParams {
        let conv2d::Params { n, h, w, cin, oh, ow, cout, kernel, stride, pad, tiles_n, tiles } =
            g.params(self.across, self.tiles);
        let taps = (kernel * kernel).div_ceil(self.splits);
        ConvParams { n, h, w, cin, oh, ow, cout, kernel, stride, pad, tiles_n, tiles, taps }
    }

    fn groups(self) -> u64 {
        u64::from(self.tiles) * u64::from(self.splits)
    }
}

/// One way through a convolution: its kernels, staged and cooperative, for whole sums and
/// for parts of them.
struct Pass {
    whole: [&'static Kernel; 2],
    part: [&'static Kernel; 2],
    dx: i64,
}

const FORWARD_PASS: Pass =
    Pass { whole: [&CONV, &CONV_COOP], part: [&CONV_PART, &CONV_COOP_PART], dx: 0 };

const DX_PASS: Pass =
    Pass { whole: [&CONV_DX, &CONV_DX_COOP], part: [&CONV_DX_PART, &CONV_DX_COOP_PART], dx: 1 };

impl Pass {
    /// Launches a product of `rows` x `columns` x `depth`, with the defines HALF_X and
    /// HALF_Y, of the tensors `from`: whole, with `flags` EMB, RESIDUAL and ACC and the tensors `rest`
    /// behind the weight, or in parts. These are returned for who adds them up.
    fn launch(
        &self,
        lower: &mut Lower,
        block: Block,
        g: &Geometry,
        (product, half): ([usize; 3], [i64; 2]),
        from: [TensorId; 2],
        (flags, rest): ([bool; 3], &[Option<TensorId>]),
    ) -> Result<Option<(TensorId, u32)>> {
        let shares = Shares::of(lower, block, g, product);
        let [rows, columns, _] = product;
        let partial = (shares.splits > 1)
            .then(|| lower.temp("partial", &[shares.splits as usize, rows, columns]));
        let [emb, residual, acc] = flags.map(|f| i64::from(f && partial.is_none()));
        let split = i64::from(partial.is_some());
        let kernels = if partial.is_some() { self.part } else { self.whole };
        let [hx, hy] = half;
        let (cooperative, defines) = match block.coop {
            0 => (0, vec![block.tm(), emb, residual, hx, hy, self.dx, acc, split]),
            c => (1, vec![c.into(), coop_group(lower), emb, residual, self.dx, acc, split]),
        };
        let rest = if partial.is_some() { &[partial][..] } else { rest };
        lower.launch(Launch {
            kernel: kernels[cooperative],
            defines: &defines,
            params: bytemuck::bytes_of(&shares.params(g)),
            bindings: &[&from.map(Some)[..], rest].concat(),
            groups: shares.groups(),
            flops: g.flops(),
        })?;
        Ok(partial.map(|p| (p, shares.splits)))
    }
}

/// [`super::conv2d`]'s forward launch; `add` are emb and residual.
pub(super) fn launch_forward(
    lower: &mut Lower,
    block: Block,
    g: &Geometry,
    [x, weight, bias, y]: [TensorId; 4],
    add: [Option<TensorId>; 2],
) -> Result<()> {
    let product = [g.n * g.oh() * g.ow(), g.cout, g.cin];
    let half = [lower.half(x), lower.half(y)];
    let flags = [add[0].is_some(), add[1].is_some(), false];
    let rest = [Some(bias), add[0], add[1], Some(y)];
    match FORWARD_PASS.launch(lower, block, g, (product, half), [x, weight], (flags, &rest))? {
        Some(parts) => conv2d_split::launch_sum(lower, g, parts, bias, add, y),
        None => Ok(()),
    }
}

/// [`super::conv2d`]'s launch of the input's gradient.
pub(super) fn launch_backward_x(
    lower: &mut Lower,
    block: Block,
    g: &Geometry,
    [dy, weight]: [TensorId; 2],
    dx: Target,
) -> Result<()> {
    let product = [g.n * g.h * g.w, g.cin, g.cout];
    let half = [lower.half(dx.tensor), lower.half(dy)];
    let (flags, rest) = ([false, false, dx.add], [Some(dx.tensor)]);
    match DX_PASS.launch(lower, block, g, (product, half), [dy, weight], (flags, &rest))? {
        Some(parts) => conv2d_split::launch_sum_dx(lower, g, parts, dx),
        None => Ok(()),
    }
}
