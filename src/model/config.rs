//! The U-Net's options, with the names of the reference's constructor.

use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Channels of a group-norm group are counted out of this many groups.
pub const GROUPS: usize = 32;

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
    /// qkv channels as [q|k|v][head] instead of [head][q|k|v].
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
        if self.num_classes == Some(0) {
            return fail("num_classes must be at least 1".into());
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("dropout {} is not in [0, 1)", self.dropout));
        }
        for level in 0..levels {
            let channels = self.channels(level);
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
