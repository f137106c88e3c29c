//! Configurations of published networks, by the names of their files.

use super::config::{EncoderConfig, MAX_POOL_SIZE, Pool, UNetConfig};

/// What most of ADM's networks share: AdaGN, residual resampling, learned
/// variance, 64 channels a head.
fn adm(
    image_size: usize,
    model_channels: usize,
    channel_mult: &[f64],
    attention_sizes: &[usize],
) -> UNetConfig {
    UNetConfig {
        image_size,
        model_channels,
        out_channels: 6,
        attention_resolutions: attention_sizes.iter().map(|s| image_size / s).collect(),
        channel_mult: channel_mult.to_vec(),
        num_heads: 4,
        num_head_channels: Some(64),
        use_scale_shift_norm: true,
        resblock_updown: true,
        ..Default::default()
    }
}

/// Improved DDPM: four heads, resampling by convolutions between the blocks.
fn iddpm(
    image_size: usize,
    model_channels: usize,
    channel_mult: &[f64],
    attention_sizes: &[usize],
) -> UNetConfig {
    UNetConfig {
        num_head_channels: None,
        resblock_updown: false,
        ..adm(image_size, model_channels, channel_mult, attention_sizes)
    }
}

/// DDPM: as above with one head, an added embedding and a fixed variance.
fn ddpm(image_size: usize, channel_mult: &[f64], dropout: f32) -> UNetConfig {
    UNetConfig {
        num_heads: 1,
        out_channels: 3,
        use_scale_shift_norm: false,
        dropout,
        ..iddpm(image_size, 128, channel_mult, &[16])
    }
}

const MULT_256: [f64; 6] = [1.0, 1.0, 2.0, 2.0, 4.0, 4.0];
const MULT_512: [f64; 7] = [0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0];
const MULT_128: [f64; 5] = [1.0, 1.0, 2.0, 3.0, 4.0];
const MULT_64: [f64; 4] = [1.0, 2.0, 3.0, 4.0];
const MULT_CIFAR: [f64; 4] = [1.0, 2.0, 2.0, 2.0];
const IMAGENET: Option<usize> = Some(1000);

const NAMES: [&str; 19] = [
    "64x64_diffusion",
    "128x128_diffusion",
    "256x256_diffusion",
    "256x256_diffusion_uncond",
    "512x512_diffusion",
    "64x64_classifier",
    "128x128_classifier",
    "256x256_classifier",
    "512x512_classifier",
    "64_256_upsampler",
    "128_512_upsampler",
    "lsun_bedroom_cat_horse",
    "iddpm_cifar10_50M",
    "iddpm_imagenet64_cond_270M",
    "iddpm_imagenet64_uncond_100M",
    "iddpm_lsun_bedroom",
    "iddpm_upsample_256_280M",
    "ddpm_cifar10_35M",
    "ddpm_lsun256_114M",
];

/// ADM's classifiers: the encoder of a narrow network of the same size, and
/// an attention pool over 8x8 positions.
fn classifier(image_size: usize, channel_mult: &[f64]) -> EncoderConfig {
    EncoderConfig {
        image_size,
        attention_resolutions: [32, 16, 8].map(|size| image_size / size).to_vec(),
        channel_mult: channel_mult.to_vec(),
        num_head_channels: Some(64),
        use_scale_shift_norm: true,
        resblock_updown: true,
        ..Default::default()
    }
}

/// Names that [`preset`] or [`encoder_preset`] know.
pub fn preset_names() -> &'static [&'static str] {
    &NAMES
}

