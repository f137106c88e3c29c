//! Everything the schedule determines, in float64: the tables of the forward
//! process q and its posterior (Ho et al. 2020, sections 2 and 3).

use bytemuck::{Pod, Zeroable};

use super::config::VarType;
use crate::ops::VLB_COEFS;
use crate::{Error, Result};

/// Per-timestep tables of a (spaced) schedule, each with one entry per step.
///
/// `alphas_cumprod[t]`, written abar below, is the share of signal variance
/// left in x_t.
#[derive(Debug, Clone, PartialEq)]
pub struct Tables {
    /// beta: the variance added by each step.
    pub betas: Vec<f64>,
    /// abar: product of `1 - beta` up to and including t.
    pub alphas_cumprod: Vec<f64>,
    /// abar of the step before; 1 at t = 0.
    pub alphas_cumprod_prev: Vec<f64>,
    /// abar of the step after; 0 at the last one.
    pub alphas_cumprod_next: Vec<f64>,
    /// sqrt(abar).
    pub sqrt_alphas_cumprod: Vec<f64>,
    /// sqrt(1 - abar).
    pub sqrt_one_minus_alphas_cumprod: Vec<f64>,
    /// ln(1 - abar).
    pub log_one_minus_alphas_cumprod: Vec<f64>,
    /// sqrt(1 / abar).
    pub sqrt_recip_alphas_cumprod: Vec<f64>,
    /// sqrt(1 / abar - 1).
    pub sqrt_recipm1_alphas_cumprod: Vec<f64>,
    /// Variance of q(x_{t-1} | x_t, x_0); 0 at t = 0.
    pub posterior_variance: Vec<f64>,
    /// Its logarithm, with entry 1 standing in for the infinite entry 0.
    pub posterior_log_variance_clipped: Vec<f64>,
    /// Weight of x_0 in the mean of q(x_{t-1} | x_t, x_0).
    pub posterior_mean_coef1: Vec<f64>,
    /// Weight of x_t in the mean of q(x_{t-1} | x_t, x_0).
    pub posterior_mean_coef2: Vec<f64>,
}

impl Tables {
    /// The tables of a schedule given by its betas.
    ///
    /// # Errors
    /// Fewer than 2 betas, or one that is not strictly between 0 and 1.
    pub fn new(betas: &[f64]) -> Result<Self> {
        let n = betas.len();
        if n < 2 {
            return Err(Error::Config(format!("a noise schedule needs at least 2 steps, not {n}")));
        }
        if let Some(t) = betas.iter().position(|&b| !(b > 0.0 && b < 1.0)) {
            return Err(Error::Config(format!(
                "noise schedule: beta of step {t} is {}, not between 0 and 1",
                betas[t]
            )));
        }
        let alphas_cumprod: Vec<f64> = betas
            .iter()
            .scan(1.0, |product, beta| {
                *product *= 1.0 - beta;
                Some(*product)
            })
            .collect();
        let alphas_cumprod_prev: Vec<f64> =
            std::iter::once(1.0).chain(alphas_cumprod[..n - 1].iter().copied()).collect();
        let alphas_cumprod_next: Vec<f64> =
            alphas_cumprod[1..].iter().copied().chain(std::iter::once(0.0)).collect();

        let of_abar = |f: fn(f64) -> f64| alphas_cumprod.iter().map(|&a| f(a)).collect();
        let of_step = |f: fn(f64, f64, f64) -> f64| -> Vec<f64> {
            (0..n).map(|t| f(betas[t], alphas_cumprod[t], alphas_cumprod_prev[t])).collect()
        };
        let posterior_variance = of_step(|beta, abar, prev| beta * (1.0 - prev) / (1.0 - abar));
        let posterior_log_variance_clipped =
            (0..n).map(|t| posterior_variance[t.max(1)].ln()).collect();

        Ok(Tables {
            sqrt_alphas_cumprod: of_abar(f64::sqrt),
            sqrt_one_minus_alphas_cumprod: of_abar(|a| (1.0 - a).sqrt()),
            log_one_minus_alphas_cumprod: of_abar(|a| (1.0 - a).ln()),
            sqrt_recip_alphas_cumprod: of_abar(|a| (1.0 / a).sqrt()),
            sqrt_recipm1_alphas_cumprod: of_abar(|a| (1.0 / a - 1.0).sqrt()),
            posterior_mean_coef1: of_step(|beta, abar, prev| beta * prev.sqrt() / (1.0 - abar)),
            posterior_mean_coef2: of_step(|beta, abar, prev| {
                (1.0 - prev) * (1.0 - beta).sqrt() / (1.0 - abar)
            }),
            posterior_variance,
            posterior_log_variance_clipped,
            betas: betas.to_vec(),
            alphas_cumprod,
            alphas_cumprod_prev,
            alphas_cumprod_next,
        })
    }

