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

/// Positions a side over which an attention pool may attend.
pub(super) const MAX_POOL_SIZE: usize = 128;

/// Width between the two linear layers of the spatial pools.
pub(super) const SPATIAL_WIDTH: usize = 2048;

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

impl Default for UNetConfig {
    /// What the reference's constructor takes where nothing is given. Where it asks for
    /// a value, that of the reference's scripts: an unconditional network for colour
    /// images of 64 pixels, of base width 128, which predicts no variance.
    fn default() -> Self {
        UNetConfig {
            image_size: 64,
            in_channels: 3,
            model_channels: 128,
            out_channels: 3,
            num_res_blocks: 2,
            attention_resolutions: vec![4, 8],
            dropout: 0.0,
            channel_mult: vec![1.0, 2.0, 3.0, 4.0],
            conv_resample: yes(),
            num_classes: None,
            null_class: false,
            small_size: None,
            use_checkpoint: false,
            num_heads: one(),
            num_head_channels: None,
            num_heads_upsample: None,
            use_scale_shift_norm: false,
            resblock_updown: false,
            use_new_attention_order: false,
        }
    }
}

impl Default for EncoderConfig {
    /// As [`UNetConfig::default`], for 1000 classes and with the attention pool.
    fn default() -> Self {
        EncoderConfig {
            image_size: 64,
            in_channels: 3,
            model_channels: 128,
            out_channels: 1000,
            num_res_blocks: 2,
            attention_resolutions: vec![4, 8],
            dropout: 0.0,
            channel_mult: vec![1.0, 2.0, 3.0, 4.0],
            conv_resample: yes(),
            num_heads: one(),
            num_head_channels: None,
            use_scale_shift_norm: false,
            resblock_updown: false,
            use_new_attention_order: false,
            pool: Pool::Attention,
        }
    }
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
        self.trunk().channels(level)
    }

    /// Width of the timestep embedding after its two linear layers.
    pub fn embedding(&self) -> usize {
        self.trunk().embedding()
    }

    /// Heads of an attention block over `channels`.
    pub fn heads(&self, channels: usize, decoder: bool) -> usize {
        self.trunk().heads(channels, decoder)
    }

    /// Rows of the class embedding: one more than classes if the last one
    /// stands for "no class".
    pub fn label_rows(&self) -> Option<usize> {
        self.num_classes.map(|classes| classes + usize::from(self.null_class))
    }

    /// An upper estimate of the arithmetic of one image forward, in floating-point
    /// operations: what a batch may not multiply beyond any device.
    pub fn work(&self) -> f64 {
        self.trunk().work(true)
    }

    /// Checks that the options describe a network.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option and what it must be.
    pub fn validate(&self) -> Result<()> {
        let trunk = self.trunk();
        trunk.validate(true)?;
        check_count("out_channels", self.out_channels, MAX_IMAGE_CHANNELS)?;
        if let Some(classes) = self.num_classes {
            check_count("num_classes", classes, MAX_CLASSES)?;
        }
        if self.null_class && self.num_classes.is_none() {
            return fail("null_class is one more row of the class embedding: give num_classes");
        }
        match self.small_size {
            Some(small) if small == 0 || small > self.image_size => {
                fail(format!("small_size {small} is not in 1 to image_size {}", self.image_size))
            }
            _ => Ok(()),
        }
    }
}

impl EncoderConfig {
    /// An upper estimate of the arithmetic of one image forward, as
    /// [`UNetConfig::work`].
    pub fn work(&self) -> f64 {
        let trunk = self.trunk();
        let last = trunk.levels().checked_sub(1).map_or(0, |level| trunk.channels(level)) as f64;
        let classes = self.out_channels as f64;
        let pixels = (trunk.last_size() * trunk.last_size()) as f64;
        let head = match self.pool {
            Pool::Adaptive => 2.0 * last * classes,
            Pool::Attention => {
                let tokens = pixels + 1.0;
                tokens * last * (6.0 * last + 4.0 * tokens) + 2.0 * last * classes
            }
            Pool::Spatial | Pool::SpatialV2 => {
                2.0 * SPATIAL_WIDTH as f64 * (self.features() as f64 + classes)
            }
        };
        trunk.work(false) + head
    }

    /// Checks that the options describe a classifier.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option and what it must be.
    pub fn validate(&self) -> Result<()> {
        let trunk = self.trunk();
        trunk.validate(false)?;
        check_count("out_channels", self.out_channels, MAX_CLASSES)?;
        let size = trunk.last_size();
        if self.pool == Pool::Attention && size > MAX_POOL_SIZE {
            return fail(format!(
                "the attention pool would see {size}x{size} positions, at most {MAX_POOL_SIZE}x{MAX_POOL_SIZE} are possible; give more levels"
            ));
        }
        Ok(())
    }

    /// Width of the vector of channel means that the spatial pools read: of
    /// every input block and of the middle.
    pub(super) fn features(&self) -> usize {
        let trunk = self.trunk();
        let Some(last) = trunk.levels().checked_sub(1) else { return 0 };
        let of_level = |level: usize| {
            // The first level has the stem, the others begin with the
            // resampling block, which keeps the channels of the level above.
            let first = trunk.channels(level.saturating_sub(1));
            first + trunk.num_res_blocks * trunk.channels(level)
        };
        (0..=last).map(of_level).sum::<usize>() + trunk.channels(last)
    }
}

