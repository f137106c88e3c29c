//! Staged tiles on cooperative matrices (tensor cores, simdgroup matrices): the kernels.
//!
//! Cooperative matrices multiply halves and add the products up in 32 bits. Only
//! convolutions whose images and weight are stored as half use them, so no operand is
//! rounded for it. Winograd's products do not: the transformed values would have to be
//! rounded.

use super::family::{Bindings, Family, FamilyDefines, KernelNames};
use super::geometry::Direction;
use super::tiles::COOP_TILES;
use crate::caps::Coop;
use crate::defines;
use crate::graph::Lower;

defines! {
    pub(super) struct CoopDefines {
        /// Rows and columns of a matrix.
        coop: u32 in COOP_TILES.map(|t| t.coop),
        /// Invocations of a workgroup: four of the largest subgroups.
        wg: u32 in Coop::INVOCATIONS,
        emb: bool,
        residual: bool,
        /// The result is the gradient of x.
        dx: bool,
        acc: bool,
        /// The sums are over a part of the window.
        split: bool,
    }
    where |d| if d.split {
        !d.emb && !d.residual && !d.acc
    } else if d.dx {
        !d.emb && !d.residual
    } else {
        !d.acc
    }
}

impl FamilyDefines for CoopDefines {
    fn direction(&self) -> Direction {
        if self.dx { Direction::InputGrad } else { Direction::Forward }
    }

    fn is_part(&self) -> bool {
        self.split
    }
}

static BINDINGS: Bindings = Bindings::new("COOP", "COOP");

/// `conv2d_coop` and its siblings.
pub(super) static COOP: Family<CoopDefines> = Family::new(
    KernelNames {
        forward: "conv2d_coop",
        forward_part: "conv2d_coop_part",
        input_grad: "conv2d_dx_coop",
        input_grad_part: "conv2d_dx_coop_part",
    },
    include_str!("../../../shaders/conv2d_coop.wgsl"),
    &BINDINGS,
);

/// Invocations of a workgroup on the device that is lowered for.
pub(super) fn workgroup(lower: &Lower) -> u32 {
    lower.caps.coop.map_or(Coop::INVOCATIONS[0], Coop::invocations)
}
