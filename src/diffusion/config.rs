//! What a diffusion process is made of: its length, its noise schedule, and
//! what the network predicts. Saved with every checkpoint.

use serde::{Deserialize, Serialize};

/// How the noise grows over the timesteps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NoiseSchedule {
    /// Betas evenly spaced (Ho et al. 2020).
    #[default]
    Linear,
    /// The cumulated signal follows a squared cosine (Nichol and Dhariwal 2021).
    Cosine,
}

/// What the network's first image channels predict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MeanType {
    /// The noise in x_t.
    #[default]
    Epsilon,
    /// The clean image x_0.
    XStart,
}

/// The variance of a DDPM step.
///
/// Both are fixed by the schedule. A network with learned variances (6 output
/// channels) is sampled with them too; its extra channels are ignored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarType {
    /// The posterior variance, the lower bound.
    FixedSmall,
    /// Beta, the upper bound; its first entry is the second posterior variance.
    #[default]
    FixedLarge,
}

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The mean squared error of the prediction ("L simple").
    #[default]
    Mse,
}

/// A diffusion process. The default is the 1000-step linear one that predicts
/// the noise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DiffusionConfig {
    /// Number of timesteps T the network is trained for.
    pub diffusion_steps: usize,
    /// The noise schedule.
    pub noise_schedule: NoiseSchedule,
    /// What the network predicts.
    pub mean_type: MeanType,
    /// The variance of a DDPM step.
    pub var_type: VarType,
    /// What training minimises.
    pub loss_type: LossType,
    /// Feed the network `t * 1000 / T` instead of `t`.
    pub rescale_timesteps: bool,
}

impl Default for DiffusionConfig {
    fn default() -> Self {
        DiffusionConfig {
            diffusion_steps: 1000,
            noise_schedule: NoiseSchedule::default(),
            mean_type: MeanType::default(),
            var_type: VarType::default(),
            loss_type: LossType::default(),
            rescale_timesteps: false,
        }
    }
}
