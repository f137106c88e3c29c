//! Dynamic loss scaling (Micikevicius et al. 2018, "Mixed Precision Training"):
//! gradients of half precision are formed times a factor, so that small ones do
//! not vanish, and the optimizer divides by it.
//!
//! ```text
//! scale = 2^floor(lg)
//! after a step whose gradients are finite:  lg += growth
//! after one whose gradients overflowed:     lg -= 1, and nothing is updated
//! ```
//!
//! lg and its steps are guided-diffusion's; rounding it down to a whole power of
//! two makes multiplying and dividing exact, so that the scale changes a
//! gradient only where it saves or overflows it.
//!
//! The state stays on the device, in [`FlatKind::LossScale`]: [`loss_scale`]
//! reads it before the backward walk, the optimizer step reads it and moves it
//! on, and no step waits for the host.

use super::groups;
use crate::graph::{FlatKind, Launch, Lower, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::{Result, named, params};

params! {
    struct Params { len: u32 }
}

static LOSS_SCALE: KernelOf<Params, ()> = KernelOf::new(
    "loss_scale",
    include_str!("../../shaders/loss_scale.wgsl"),
    &[read("x"), read("state"), write("y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![LOSS_SCALE.with_variants()]
}

/// The state of the loss scale.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LossScale {
    /// Logarithm to base 2 of the scale, which is rounded down; within -64 to 64.
    pub lg: f32,
    /// Added to it after a good step.
    pub growth: f32,
    /// Steps whose gradients were finite.
    pub good: u32,
    /// Steps that were skipped because they were not.
    pub skipped: u32,
}

impl Default for LossScale {
    /// The reference's start of diffusion networks: 2^20, growing by a factor of
    /// two in a thousand steps. Its classifiers start at 2^16.
    fn default() -> Self {
        LossScale { lg: 20.0, growth: 1e-3, good: 0, skipped: 0 }
    }
}

impl LossScale {
    /// As it lies on the device; counts are exact up to 2^24.
    pub fn state(&self) -> [f32; 4] {
        [self.lg, self.growth, self.good as f32, self.skipped as f32]
    }

    /// From what lies on the device.
    pub fn from_state([lg, growth, good, skipped]: [f32; 4]) -> Self {
        LossScale { lg, growth, good: good as u32, skipped: skipped as u32 }
    }
}

/// The device's state as a tensor.
pub(super) fn state(lower: &mut Lower) -> TensorId {
    lower.flat(FlatKind::LossScale, 0, 4)
}

/// `seed` (d loss / d tensor, 32 bits, any shape) times the scale, to begin the
/// backward walk with. Needs [`FlatKind::LossScale`] allocated.
///
/// # Errors
/// [`crate::Error::Kernel`] for a seed in half precision.
pub fn loss_scale(lower: &mut Lower, seed: TensorId) -> Result<TensorId> {
    lower.set_label("loss_scale");
    let shape = lower.shape(seed).to_vec();
    let y = lower.temp("seed", &shape);
    let state = state(lower);
    let len = shape.iter().product::<usize>();
    lower.launch(Launch {
        kernel: &LOSS_SCALE,
        defines: (),
        params: Params { len: len as u32 },
        bindings: &named![x: seed, state, y],
        groups: groups(len as u64),
        flops: len as u64,
    })?;
    Ok(y)
}
