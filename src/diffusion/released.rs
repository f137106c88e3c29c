//! The diffusion processes that the published networks were trained for. Their
//! files hold weights alone, and a wrong process makes noise without a warning.

use super::{DiffusionConfig, LossType, NoiseSchedule, VarType};

/// The process of the published network called `name`: the presets of
/// [`crate::model::preset_names`] and guided-diffusion's four classifiers
/// (`64x64_classifier` and so on), which were trained on noisy images.
///
/// Guided-diffusion: 1000 steps, learned variances, timesteps as they are; cosine
/// at 64 pixels. Improved-diffusion: 4000 steps, and for the unconditional
/// networks its defaults, which rescale timesteps and the variational bound.
/// DDPM: 1000 linear steps with the larger fixed variance.
pub fn released_diffusion(name: &str) -> Option<DiffusionConfig> {
    let fixed = DiffusionConfig::default();
    let learned = DiffusionConfig { var_type: VarType::LearnedRange, ..fixed.clone() };
    let config = match name {
        "64x64_diffusion" => DiffusionConfig { noise_schedule: NoiseSchedule::Cosine, ..learned },
        "128x128_diffusion"
        | "256x256_diffusion"
        | "256x256_diffusion_uncond"
        | "512x512_diffusion"
        | "64_256_upsampler"
        | "128_512_upsampler"
        | "lsun_bedroom_cat_horse"
        | "iddpm_lsun_bedroom" => learned,
        "iddpm_cifar10_50M" | "iddpm_imagenet64_uncond_100M" => DiffusionConfig {
            diffusion_steps: 4000,
            noise_schedule: NoiseSchedule::Cosine,
            loss_type: LossType::RescaledMse,
            rescale_timesteps: true,
            ..learned
        },
        "iddpm_imagenet64_cond_270M" => DiffusionConfig {
            diffusion_steps: 4000,
            noise_schedule: NoiseSchedule::Cosine,
            ..learned
        },
        "iddpm_upsample_256_280M" => DiffusionConfig { diffusion_steps: 4000, ..learned },
        "ddpm_cifar10_35M" | "ddpm_lsun256_114M" => fixed,
        "64x64_classifier" => DiffusionConfig { noise_schedule: NoiseSchedule::Cosine, ..fixed },
        "128x128_classifier" | "256x256_classifier" | "512x512_classifier" => fixed,
        _ => return None,
    };
    Some(config)
}
