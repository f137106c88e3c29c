//! Arguments that describe a diffusion process and what its network learns.

use demist::Result;
use demist::diffusion::{
    DiffusionConfig, LossType, MeanType, NoiseSchedule, SpacedSchedule, VarType,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Schedule {
    /// Betas evenly spaced (DDPM).
    Linear,
    /// The signal follows a squared cosine (Improved DDPM).
    Cosine,
}

/// The diffusion process.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Diffusion")]
pub struct DiffusionArgs {
    /// Timesteps to train for [default: 1000].
    #[arg(long)]
    pub diffusion_steps: Option<usize>,
    /// How the noise grows [default: linear].
    #[arg(long, value_enum)]
    pub noise_schedule: Option<Schedule>,
    /// Feed the network timesteps in thousandths of the process.
    #[arg(long)]
    pub rescale_timesteps: bool,
}

impl DiffusionArgs {
    /// The process, from `base` where nothing else was typed.
    pub fn apply(&self, base: DiffusionConfig) -> Result<DiffusionConfig> {
        let config = DiffusionConfig {
            diffusion_steps: self.diffusion_steps.unwrap_or(base.diffusion_steps),
            noise_schedule: match self.noise_schedule {
                Some(Schedule::Linear) => NoiseSchedule::Linear,
                Some(Schedule::Cosine) => NoiseSchedule::Cosine,
                None => base.noise_schedule,
            },
            rescale_timesteps: self.rescale_timesteps || base.rescale_timesteps,
            ..base
        };
        SpacedSchedule::new(&config, "")?;
        Ok(config)
    }
}

/// What the network predicts and what training minimises.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Objective")]
pub struct ObjectiveArgs {
    /// Predict the clean image instead of the noise.
    #[arg(long)]
    pub predict_xstart: bool,
    /// Learn the variance between its bounds (twice the output channels).
    #[arg(long)]
    pub learn_sigma: bool,
    /// Learn the logarithm of the variance directly.
    #[arg(long, conflicts_with = "learn_sigma")]
    pub learn_log_variance: bool,
    /// Sample with the small fixed variance.
    #[arg(long, conflicts_with_all = ["learn_sigma", "learn_log_variance"])]
    pub sigma_small: bool,
    /// Scale the variational bound beside the squared error to T/1000.
    #[arg(long)]
    pub rescale_learned_sigmas: bool,
    /// Minimise the variational bound alone.
    #[arg(long)]
    pub use_kl: bool,
}

impl ObjectiveArgs {
    /// The process with what was typed about its objective.
    pub fn apply(&self, mut config: DiffusionConfig) -> DiffusionConfig {
        if self.predict_xstart {
            config.mean_type = MeanType::XStart;
        }
        if self.learn_sigma {
            config.var_type = VarType::LearnedRange;
        } else if self.learn_log_variance {
            config.var_type = VarType::Learned;
        } else if self.sigma_small {
            config.var_type = VarType::FixedSmall;
        }
        if self.use_kl {
            config.loss_type = LossType::RescaledKl;
        } else if self.rescale_learned_sigmas {
            config.loss_type = LossType::RescaledMse;
        }
        config
    }
}
