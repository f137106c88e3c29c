//! The U-Net's options, with the names of the reference's constructor.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Channels of a group-norm group are counted out of this many groups.
pub const GROUPS: usize = 32;

/// Bounds that no sensible network comes near: beyond them lies a slip or a
/// damaged file, and sizes would no longer fit the integers that count them.
const MAX_IMAGE_SIZE: usize = 8192;
const MAX_CHANNELS: usize = 8192;
const MAX_RES_BLOCKS: usize = 64;
const MAX_IMAGE_CHANNELS: usize = 64;
const MAX_CLASSES: usize = 1 << 20;

/// How a classifier makes one vector of its last feature map, with the names
/// of the reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pool {
    /// Group norm, SiLU, mean, 1x1 convolution.
    Adaptive,
    /// Attention from the mean to all positions.
    Attention,
    /// Channel means of every block, two linear layers with ReLU.
    Spatial,
    /// The same with group norm and SiLU.
    SpatialV2,
}

/// Options of the noisy-image classifier: the U-Net's encoder and a pooling
/// head (guided-diffusion's `EncoderUNetModel`, whose names these are).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EncoderConfig {
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Channels of the noisy image.
    pub in_channels: usize,
    /// Base width C.
    pub model_channels: usize,
    /// Number of classes.
    pub out_channels: usize,
    /// Residual blocks per level.
    pub num_res_blocks: usize,
    /// Downsampling factors at which blocks attend.
    pub attention_resolutions: Vec<usize>,
    /// Dropout probability in residual blocks.
    #[serde(default)]
    pub dropout: f32,
    /// Width multiplier of each level, fractions allowed.
    pub channel_mult: Vec<f64>,
    /// Resample by learned convolutions (otherwise by averages).
    #[serde(default = "yes")]
    pub conv_resample: bool,
    /// Attention heads, unless `num_head_channels` is given.
    #[serde(default = "one")]
    pub num_heads: usize,
    /// Channels of a head; the number of heads follows.
    #[serde(default)]
    pub num_head_channels: Option<usize>,
    /// Adaptive group norm (scale and shift) instead of an added embedding.
    #[serde(default)]
    pub use_scale_shift_norm: bool,
    /// Resample inside residual blocks (BigGAN) instead of between them.
    #[serde(default)]
    pub resblock_updown: bool,
    /// qkv channels as `[q|k|v][head]` instead of `[head][q|k|v]`.
    #[serde(default)]
    pub use_new_attention_order: bool,
    /// The pooling head.
    pub pool: Pool,
}

/// Any network that a file can hold.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum ModelConfig {
    /// A diffusion network.
    UNet(UNetConfig),
    /// A classifier.
    Encoder(EncoderConfig),
}

impl<'de> Deserialize<'de> for ModelConfig {
    /// Only a classifier has a `pool`. Decided here rather than by trying both,
    /// so that a mistake is reported for the network that was meant.
    fn deserialize<D: serde::Deserializer<'de>>(from: D) -> std::result::Result<Self, D::Error> {
        let value = serde_json::Value::deserialize(from)?;
        let parsed = if value.get("pool").is_some() {
            serde_json::from_value(value).map(ModelConfig::Encoder)
        } else {
            serde_json::from_value(value).map(ModelConfig::UNet)
        };
        parsed.map_err(serde::de::Error::custom)
    }
}

/// Options of the ADM U-Net (Dhariwal & Nichol 2021, appendix; the names are
/// those of guided-diffusion's `UNetModel`).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct UNetConfig {
    /// Side of the square image in pixels.
    pub image_size: usize,
    /// Channels of the noisy image.
    pub in_channels: usize,
    /// Base width C.
    pub model_channels: usize,
    /// 3, or 6 when the variance is learned (1 and 2 for grey images).
    pub out_channels: usize,
    /// Residual blocks per level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Downsampling factors at which blocks attend (2 = half the image size).
    pub attention_resolutions: Vec<usize>,
    /// Dropout probability in residual blocks.
    #[serde(default)]
    pub dropout: f32,
    /// Width multiplier of each level, fractions allowed.
    pub channel_mult: Vec<f64>,
    /// Resample by learned convolutions (otherwise by nearest and average).
    #[serde(default = "yes")]
    pub conv_resample: bool,
    /// Classes of a conditional network.
    #[serde(default)]
    pub num_classes: Option<usize>,
    /// One more row of the class embedding stands for "no class": what
    /// classifier-free guidance needs (Ho & Salimans 2022).
    #[serde(default)]
    pub null_class: bool,
    /// A super-resolution network: side of the low-resolution image that it is
    /// given beside the noisy one.
    #[serde(default)]
    pub small_size: Option<usize>,
    /// Recompute residual and attention blocks in the backward walk.
    #[serde(default)]
    pub use_checkpoint: bool,
    /// Attention heads, unless `num_head_channels` is given.
    #[serde(default = "one")]
    pub num_heads: usize,
    /// Channels of a head; the number of heads follows.
    #[serde(default)]
    pub num_head_channels: Option<usize>,
    /// Heads in the decoder, if different.
    #[serde(default)]
    pub num_heads_upsample: Option<usize>,
    /// Adaptive group norm (scale and shift) instead of an added embedding.
    #[serde(default)]
    pub use_scale_shift_norm: bool,
    /// Resample inside residual blocks (BigGAN) instead of between them.
    #[serde(default)]
    pub resblock_updown: bool,
    /// qkv channels as `[q|k|v][head]` instead of `[head][q|k|v]`.
    #[serde(default)]
    pub use_new_attention_order: bool,
}

