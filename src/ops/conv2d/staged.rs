//! The direct sum in staged tiles: a workgroup owns a whole tile of the result and copies
//! slabs of both operands into workgroup memory first.
//!
//! These kernels are for GPUs. To software drivers workgroup memory is plain memory, behind
//! one more copy and barriers that split the kernel.

use super::coop::{self, COOP, CoopDefines};
use super::family::{Bindings, Family, FamilyDefines, KernelNames};
use super::geometry::{Direction, Forward, Geometry, InputGrad, Product};
use super::split::{Parts, Shares, sum_forward, sum_input_grad};
use super::tiles::{STAGED_ROWS, StagedTile};
use crate::graph::{Launch, Lower, NamedTensor};
use crate::kernel::Kernel;
use crate::{Result, defines, named};

defines! {
    struct StagedDefines {
        /// Rows that an invocation owns.
        tm: u32 in STAGED_ROWS,
        emb: bool,
        residual: bool,
        /// x, dx and the weight hold halves.
        half_x: bool,
        /// y, dy and the residual hold halves.
        half_y: bool,
        /// The result is the gradient of x.
        dx: bool,
        acc: bool,
        /// The sums are over a part of the window.
        split: bool,
    }
    where |d| (!d.half_x || d.half_y) && if d.split {
        !d.emb && !d.residual && !d.acc
    } else if d.dx {
        !d.emb && !d.residual
    } else {
        !d.acc
    }
}

impl FamilyDefines for StagedDefines {
    fn direction(&self) -> Direction {
        if self.dx { Direction::InputGrad } else { Direction::Forward }
    }

    fn is_part(&self) -> bool {
        self.split
    }
}

static BINDINGS: Bindings = Bindings::new("HALF_X", "HALF_Y");

/// `conv2d_staged` and its siblings, which multiply single numbers of 32 bits.
static STAGED: Family<StagedDefines> = Family::new(
    KernelNames {
        forward: "conv2d_staged",
        forward_part: "conv2d_staged_part",
        input_grad: "conv2d_dx_staged",
        input_grad_part: "conv2d_dx_staged_part",
    },
    include_str!("../../../shaders/conv2d_staged.wgsl"),
    &BINDINGS,
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    [STAGED.with_variants(), COOP.with_variants()].concat()
}

/// A launch of one direction.
struct StagedLaunch<'a> {
    direction: Direction,
    /// The image that is read, and the weight.
    operands: [NamedTensor; 2],
    /// What whole sums are stored to, and what is added to them.
    store: &'a [NamedTensor],
    emb: bool,
    residual: bool,
    acc: bool,
    half_x: bool,
    half_y: bool,
}

impl StagedLaunch<'_> {
    /// Launches the product in tiles of this kind. Where workgroups share a tile, their
    /// parts are returned, for who adds them up.
    fn run(self, lower: &mut Lower, g: &Geometry, tile: StagedTile) -> Result<Option<Parts>> {
        let shares = Shares::choose(lower, g, self.direction, tile);
        let Product { rows, columns, .. } = g.product(self.direction);
        let partial = (shares.splits > 1)
            .then(|| lower.temp("partial", &[shares.splits as usize, rows, columns]));
        let split = partial.is_some();
        let written = named![partial];
        let store = if split { &written[..] } else { self.store };
        let bindings = [&self.operands[..], store].concat();
        let [emb, residual, acc] = [self.emb, self.residual, self.acc].map(|on| on && !split);
        let dx = self.direction == Direction::InputGrad;
        let (params, groups, flops) = (shares.params(g), shares.groups(), g.flops());
        if tile.coop == 0 {
            let StagedLaunch { half_x, half_y, .. } = self;
            let tm = tile.tm();
            lower.launch(Launch {
                kernel: STAGED.kernel(self.direction, split),
                defines: StagedDefines { tm, emb, residual, half_x, half_y, dx, acc, split },
                params,
                bindings: &bindings,
                groups,
                flops,
            })?;
        } else {
            let (coop, wg) = (tile.coop, coop::workgroup(lower));
            lower.launch(Launch {
                kernel: COOP.kernel(self.direction, split),
                defines: CoopDefines { coop, wg, emb, residual, dx, acc, split },
                params,
                bindings: &bindings,
                groups,
                flops,
            })?;
        }
        Ok(partial.map(|partial| Parts { partial, splits: shares.splits }))
    }
}

/// Launches y = conv(x, weight) + additions.
pub(super) fn forward(
    lower: &mut Lower,
    g: &Geometry,
    tile: StagedTile,
    t: &Forward,
) -> Result<()> {
    let Forward { x, weight, add, y } = *t;
    let launch = StagedLaunch {
        direction: Direction::Forward,
        operands: named![x, weight],
        store: &named![bias: add.bias, emb: add.emb, residual: add.residual, y],
        emb: add.emb.is_some(),
        residual: add.residual.is_some(),
        acc: false,
        half_x: lower.is_half(x),
        half_y: lower.is_half(y),
    };
    match launch.run(lower, g, tile)? {
        Some(parts) => sum_forward(lower, g, parts, t),
        None => Ok(()),
    }
}

/// Launches the gradient of x.
pub(super) fn input_grad(
    lower: &mut Lower,
    g: &Geometry,
    tile: StagedTile,
    t: &InputGrad,
) -> Result<()> {
    let InputGrad { dy, weight, dx } = *t;
    let launch = StagedLaunch {
        direction: Direction::InputGrad,
        operands: named![dy, weight],
        store: &named![dx: dx.tensor],
        emb: false,
        residual: false,
        acc: dx.add,
        half_x: lower.is_half(dx.tensor),
        half_y: lower.is_half(dy),
    };
    match launch.run(lower, g, tile)? {
        Some(parts) => sum_input_grad(lower, g, parts, t),
        None => Ok(()),
    }
}