    /// Number of steps.
    pub fn num_steps(&self) -> usize {
        self.betas.len()
    }

    /// Logarithm of the variance of a DDPM step from step `i`; of a learned
    /// variance its lower bound.
    ///
    /// # Panics
    /// If `i` is not below [`num_steps`](Self::num_steps).
    pub fn log_variance(&self, i: usize, var_type: VarType) -> f64 {
        match var_type {
            VarType::FixedSmall | VarType::Learned | VarType::LearnedRange => {
                self.posterior_log_variance_clipped[i]
            }
            // The first step's own beta gives the image a worse likelihood.
            VarType::FixedLarge if i == 0 => self.posterior_variance[1].ln(),
            VarType::FixedLarge => self.betas[i].ln(),
        }
    }

    /// The logarithm of a DDPM step's variance, above the one of the
    /// (clipped) posterior, as a line in the network's variance channel:
    /// (value at 0, slope).
    pub(super) fn log_variance_line(&self, i: usize, var_type: VarType) -> (f64, f64) {
        let lower = self.posterior_log_variance_clipped[i];
        match var_type {
            VarType::FixedSmall | VarType::FixedLarge => {
                (self.log_variance(i, var_type) - lower, 0.0)
            }
            VarType::Learned => (-lower, 1.0),
            VarType::LearnedRange => {
                let half = 0.5 * (self.betas[i].ln() - lower);
                (half, half)
            }
        }
    }

    /// What one image's term of the variational bound at step `t` needs:
    /// ```text
    /// 1 at t = 0, else 0,  sqrt(1/abar),  sqrt(1/abar - 1),
    /// the posterior mean's weights of x_0 and of x_t,
    /// 1 / standard deviation of the (clipped) posterior,
    /// a and b of  log variance of the model's step
    ///           = log variance of the posterior + a + b * variance channel
    /// ```
    /// The logarithms enter as a difference taken in float64, since late
    /// steps have bounds so close that the bound's term is their square.
    ///
    /// # Panics
    /// If `t` is not below [`num_steps`](Self::num_steps).
    pub fn vlb_coefs(&self, t: usize, var_type: VarType) -> [f32; VLB_COEFS] {
        let (offset, slope) = self.log_variance_line(t, var_type);
        [
            f64::from(u8::from(t == 0)),
            self.sqrt_recip_alphas_cumprod[t],
            self.sqrt_recipm1_alphas_cumprod[t],
            self.posterior_mean_coef1[t],
            self.posterior_mean_coef2[t],
            (-0.5 * self.posterior_log_variance_clipped[t]).exp(),
            offset,
            slope,
        ]
        .map(|v| v as f32)
    }

    /// The part of the variational bound that no network changes: the mean
    /// over `x0`'s elements of KL(q(x_T | x_0) || N(0, 1)), in bits.
    pub fn prior_bpd(&self, x0: &[f32]) -> f64 {
        let abar = self.alphas_cumprod[self.num_steps() - 1];
        // KL(N(m, 1 - a) || N(0, 1)) = (-a - ln(1 - a) + m^2) / 2 with m^2 =
        // a x0^2, written so that a small a does not cancel.
        let power: f64 = x0.iter().map(|x| f64::from(*x).powi(2)).sum();
        let square = abar * power / x0.len().max(1) as f64;
        0.5 * (-abar - (-abar).ln_1p() + square) / std::f64::consts::LN_2
    }

    /// The coefficients that noise an image to step `t`.
    ///
    /// # Panics
    /// If `t` is not below [`num_steps`](Self::num_steps).
    pub fn q_sample_coefs(&self, t: usize) -> QSampleCoefs {
        QSampleCoefs {
            sqrt_abar: self.sqrt_alphas_cumprod[t] as f32,
            sqrt_one_minus_abar: self.sqrt_one_minus_alphas_cumprod[t] as f32,
        }
    }
}

/// What noises an image to one timestep.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct QSampleCoefs {
    /// sqrt(abar), the weight of x_0.
    pub sqrt_abar: f32,
    /// sqrt(1 - abar), the weight of the noise.
    pub sqrt_one_minus_abar: f32,
}

/// `x_t = sqrt(abar) x_0 + sqrt(1 - abar) noise` for one element, computed in
/// float64 and rounded once.
pub fn q_sample(coefs: QSampleCoefs, x0: f32, noise: f32) -> f32 {
    let signal = f64::from(coefs.sqrt_abar) * f64::from(x0);
    (signal + f64::from(coefs.sqrt_one_minus_abar) * f64::from(noise)) as f32
}