fn yes() -> bool {
    true
}

fn one() -> usize {
    1
}

impl UNetConfig {
    /// Channels at a level: the multiple of the base width, truncated.
    pub fn channels(&self, level: usize) -> usize {
        (self.channel_mult[level] * self.model_channels as f64) as usize
    }

    /// Width of the timestep embedding after its two linear layers.
    pub fn embedding(&self) -> usize {
        self.model_channels * 4
    }

    /// Heads of an attention block over `channels`.
    pub fn heads(&self, channels: usize, decoder: bool) -> usize {
        match (self.num_head_channels, decoder) {
            (Some(d), _) => channels / d.max(1),
            (None, true) => self.num_heads_upsample.unwrap_or(self.num_heads),
            (None, false) => self.num_heads,
        }
    }

    /// An upper estimate of the arithmetic of one image forward, in floating-point
    /// operations: what a batch may not multiply beyond any device.
    pub fn work(&self) -> f64 {
        let levels = self.channel_mult.len();
        let of_level = |level: usize| {
            let pixels = ((self.image_size >> level) as f64).powi(2);
            // Decoder blocks also see the channels of the level below.
            let c = self.channels(level).max(self.channels((level + 1).min(levels - 1))) as f64;
            // Two 3x3 convolutions, one of them over a concatenation, and the skip.
            let mut block = 2.0 * pixels * c * c * (9.0 * 3.0 + 2.0);
            if self.attention_resolutions.contains(&(1 << level)) || level + 1 == levels {
                block += 4.0 * pixels * c * (pixels + 2.0 * c);
            }
            block * (2 * self.num_res_blocks + 5) as f64
        };
        (0..levels).map(of_level).sum()
    }

    /// Checks that the options describe a network.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option and what it must be.
    pub fn validate(&self) -> Result<()> {
        let fail = |detail: String| Err(Error::Config(format!("model: {detail}")));
        let levels = self.channel_mult.len();
        if levels == 0 || levels > 16 {
            return fail(format!("channel_mult has {levels} levels, 1 to 16 are possible"));
        }
        let factor = 1usize << (levels - 1);
        if self.image_size > MAX_IMAGE_SIZE {
            return fail(format!("image_size {} is above {MAX_IMAGE_SIZE}", self.image_size));
        }
        if self.image_size == 0 || !self.image_size.is_multiple_of(factor) {
            return fail(format!(
                "image_size {} cannot be halved {} times; choose a multiple of {factor} or fewer levels",
                self.image_size,
                levels - 1
            ));
        }
        if self.num_res_blocks == 0 || self.in_channels == 0 || self.out_channels == 0 {
            return fail("num_res_blocks, in_channels and out_channels must be at least 1".into());
        }
        for (name, value, most) in [
            ("num_res_blocks", self.num_res_blocks, MAX_RES_BLOCKS),
            ("in_channels", self.in_channels, MAX_IMAGE_CHANNELS),
            ("out_channels", self.out_channels, MAX_IMAGE_CHANNELS),
            ("model_channels", self.model_channels, MAX_CHANNELS),
            ("num_classes", self.num_classes.unwrap_or(1), MAX_CLASSES),
        ] {
            if value > most {
                return fail(format!("{name} {value} is above {most}"));
            }
        }
        if self.num_classes == Some(0) {
            return fail("num_classes must be at least 1".into());
        }
        if self.num_head_channels == Some(0) {
            return fail("num_head_channels must be at least 1".into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("dropout {} is not in [0, 1)", self.dropout));
        }
        for level in 0..levels {
            let channels = self.channels(level);
            if channels > MAX_CHANNELS {
                return fail(format!(
                    "level {level} has {channels} channels, above {MAX_CHANNELS}"
                ));
            }
            if channels == 0 || !channels.is_multiple_of(GROUPS) {
                return fail(format!(
                    "level {level} has {channels} channels; group norm needs a multiple of {GROUPS}"
                ));
            }
            for decoder in [false, true] {
                let heads = self.heads(channels, decoder);
                let attends =
                    self.attention_resolutions.contains(&(1 << level)) || level + 1 == levels;
                if attends && (heads == 0 || !channels.is_multiple_of(heads)) {
                    return fail(format!("{channels} channels do not divide into {heads} heads"));
                }
                if attends && self.num_head_channels.is_some_and(|d| !channels.is_multiple_of(d)) {
                    return fail(format!(
                        "{channels} channels are no multiple of num_head_channels"
                    ));
                }
            }
        }
        Ok(())
    }
}
