//! The update rules: each says by which coefficients a sampling step leads from x_t to its
//! neighbour. They are computed in float64 and rounded once, for the kernel
//! [`crate::ops::denoise`].

use super::config::{DiffusionConfig, MeanType, VarType};
use super::tables::Tables;
use crate::ops::{UPDATE_DDIM, UPDATE_DDPM, Update};
use crate::{Error, Result};
use bytemuck::Zeroable;

/// How to step from x_t to its neighbour.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Sampler {
    /// Ancestral sampling (Ho et al. 2020).
    Ddpm,
    /// Implicit sampling (Song et al. 2021).
    Ddim {
        /// 0 is deterministic, 1 adds as much noise as DDPM's posterior.
        eta: f64,
    },
    /// The deterministic implicit step taken backwards, from x_t to x_{t+1}:
    /// encodes an image as the noise that DDIM with eta 0 would draw it from
    /// (Song et al. 2021, section 4.3).
    DdimReverse,
}

impl Sampler {
    /// Checks what the user chose.
    ///
    /// # Errors
    /// An eta outside 0..=1: with more noise than that, the steps no longer
    /// have a direction towards x_t to give (its variance turns negative).
    pub fn validate(&self) -> Result<()> {
        match *self {
            Sampler::Ddim { eta } if !(0.0..=1.0).contains(&eta) => {
                Err(Error::Config(format!("DDIM eta is {eta}, not between 0 and 1")))
            }
            _ => Ok(()),
        }
    }
}

impl Tables {
    /// The coefficients of the sampling step that leads from step `i` to
    /// `i - 1` (from 0 to the image), or to `i + 1` with
    /// [`Sampler::DdimReverse`]. `clip` limits x_0 to -1..=1. Classifier-free
    /// guidance is off: its scale is 1.
    ///
    /// # Panics
    /// If `i` is not below [`num_steps`](Self::num_steps).
    pub fn update_for(
        &self,
        i: usize,
        sampler: Sampler,
        config: &DiffusionConfig,
        clip: bool,
    ) -> Update {
        let common = Update {
            kind: UPDATE_DDIM,
            predicts_x0: u32::from(config.mean_type == MeanType::XStart),
            clip: u32::from(clip),
            sqrt_recip_abar: self.sqrt_recip_alphas_cumprod[i] as f32,
            sqrt_recipm1_abar: self.sqrt_recipm1_alphas_cumprod[i] as f32,
            coef1: self.posterior_mean_coef1[i] as f32,
            coef2: self.posterior_mean_coef2[i] as f32,
            guidance: self.sqrt_one_minus_alphas_cumprod[i] as f32,
            guidance_free: 1.0,
            ..Update::zeroed()
        };
        let ddim = |to: f64, sigma: f64| Update {
            sqrt_abar_prev: to.sqrt() as f32,
            // With eta = 1 the difference can come out a rounding error below 0.
            dir: (1.0 - to - sigma * sigma).max(0.0).sqrt() as f32,
            // The last step adds no noise: its result is the image.
            sigma: if i == 0 { 0.0 } else { sigma as f32 },
            ..common
        };
        let (abar, prev) = (self.alphas_cumprod[i], self.alphas_cumprod_prev[i]);
        match sampler {
            Sampler::Ddpm => self.ddpm_update(i, config.var_type, common),
            Sampler::Ddim { eta } => ddim(prev, ddim_sigma(abar, prev, eta)),
            Sampler::DdimReverse => ddim(self.alphas_cumprod_next[i], 0.0),
        }
    }

    /// `common` as a DDPM step.
    fn ddpm_update(&self, i: usize, var_type: VarType, common: Update) -> Update {
        // A fixed variance is a number; a learned one is a factor on the
        // posterior's, by the line in the variance channel.
        let log_variance = self.log_variance(i, var_type);
        let (offset, slope) = match var_type.is_learned() {
            true => self.log_variance_line(i, var_type),
            false => (0.0, 0.0),
        };
        // The small variance of the last step is 0 but for its logarithm.
        let guidance = match var_type {
            VarType::FixedSmall => self.posterior_variance[i],
            _ => log_variance.exp(),
        };
        Update {
            kind: UPDATE_DDPM,
            sigma: if i == 0 { 0.0 } else { (0.5 * log_variance).exp() as f32 },
            guidance: guidance as f32,
            log_variance_offset: offset as f32,
            log_variance_slope: slope as f32,
            ..common
        }
    }
}

/// Standard deviation of a DDIM step's noise (Song et al. 2021, eq. 16).
fn ddim_sigma(abar: f64, prev: f64, eta: f64) -> f64 {
    eta * ((1.0 - prev) / (1.0 - abar)).sqrt() * (1.0 - abar / prev).sqrt()
}
