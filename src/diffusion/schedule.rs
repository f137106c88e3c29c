//! The noise schedules: beta_t for t = 0..T, in float64.

use super::config::NoiseSchedule;
use crate::{Error, Result};

/// No cosine beta exceeds this, so that the last steps stay invertible.
const MAX_BETA: f64 = 0.999;

/// More steps than any process has: a larger number is a damaged file or a
/// slip, and its tables would fill the memory.
const MAX_STEPS: usize = 1 << 20;

/// The betas of `schedule` with `steps` timesteps.
///
/// # Errors
/// Fewer than 2 or more than 2^20 steps, or a linear schedule of 20 steps or
/// fewer: scaled to so few, its last beta reaches 1 and leaves nothing of the
/// image.
pub fn named_betas(schedule: NoiseSchedule, steps: usize) -> Result<Vec<f64>> {
    if !(2..=MAX_STEPS).contains(&steps) {
        return Err(Error::Config(format!(
            "diffusion_steps is {steps}: a diffusion process has 2 to {MAX_STEPS} steps"
        )));
    }
    match schedule {
        NoiseSchedule::Linear => linear_betas(steps),
        NoiseSchedule::Cosine => Ok(cosine_betas(steps)),
    }
}

/// Evenly spaced from 1e-4 to 0.02 for 1000 steps (Ho et al. 2020), scaled so
/// that other lengths end at about the same noise.
fn linear_betas(steps: usize) -> Result<Vec<f64>> {
    let scale = 1000.0 / steps as f64;
    let (first, last) = (scale * 1e-4, scale * 0.02);
    if last >= 1.0 {
        return Err(Error::Config(format!(
            "diffusion_steps is {steps}: the linear noise schedule needs more than 20 steps \
             (its last beta would be {last})"
        )));
    }
    let spacing = (last - first) / (steps - 1) as f64;
    let mut betas: Vec<f64> = (0..steps).map(|i| i as f64 * spacing + first).collect();
    betas[steps - 1] = last;
    Ok(betas)
}

/// Betas whose cumulated alphas follow [`cosine_alpha_bar`] (Nichol and
/// Dhariwal 2021, eq. 17).
fn cosine_betas(steps: usize) -> Vec<f64> {
    let n = steps as f64;
    (0..steps)
        .map(|i| {
            let ratio = cosine_alpha_bar((i + 1) as f64 / n) / cosine_alpha_bar(i as f64 / n);
            (1.0 - ratio).min(MAX_BETA)
        })
        .collect()
}

/// The share of signal left at `u` in 0..=1; 0.008 keeps the first betas from
/// vanishing.
fn cosine_alpha_bar(u: f64) -> f64 {
    let cos = ((u + 0.008) / 1.008 * std::f64::consts::PI / 2.0).cos();
    cos * cos
}