/// The diffusion network called `name`: guided-diffusion's released checkpoints (its
/// README's flags), Improved DDPM's and DDPM's.
pub fn preset(name: &str) -> Option<UNetConfig> {
    let attention = [32, 16, 8];
    let config = match name {
        "64x64_diffusion" => UNetConfig {
            num_res_blocks: 3,
            dropout: 0.1,
            num_classes: IMAGENET,
            use_new_attention_order: true,
            ..adm(64, 192, &MULT_64, &attention)
        },
        "128x128_diffusion" => UNetConfig {
            num_head_channels: None,
            num_classes: IMAGENET,
            ..adm(128, 256, &MULT_128, &attention)
        },
        "256x256_diffusion" => {
            UNetConfig { num_classes: IMAGENET, ..adm(256, 256, &MULT_256, &attention) }
        }
        "256x256_diffusion_uncond" => adm(256, 256, &MULT_256, &attention),
        "512x512_diffusion" => {
            UNetConfig { num_classes: IMAGENET, ..adm(512, 256, &MULT_512, &attention) }
        }
        "64_256_upsampler" => UNetConfig {
            small_size: Some(64),
            num_head_channels: None,
            num_classes: IMAGENET,
            ..adm(256, 192, &MULT_256, &attention)
        },
        "128_512_upsampler" => UNetConfig {
            small_size: Some(128),
            num_classes: IMAGENET,
            ..adm(512, 192, &MULT_256, &[32, 16])
        },
        "lsun_bedroom_cat_horse" => {
            UNetConfig { dropout: 0.1, ..adm(256, 256, &MULT_256, &attention) }
        }
        "iddpm_cifar10_50M" => {
            UNetConfig { num_res_blocks: 3, dropout: 0.3, ..iddpm(32, 128, &MULT_CIFAR, &[16, 8]) }
        }
        "iddpm_imagenet64_cond_270M" => UNetConfig {
            num_res_blocks: 3,
            num_classes: IMAGENET,
            ..iddpm(64, 192, &MULT_64, &[16, 8])
        },
        "iddpm_imagenet64_uncond_100M" => {
            UNetConfig { num_res_blocks: 3, ..iddpm(64, 128, &MULT_64, &[16, 8]) }
        }
        "iddpm_lsun_bedroom" => UNetConfig { out_channels: 6, ..ddpm(256, &MULT_256, 0.1) },
        "iddpm_upsample_256_280M" => UNetConfig {
            small_size: Some(64),
            num_classes: IMAGENET,
            ..iddpm(256, 192, &MULT_256, &[16, 8])
        },
        "ddpm_cifar10_35M" => ddpm(32, &MULT_CIFAR, 0.1),
        "ddpm_lsun256_114M" => ddpm(256, &MULT_256, 0.0),
        _ => return None,
    };
    Some(config)
}

/// The classifier called `name`, of guided-diffusion's released checkpoints.
pub fn encoder_preset(name: &str) -> Option<EncoderConfig> {
    let config = match name {
        "64x64_classifier" => EncoderConfig { num_res_blocks: 4, ..classifier(64, &MULT_64) },
        "128x128_classifier" => classifier(128, &MULT_128),
        "256x256_classifier" => classifier(256, &MULT_256),
        "512x512_classifier" => classifier(512, &MULT_512),
        _ => return None,
    };
    Some(config)
}

/// A network that suits images of `image_size` pixels: the reference's
/// multipliers for its sizes, and small ones below 64.
pub fn default_model(image_size: usize) -> UNetConfig {
    let shape = default_shape(image_size);
    UNetConfig {
        num_res_blocks: if image_size <= 20 { 1 } else { 2 },
        attention_resolutions: shape.attention.to_vec(),
        num_head_channels: Some(32),
        out_channels: 3,
        ..adm(image_size, shape.width, shape.channel_mult, &[])
    }
}

/// A classifier that suits images of `image_size` pixels and `channels`
/// channels, of `classes` classes: half as wide as [`default_model`] where
/// that is wide. Sizes that cannot be halved to few positions get the pool
/// without attention.
pub fn default_encoder(image_size: usize, channels: usize, classes: usize) -> EncoderConfig {
    let shape = default_shape(image_size);
    let positions = image_size >> (shape.channel_mult.len() - 1);
    EncoderConfig {
        pool: if positions <= MAX_POOL_SIZE { Pool::Attention } else { Pool::Adaptive },
        in_channels: channels,
        model_channels: (shape.width / 2).max(32),
        out_channels: classes,
        num_res_blocks: if image_size <= 20 { 1 } else { 2 },
        attention_resolutions: shape.attention.to_vec(),
        num_head_channels: Some(32),
        ..classifier(image_size, shape.channel_mult)
    }
}

struct Shape {
    width: usize,
    channel_mult: &'static [f64],
    attention: &'static [usize],
}

fn default_shape(image_size: usize) -> Shape {
    let (width, wanted, attention): (usize, &[f64], &[usize]) = match image_size {
        0..=20 => (32, &[1.0, 2.0, 2.0], &[2]),
        21..=48 => (64, &MULT_CIFAR, &[2, 4]),
        49..=96 => (128, &MULT_64, &[2, 4, 8]),
        97..=192 => (128, &MULT_128, &[4, 8, 16]),
        193..=384 => (128, &MULT_256, &[8, 16, 32]),
        _ => (128, &MULT_512, &[16, 32, 64]),
    };
    // As many levels as the size can be halved, keeping the innermost pixels.
    let halvings = image_size.trailing_zeros() as usize;
    let levels = wanted.len().min(halvings + 1);
    Shape { width, channel_mult: &wanted[..levels], attention }
}
