//! The diffusion process of a network whose source does not tell it.

use crate::diffusion::{DiffusionConfig, LossType, VarType};
use crate::model::{ModelConfig, UNetConfig};

/// The default process; with a learned variance where there are channels for it.
pub(super) fn guess(model: &ModelConfig) -> DiffusionConfig {
    match model {
        ModelConfig::UNet(c) => default_diffusion(c),
        ModelConfig::Encoder(_) => DiffusionConfig::default(),
    }
}

/// The default process of a network with these outputs.
pub(super) fn default_diffusion(config: &UNetConfig) -> DiffusionConfig {
    if config.out_channels == 2 * config.in_channels {
        DiffusionConfig {
            var_type: VarType::LearnedRange,
            loss_type: LossType::RescaledMse,
            ..DiffusionConfig::default()
        }
    } else {
        DiffusionConfig::default()
    }
}
