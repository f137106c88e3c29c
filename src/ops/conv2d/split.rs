//! Convolutions in staged tiles whose sums are split.
//!
//! Where an image is small and its channels are many, as in the middle of a U-Net at batch
//! 1, the tiles of a result are too few for the processors of a GPU. Several workgroups
//! then share a tile. Each sums some of the window's taps, and a second launch adds these
//! parts up and does what else belongs to the store.

use super::geometry::{Direction, Forward, Geometry, InputGrad, Params, Product};
use super::tiles::StagedTile;
use crate::graph::{Launch, Lower, TensorId, bucket};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::ops::groups;
use crate::{Result, defines, named, params};

params! {
    /// The block of the kernels with staged tiles: [`Params`], and the taps of the window
    /// that a workgroup sums.
    pub(super) struct StagedParams {
        n: u32, h: u32, w: u32, cin: u32, oh: u32, ow: u32, cout: u32,
        kernel: u32, stride: u32, pad: u32, tiles_n: u32, tiles: u32, taps: u32,
    }
}

params! {
    struct SumParams { quads: u32, splits: u32, cin: u32, oh: u32, ow: u32, cout: u32 }
}

defines! {
    struct SumDefines {
        emb: bool,
        residual: bool,
        /// The result holds halves.
        half: bool,
        /// The result is the gradient of x.
        dx: bool,
        acc: bool,
    }
    where |d| if d.dx { !d.emb && !d.residual } else { !d.acc }
}

const SOURCE: &str = include_str!("../../../shaders/conv2d_sum.wgsl");

static SUM: KernelOf<SumParams, SumDefines> = KernelOf::new(
    "conv2d_sum",
    SOURCE,
    &[
        read("partial"),
        read("bias"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("HALF"),
        write("y").half("HALF"),
    ],
)
.only(|d| !d.dx);

static SUM_DX: KernelOf<SumParams, SumDefines> =
    KernelOf::new("conv2d_dx_sum", SOURCE, &[read("partial"), accumulate("dx").half("HALF")])
        .only(|d| d.dx);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![SUM.with_variants(), SUM_DX.with_variants()]
}

/// Among how many workgroups the nine taps of a window are divided.
const SPLITS: [(&str, u32); 3] = [("whole", 1), ("split3", 3), ("split9", 9)];

/// Workgroups that occupy a GPU: large ones have up to some 140 multiprocessors, each of
/// which holds a few of these.
const BUSY: u64 = 256;

/// How the tiles of a convolution are shared.
#[derive(Debug, Clone, Copy)]
pub(super) struct Shares {
    /// Tiles along the channels.
    across: u32,
    /// Tiles in all.
    tiles: u32,
    /// Workgroups that share a tile.
    pub splits: u32,
}

impl Shares {
    /// Chooses how many workgroups share a tile of a result.
    pub fn choose(
        lower: &mut Lower,
        g: &Geometry,
        direction: Direction,
        tile: StagedTile,
    ) -> Shares {
        let Product { rows, columns, depth } = g.product(direction);
        let [across, down] = tile.tiles(rows, columns);
        let tiles = across * down;
        if g.kernel != 3 {
            return Shares { across, tiles, splits: 1 };
        }
        let enough = SPLITS.iter().position(|s| u64::from(tiles) * u64::from(s.1) >= BUSY);
        let rule = if lower.caps.software { 0 } else { enough.unwrap_or(SPLITS.len() - 1) };
        let key = [bucket(tiles as usize), depth];
        let chosen = lower.choose("conv2d_split", &key, &SPLITS.map(|s| s.0), rule);
        Shares { across, tiles, splits: SPLITS[chosen].1 }
    }

    pub fn params(self, g: &Geometry) -> StagedParams {
        let Params { n, h, w, cin, oh, ow, cout, kernel, stride, pad, tiles_n, tiles } =
            g.params(self.across, self.tiles);
        let taps = (kernel * kernel).div_ceil(self.splits);
        StagedParams { n, h, w, cin, oh, ow, cout, kernel, stride, pad, tiles_n, tiles, taps }
    }

    /// Workgroups in all.
    pub fn groups(self) -> u64 {
        u64::from(self.tiles) * u64::from(self.splits)
    }
}

/// Sums over parts of the window.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parts {
    /// [splits, rows, columns] of the product.
    pub partial: TensorId,
    pub splits: u32,
}

/// y = the sum of the parts + additions.
pub(super) fn sum_forward(
    lower: &mut Lower,
    g: &Geometry,
    parts: Parts,
    t: &Forward,
) -> Result<()> {
    let Forward { add, y, .. } = *t;
    let params = sum_params(g, Direction::Forward, parts);
    lower.launch(Launch {
        kernel: &SUM,
        defines: SumDefines {
            emb: add.emb.is_some(),
            residual: add.residual.is_some(),
            half: lower.is_half(y),
            dx: false,
            acc: false,
        },
        params,
        bindings: &named![
            partial: parts.partial,
            bias: add.bias,
            emb: add.emb,
            residual: add.residual,
            y,
        ],
        groups: groups(params.quads.into()),
        flops: 0,
    })
}

/// The gradient of x is the sum of the parts.
pub(super) fn sum_input_grad(
    lower: &mut Lower,
    g: &Geometry,
    parts: Parts,
    t: &InputGrad,
) -> Result<()> {
    let dx = t.dx;
    let params = sum_params(g, Direction::InputGrad, parts);
    lower.launch(Launch {
        kernel: &SUM_DX,
        defines: SumDefines {
            emb: false,
            residual: false,
            half: lower.is_half(dx.tensor),
            dx: true,
            acc: dx.add,
        },
        params,
        bindings: &named![partial: parts.partial, dx: dx.tensor],
        groups: groups(params.quads.into()),
        flops: 0,
    })
}

fn sum_params(g: &Geometry, direction: Direction, parts: Parts) -> SumParams {
    let Product { rows, columns, .. } = g.product(direction);
    SumParams {
        quads: (rows * columns / 4) as u32,
        splits: parts.splits,
        cin: g.cin as u32,
        oh: g.oh() as u32,
        ow: g.ow() as u32,
        cout: g.cout as u32,
    }
}
