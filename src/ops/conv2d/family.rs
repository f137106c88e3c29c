//! The four kernels that one shader with staged tiles gives: for each direction one that
//! stores whole sums and one that leaves the sums over a part of the window.

use super::geometry::Direction;
use super::split::StagedParams;
use crate::kernel::{Binding, Defines, Kernel, KernelOf, accumulate, read, write};

/// The defines of such a shader.
pub(super) trait FamilyDefines: Defines {
    /// Which direction a variant computes.
    fn direction(&self) -> Direction;

    /// Whether a variant sums a part of the window only.
    fn is_part(&self) -> bool;
}

/// Whether a variant belongs to one of the four kernels.
fn belongs<D: FamilyDefines, const DX: bool, const PART: bool>(d: &D) -> bool {
    (d.direction() == Direction::InputGrad) == DX && d.is_part() == PART
}

/// The bindings of the four kernels.
pub(super) struct Bindings {
    forward: [Binding; 6],
    forward_part: [Binding; 3],
    input_grad: [Binding; 3],
    input_grad_part: [Binding; 3],
}

impl Bindings {
    /// `half_x` is the define that makes x, dx and the weight half, `half_y` the one for y,
    /// dy and the residual.
    pub const fn new(half_x: &'static str, half_y: &'static str) -> Self {
        let [x, dy] = [read("x").half(half_x), read("dy").half(half_y)];
        let weight = read("weight").half(half_x);
        Bindings {
            forward: [
                x,
                weight,
                read("bias"),
                read("emb").when("EMB"),
                read("residual").when("RESIDUAL").half(half_y),
                write("y").half(half_y),
            ],
            forward_part: [x, weight, write("partial")],
            input_grad: [dy, weight, accumulate("dx").half(half_x)],
            input_grad_part: [dy, weight, write("partial")],
        }
    }
}

/// The names of the four kernels.
pub(super) struct KernelNames {
    pub forward: &'static str,
    pub forward_part: &'static str,
    pub input_grad: &'static str,
    pub input_grad_part: &'static str,
}

/// The four kernels.
pub(super) struct Family<D> {
    /// Whole sums, and parts.
    forward: [KernelOf<StagedParams, D>; 2],
    input_grad: [KernelOf<StagedParams, D>; 2],
}

impl<D: FamilyDefines> Family<D> {
    /// Describes the shader `source`.
    pub const fn new(
        names: KernelNames,
        source: &'static str,
        bindings: &'static Bindings,
    ) -> Self {
        let b = bindings;
        Family {
            forward: [
                KernelOf::new(names.forward, source, &b.forward).only(belongs::<D, false, false>),
                KernelOf::new(names.forward_part, source, &b.forward_part)
                    .only(belongs::<D, false, true>),
            ],
            input_grad: [
                KernelOf::new(names.input_grad, source, &b.input_grad)
                    .only(belongs::<D, true, false>),
                KernelOf::new(names.input_grad_part, source, &b.input_grad_part)
                    .only(belongs::<D, true, true>),
            ],
        }
    }

    /// The kernel of a direction, for whole sums or for parts of them.
    pub fn kernel(
        &'static self,
        direction: Direction,
        part: bool,
    ) -> &'static KernelOf<StagedParams, D> {
        let pair = match direction {
            Direction::Forward => &self.forward,
            Direction::InputGrad => &self.input_grad,
        };
        &pair[usize::from(part)]
    }

    /// All four with their variants.
    pub fn with_variants(&'static self) -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
        self.forward.iter().chain(&self.input_grad).map(KernelOf::with_variants).collect()
    }
}
