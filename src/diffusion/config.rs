//! What a diffusion process is made of: its length, its noise schedule, and
//! what the network predicts. Saved with every checkpoint.

use crate::ops::VlbOptions;
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

/// The variance of a DDPM step: fixed by the schedule, or predicted by as many
/// further output channels as the image has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VarType {
    /// The posterior variance, the lower bound.
    FixedSmall,
    /// Beta, the upper bound; its first entry is the second posterior variance.
    #[default]
    FixedLarge,
    /// The network's further channels are the logarithm of the variance.
    Learned,
    /// They choose between the logarithms of the bounds: -1 is the posterior
    /// variance, 1 is beta (Nichol and Dhariwal 2021, eq. 15).
    LearnedRange,
}

impl VarType {
    /// Whether the network predicts the variance.
    pub fn is_learned(self) -> bool {
        matches!(self, VarType::Learned | VarType::LearnedRange)
    }
}

/// What training minimises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossType {
    /// The mean squared error of the prediction ("L simple").
    #[default]
    Mse,
    /// With a learned variance the variational bound is added to the mean
    /// squared error, scaled down to T/1000 ("L hybrid" of Nichol and Dhariwal
    /// 2021); without one as [`LossType::Mse`].
    RescaledMse,
    /// The term of the variational bound, in bits per dimension.
    Kl,
    /// The same times T: an estimate of the whole bound ("L vlb").
    RescaledKl,
}

impl LossType {
    /// Whether the loss is the variational bound alone.
    pub fn is_vb(self) -> bool {
        matches!(self, LossType::Kl | LossType::RescaledKl)
    }
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

impl DiffusionConfig {
    /// How the variational bound of this process is taken: whether its gradient reaches
    /// the image channels (`mean_gradient`), and whether the predicted image is clamped.
    pub fn vlb_options(&self, mean_gradient: bool, clip: bool) -> VlbOptions {
        VlbOptions {
            predicts_x0: self.mean_type == MeanType::XStart,
            learned: self.var_type.is_learned(),
            mean_gradient,
            clip,
        }
    }
}
