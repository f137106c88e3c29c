//! A further moving average of the weights. The optimizer's kernel moves the
//! first one itself; each further rate is one more kernel per flat chunk:
//!
//! ```text
//! ema += rate * (w - ema),    rate = 1 - decay
//! ```
//!
//! As there, nothing moves after a step that was skipped (infinite norm).

use super::GROUP;
use crate::graph::{DType, FlatKind, Launch, Lower, ParamLayout, TensorId};
use crate::kernel::{Kernel, KernelOf, read, read_write};
use crate::{Result, named, params};

params! {
    struct Params { quads: u32 }
}

static EMA: KernelOf<Params, ()> = KernelOf::new(
    "ema",
    include_str!("../../shaders/ema.wgsl"),
    &[read("weights"), read_write("ema"), read("rate"), read("norm")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![EMA.with_variants()]
}

/// Emits the update of average number `index` after the optimizer's step whose
/// gradient `norm` this is. Returns the rate `[1]` = 1 - decay, which the host
/// writes before each step.
///
/// # Errors
/// [`crate::Error::Kernel`] if a launch does not fit its kernel.
pub fn ema(lower: &mut Lower, layout: &ParamLayout, index: u8, norm: TensorId) -> Result<TensorId> {
    let rate = lower.pinned("ema rate", &[1], DType::F32);
    lower.set_label("optimizer:ema");
    for (chunk, len) in layout.chunks.iter().copied().enumerate() {
        let quads = len / 4;
        let weights = lower.flat(FlatKind::Weights, chunk, len);
        let average = lower.flat(FlatKind::Ema(index), chunk, len);
        lower.launch(Launch {
            kernel: &EMA,
            defines: (),
            params: Params { quads: quads as u32 },
            bindings: &named![weights, ema: average, rate, norm],
            groups: (quads as u64).div_ceil(GROUP),
            flops: 3 * len as u64,
        })?;
    }
    Ok(rate)
}
