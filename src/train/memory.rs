//! Fitting a training step into a memory budget: which levels of the network
//! are computed twice instead of kept.

use super::plan_step;
use crate::caps::{Caps, human_bytes};
use crate::diffusion::DiffusionConfig;
use crate::graph::PlanReport;
use crate::model::ModelConfig;
use crate::recipe::TrainConfig;
use crate::{Error, Result};

/// What a training step needs.
#[derive(Debug, Clone, Copy)]
pub struct MemoryNeed {
    /// Of one micro-batch.
    pub report: PlanReport,
    /// Copies of the parameters: weights, gradients, two moments, averages.
    pub copies: u64,
}

impl MemoryNeed {
    /// Bytes of all copies of the parameters.
    pub fn params(&self) -> u64 {
        self.copies * self.report.params + self.report.params_half
    }

    /// Bytes in all.
    pub fn bytes(&self) -> u64 {
        self.report.slots + self.report.pinned + self.params()
    }
}

/// Plans a step with the options as they are.
///
/// # Errors
/// As [`plan_step`].
pub fn memory_need(
    caps: &Caps,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &TrainConfig,
) -> Result<MemoryNeed> {
    let report = plan_step(caps, model, diffusion, config)?.report();
    Ok(MemoryNeed { report, copies: 4 + config.ema_rates.len() as u64 })
}

/// Sets `config.recompute_levels` to the fewest levels, largest images first,
/// with which a step fits into `budget` bytes.
///
/// # Errors
/// [`Error::Memory`] with the least that is needed if nothing fits.
pub fn fit_memory(
    caps: &Caps,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &mut TrainConfig,
    budget: u64,
) -> Result<MemoryNeed> {
    let mut least = u64::MAX;
    for levels in 0..=model.levels() {
        config.recompute_levels = (1 << levels) - 1;
        let need = memory_need(caps, model, diffusion, config)?;
        if need.bytes() <= budget {
            return Ok(need);
        }
        least = least.min(need.bytes());
    }
    Err(Error::Memory(format!(
        "a step of {} images needs at least {}, recomputing every level; the budget is {}; use \
         smaller micro-batches",
        config.micro_batch,
        human_bytes(least),
        human_bytes(budget)
    )))
}
