//! The optimizer step: AdamW (Loshchilov and Hutter 2019, in PyTorch's order
//! of operations) with clipping by the global norm and a moving average of the
//! weights, one kernel per flat chunk.
//!
//! ```text
//! g   = grad * min(1, max_norm / (norm + 1e-6))       if max_norm > 0
//! m  += (1 - beta1) * (g - m)
//! v  += (1 - beta2) * (g^2 - v)
//! w   = w * (1 - lr * weight_decay)
//!     - lr / (1 - beta1^step) * m / (sqrt(v / (1 - beta2^step)) + eps)
//! ema += (1 - ema_rate) * (w - ema)
//! ```
//!
//! Where the norm is infinite (see [`super::grad_norm`]) nothing changes: one
//! bad batch costs a step, not the run. The host formed 1 - beta and the like
//! in float64: 1 - 0.9999 from a rounded 0.9999 would be off by 2e-4 of itself.
//!
//! Weights that convolutions read as half get their packed copy in the same
//! launch. Gradients of a scaled loss ([`super::loss_scale`]) are divided by the
//! scale first.

use super::GROUP;
use super::grad_norm::norm_of;
use crate::graph::{DType, FlatKind, Launch, Lower, ParamLayout, TensorId};
use crate::kernel::{Kernel, KernelOf, read, read_write};
use crate::{Result, defines, named, params};

params! {
    struct Params { quads: u32 }
}

defines! {
    struct Defines {
        /// Groups of four elements per invocation.
        quads: u32 in [QUADS],
        /// Keeps a packed copy of the weights.
        half: bool,
        /// The gradients are those of a scaled loss.
        scaled: bool,
    }
}

static ADAMW: KernelOf<Params, Defines> = KernelOf::new(
    "adamw",
    include_str!("../../shaders/adamw.wgsl"),
    &[
        read_write("weights"),
        read("grads"),
        read_write("exp_avg"),
        read_write("exp_avg_sq"),
        read_write("ema"),
        read("hyper"),
        read("norm"),
        read_write("weights_half").when("HALF").half("HALF"),
    ],
);

/// Groups of four elements per invocation.
const QUADS: u32 = 4;

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![ADAMW.with_variants()]
}

/// Settings of the optimizer; the rates may change from step to step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment; greater than 0.
    pub eps: f64,
    /// Decoupled weight decay, per unit of learning rate.
    pub weight_decay: f64,
    /// Decay of the moving average; 0 makes it a copy of the weights.
    pub ema_rate: f64,
    /// Gradients longer than this are scaled down to it; 0 for no limit.
    pub max_norm: f64,
}

impl Default for AdamW {
    /// The reference's training settings.
    fn default() -> Self {
        AdamW {
            lr: 1e-4,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 0.0,
            ema_rate: 0.9999,
            max_norm: 0.0,
        }
    }
}

/// Elements of the settings tensor.
const HYPER: usize = 8;

impl AdamW {
    /// What to write into [`OptimizerTensors::hyper`] before step number
    /// `step`, which counts the updates from 1.
    pub fn hyper(&self, step: u64) -> [f32; HYPER] {
        // Far out the corrections are 1, whatever the number.
        let step = step.clamp(1, i32::MAX as u64) as i32;
        let correction1 = 1.0 - self.beta1.powi(step);
        let correction2 = 1.0 - self.beta2.powi(step);
        [
            1.0 - self.lr * self.weight_decay,
            self.lr / correction1,
            1.0 - self.beta1,
            1.0 - self.beta2,
            1.0 / correction2.sqrt(),
            self.eps,
            1.0 - self.ema_rate,
            self.max_norm,
        ]
        .map(|v| v as f32)
    }
}

/// What the host sees of an optimizer step.
#[derive(Debug, Clone, Copy)]
pub struct OptimizerTensors {
    /// Settings, f32 `[8]`, written before each step from [`AdamW::hyper`].
    pub hyper: TensorId,
    /// Norm of the gradients before clipping, the first element of f32 `[1]`
    /// (`[2]` with a loss scale); infinite if the step was skipped.
    pub norm: TensorId,
}

/// Emits the gradient norm and the update of every chunk. Needs weights,
/// gradients, both moments and the first average allocated with `layout`, and
/// [`FlatKind::Half`] if parameters are read as half. `loss_scaled` says that the
/// gradients are those of a loss times [`super::loss_scale`], whose
/// [`FlatKind::LossScale`] is then needed too.
///
/// # Errors
/// [`crate::Error::Kernel`] if a launch does not fit its kernel.
pub fn optimizer_step(
    lower: &mut Lower,
    layout: &ParamLayout,
    loss_scaled: bool,
) -> Result<OptimizerTensors> {
    let hyper = lower.pinned("hyper", &[HYPER], DType::F32);
    let norm = norm_of(lower, layout, loss_scaled)?;
    lower.set_label("optimizer:adamw");
    for (chunk, len) in layout.chunks.iter().copied().enumerate() {
        let quads = len / 4;
        let packed = chunk < layout.packed;
        let mut flat = |kind| lower.flat(kind, chunk, len);
        let bindings = named![
            weights: flat(FlatKind::Weights),
            grads: flat(FlatKind::Grads),
            exp_avg: flat(FlatKind::ExpAvg),
            exp_avg_sq: flat(FlatKind::ExpAvgSq),
            ema: flat(FlatKind::Ema(0)),
            hyper,
            norm,
            weights_half: packed.then(|| flat(FlatKind::Half)),
        ];
        lower.launch(Launch {
            kernel: &ADAMW,
            defines: Defines { quads: QUADS, half: packed, scaled: loss_scaled },
            params: Params { quads: quads as u32 },
            bindings: &bindings,
            groups: (quads as u64).div_ceil(GROUP * u64::from(QUADS)),
            flops: 20 * len as u64,
        })?;
    }
    Ok(OptimizerTensors { hyper, norm })
}
