//! Euclidean norm over the gradients of all parameters together.
//!
//! Each chunk of the flat gradients is summed by workgroups into partial sums
//! and those by one workgroup into the running total, always in the same
//! order, so the norm is reproducible.
//!
//! The norm is infinity if any element is not finite or larger than 2^46 in
//! magnitude (a run that far gone is lost, and below that the squares of 2^35
//! elements cannot overflow). This is decided on the bits of the gradients,
//! since a shader may be compiled as if infinities and NaNs did not exist.

use super::loss_scale;
use crate::graph::{DType, FlatKind, Launch, Lower, ParamLayout, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, read_write, write};
use crate::{Result, defines, named, params};

params! {
    struct Params { quads: u32, parts: u32 }
}

params! {
    struct TotalParams { parts: u32 }
}

defines! {
    struct Defines {
        /// Groups of four elements per invocation.
        quads: u32 in [QUADS],
        subgroup: bool,
    }
}

static GRAD_NORM: KernelOf<Params, Defines> = KernelOf::new(
    "grad_norm",
    include_str!("../../shaders/grad_norm.wgsl"),
    &[read("grads"), write("partial")],
);

defines! {
    struct TotalDefines {
        acc: bool,
        /// Takes the root, after the last chunk.
        root: bool,
        /// The gradients are those of a scaled loss; only where the root is taken.
        scaled: bool,
        subgroup: bool,
    }
    where |d| d.root || !d.scaled
}

static GRAD_NORM_TOTAL: KernelOf<TotalParams, TotalDefines> = KernelOf::new(
    "grad_norm_total",
    include_str!("../../shaders/grad_norm_total.wgsl"),
    &[read("partial"), accumulate("norm"), read_write("state").when("SCALED")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![GRAD_NORM.with_variants(), GRAD_NORM_TOTAL.with_variants()]
}

/// Groups of four elements that one workgroup adds.
const QUADS: u32 = 2048;

/// Emits the norm of all gradients and returns it as a tensor `[1]` that the
/// host can read: infinity where they overflowed, 0 without parameters.
///
/// # Errors
/// [`crate::Error::Kernel`] if a launch does not fit its kernel.
pub fn grad_norm(lower: &mut Lower, layout: &ParamLayout) -> Result<TensorId> {
    norm_of(lower, layout, false)
}

/// As [`grad_norm`]; gradients of a `scaled` loss have their true norm put into
/// element 0 of a tensor `[2]`, and the inverse of the scale into element 1. The
/// state of the scale then moves on.
pub(super) fn norm_of(lower: &mut Lower, layout: &ParamLayout, scaled: bool) -> Result<TensorId> {
    let norm = lower.pinned("grad_norm", &[1 + usize::from(scaled)], DType::F32);
    lower.set_label("optimizer:grad_norm");
    for (chunk, len) in layout.chunks.iter().copied().enumerate() {
        let grads = lower.flat(FlatKind::Grads, chunk, len);
        let quads = len / 4;
        let parts = quads.div_ceil(QUADS as usize);
        let partial = lower.temp("partial", &[parts]);
        lower.launch(Launch {
            kernel: &GRAD_NORM,
            defines: Defines { quads: QUADS, subgroup: lower.caps.subgroups },
            params: Params { quads: quads as u32, parts: parts as u32 },
            bindings: &named![grads, partial],
            groups: parts as u64,
            flops: 2 * len as u64,
        })?;
        let last = chunk + 1 == layout.chunks.len();
        let state = (last && scaled).then(|| loss_scale::state(lower));
        lower.launch(Launch {
            kernel: &GRAD_NORM_TOTAL,
            defines: TotalDefines {
                acc: chunk > 0,
                root: last,
                scaled: state.is_some(),
                subgroup: lower.caps.subgroups,
            },
            params: TotalParams { parts: parts as u32 },
            bindings: &named![partial, norm, state],
            groups: 1,
            flops: parts as u64,
        })?;
    }
    Ok(norm)
}