/// Declares [`Trunk`] and how both networks become one, from one list of fields.
macro_rules! trunk {
    (values { $($value:ident: $type:ty,)+ } lists { $($list:ident: $item:ty,)+ }) => {
        /// The options that describe blocks, shared by both networks.
        #[derive(Debug, Clone, Copy)]
        pub(super) struct Trunk<'a> {
            $(pub $value: $type,)+
            $(pub $list: &'a [$item],)+
            /// Of the U-Net alone.
            pub use_checkpoint: bool,
            /// Of the U-Net alone.
            pub num_heads_upsample: Option<usize>,
        }

        impl UNetConfig {
            pub(super) fn trunk(&self) -> Trunk<'_> {
                Trunk {
                    $($value: self.$value,)+
                    $($list: &self.$list,)+
                    use_checkpoint: self.use_checkpoint,
                    num_heads_upsample: self.num_heads_upsample,
                }
            }
        }

        impl EncoderConfig {
            pub(super) fn trunk(&self) -> Trunk<'_> {
                Trunk {
                    $($value: self.$value,)+
                    $($list: &self.$list,)+
                    use_checkpoint: false,
                    num_heads_upsample: None,
                }
            }
        }
    };
}

trunk! {
    values {
        image_size: usize,
        in_channels: usize,
        model_channels: usize,
        num_res_blocks: usize,
        dropout: f32,
        conv_resample: bool,
        num_heads: usize,
        num_head_channels: Option<usize>,
        use_scale_shift_norm: bool,
        resblock_updown: bool,
        use_new_attention_order: bool,
    }
    lists {
        attention_resolutions: usize,
        channel_mult: f64,
    }
}

fn fail<T>(detail: impl std::fmt::Display) -> Result<T> {
    Err(Error::Config(format!("model: {detail}")))
}

/// A count between 1 and `most`.
fn check_count(name: &str, value: usize, most: usize) -> Result<()> {
    match value {
        0 => fail(format!("{name} must be at least 1")),
        _ if value > most => fail(format!("{name} {value} is above {most}")),
        _ => Ok(()),
    }
}

impl Trunk<'_> {
    pub fn levels(&self) -> usize {
        self.channel_mult.len()
    }

    pub fn channels(&self, level: usize) -> usize {
        (self.channel_mult[level] * self.model_channels as f64) as usize
    }

    pub fn embedding(&self) -> usize {
        self.model_channels * 4
    }

    pub fn heads(&self, channels: usize, decoder: bool) -> usize {
        match (self.num_head_channels, decoder) {
            (Some(d), _) => channels / d.max(1),
            (None, true) => self.num_heads_upsample.unwrap_or(self.num_heads),
            (None, false) => self.num_heads,
        }
    }

    /// Whether the residual blocks of a level are followed by attention.
    pub fn attends(&self, level: usize) -> bool {
        self.attention_resolutions.contains(&(1 << level))
    }

    /// Side of the last level's feature maps.
    pub fn last_size(&self) -> usize {
        self.image_size >> self.levels().saturating_sub(1)
    }

    /// Upper estimate of the arithmetic of one image forward.
    pub fn work(&self, decoder: bool) -> f64 {
        let levels = self.levels();
        // Blocks of a level, the resampling one and the middle's included, and
        // how many times wider a decoder's are for what they concatenate.
        let (blocks, widening) = if decoder {
            (2 * self.num_res_blocks + 5, 3.0)
        } else {
            (self.num_res_blocks + 3, 2.0)
        };
        let of_level = |level: usize| {
            let pixels = ((self.image_size >> level) as f64).powi(2);
            // Blocks may also see the channels of the level below.
            let c = self.channels(level).max(self.channels((level + 1).min(levels - 1))) as f64;
            // Two 3x3 convolutions and the skip.
            let mut block = 2.0 * pixels * c * c * (9.0 * widening + 2.0);
            if self.attends(level) || level + 1 == levels {
                block += 4.0 * pixels * c * (pixels + 2.0 * c);
            }
            block * blocks as f64
        };
        (0..levels).map(of_level).sum()
    }

    /// Checks everything but outputs and classes.
    pub fn validate(&self, decoder: bool) -> Result<()> {
        let levels = self.levels();
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
        check_count("num_res_blocks", self.num_res_blocks, MAX_RES_BLOCKS)?;
        check_count("in_channels", self.in_channels, MAX_IMAGE_CHANNELS)?;
        check_count("model_channels", self.model_channels, MAX_CHANNELS)?;
        if self.num_head_channels == Some(0) {
            return fail("num_head_channels must be at least 1");
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return fail(format!("dropout {} is not in [0, 1)", self.dropout));
        }
        (0..levels).try_for_each(|level| self.validate_level(level, decoder))
    }

    fn validate_level(&self, level: usize, decoder: bool) -> Result<()> {
        let channels = self.channels(level);
        if channels > MAX_CHANNELS {
            return fail(format!("level {level} has {channels} channels, above {MAX_CHANNELS}"));
        }
        if channels == 0 || !channels.is_multiple_of(GROUPS) {
            return fail(format!(
                "level {level} has {channels} channels; group norm needs a multiple of {GROUPS}"
            ));
        }
        if !self.attends(level) && level + 1 < self.levels() {
            return Ok(());
        }
        for decoder in [false, decoder] {
            let heads = self.heads(channels, decoder);
            if heads == 0 || !channels.is_multiple_of(heads) {
                return fail(format!("{channels} channels do not divide into {heads} heads"));
            }
            if self.num_head_channels.is_some_and(|d| !channels.is_multiple_of(d)) {
                return fail(format!("{channels} channels are no multiple of num_head_channels"));
            }
        }
        Ok(())
    }
}
