//! A network's configuration from the names and shapes of its parameters, for
//! files that hold weights alone.
//!
//! Names count blocks through (`input_blocks.7.1.qkv.weight`: block 7, second
//! layer), so widths, levels, attention, classes and outputs can be read off. What
//! leaves no trace in shapes (heads, their order in qkv, the size of the images,
//! dropout) has to be told ([`Hints`]) or known from a preset.

use std::collections::BTreeMap;

use super::presets::{encoder_preset, preset, preset_names};
use super::{EncoderConfig, ModelConfig, Pool, UNetConfig};
use crate::{Error, Result};

/// Most blocks of an encoder; beyond lies a damaged file.
const MAX_BLOCKS: usize = 1024;
/// Most levels, as in [`UNetConfig::validate`].
const MAX_LEVELS: usize = 16;
/// Longest axis of a parameter that is looked at.
const MAX_EXTENT: usize = 1 << 24;
/// Channels of a head in most published networks.
const HEAD_CHANNELS: usize = 64;
/// Heads where the channels do not divide into such heads.
const HEADS: usize = 4;

/// The shape of each parameter by name, as in the file.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// What shapes cannot tell. Fields left out are guessed where that is sensible.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hints {
    /// Side of the image in pixels.
    pub image_size: Option<usize>,
    /// Attention heads.
    pub num_heads: Option<usize>,
    /// Channels of a head.
    pub num_head_channels: Option<usize>,
    /// qkv channels as `[q|k|v][head]`.
    pub new_attention_order: bool,
    /// Side of the small image of a super-resolution network.
    pub small_size: Option<usize>,
    /// Residual blocks per level, where a classifier's levels are all alike.
    pub num_res_blocks: Option<usize>,
}

impl Hints {
    /// Replaces options of `config` by those that are given.
    pub fn apply(&self, config: &mut ModelConfig) {
        let (image_size, heads, head_channels, new_order) = match config {
            ModelConfig::UNet(c) => {
                c.small_size = self.small_size.or(c.small_size);
                (
                    &mut c.image_size,
                    &mut c.num_heads,
                    &mut c.num_head_channels,
                    &mut c.use_new_attention_order,
                )
            }
            ModelConfig::Encoder(c) => (
                &mut c.image_size,
                &mut c.num_heads,
                &mut c.num_head_channels,
                &mut c.use_new_attention_order,
            ),
        };
        *image_size = self.image_size.unwrap_or(*image_size);
        *new_order |= self.new_attention_order;
        if let Some(given) = self.num_heads {
            (*heads, *head_channels) = (given, None);
        }
        *head_channels = self.num_head_channels.or(*head_channels);
    }
}

/// How resolutions change between levels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Between {
    /// By the bare average and nearest, which have no parameters.
    Plain,
    Convolutions,
    Blocks,
}

impl Between {
    fn of(levels: usize, updown: bool, convolutions: bool) -> Between {
        match (updown, convolutions) {
            _ if levels == 1 => Between::Plain,
            (true, _) => Between::Blocks,
            (false, true) => Between::Convolutions,
            (false, false) => Between::Plain,
        }
    }
}

/// Channels of each level.
fn widths(channel_mult: &[f64], model_channels: usize) -> Vec<usize> {
    channel_mult.iter().map(|m| (m * model_channels as f64) as usize).collect()
}

/// Which levels attend.
fn attending(factors: &[usize], levels: usize) -> Vec<bool> {
    (0..levels).map(|level| factors.contains(&(1 << level))).collect()
}

/// All that shapes tell.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Structure {
    model_channels: usize,
    /// Channels of the first convolution's input: twice the image's for
    /// super-resolution.
    stem: usize,
    out_channels: usize,
    num_res_blocks: usize,
    /// Channels of each level.
    channels: Vec<usize>,
    /// Whether the blocks of each level attend.
    attends: Vec<bool>,
    between: Between,
    /// Rows of the class embedding.
    classes: Option<usize>,
    adaptive: bool,
    /// Of a classifier.
    pool: Option<Pool>,
    /// Side of the last feature map, where an attention pool tells it.
    last_size: Option<usize>,
}

impl Structure {
    /// What the file of a network would tell.
    fn of(config: &ModelConfig) -> Structure {
        match config {
            ModelConfig::UNet(c) => Structure::of_unet(c),
            ModelConfig::Encoder(c) => Structure::of_encoder(c),
        }
    }

    fn of_unet(c: &UNetConfig) -> Structure {
        Structure {
            model_channels: c.model_channels,
            stem: c.in_channels * if c.small_size.is_some() { 2 } else { 1 },
            out_channels: c.out_channels,
            num_res_blocks: c.num_res_blocks,
            channels: widths(&c.channel_mult, c.model_channels),
            attends: attending(&c.attention_resolutions, c.channel_mult.len()),
            between: Between::of(c.channel_mult.len(), c.resblock_updown, c.conv_resample),
            classes: c.num_classes.map(|n| n + usize::from(c.null_class)),
            adaptive: c.use_scale_shift_norm,
            pool: None,
            last_size: None,
        }
    }

    fn of_encoder(c: &EncoderConfig) -> Structure {
        let levels = c.channel_mult.len();
        Structure {
            model_channels: c.model_channels,
            stem: c.in_channels,
            out_channels: c.out_channels,
            num_res_blocks: c.num_res_blocks,
            channels: widths(&c.channel_mult, c.model_channels),
            attends: attending(&c.attention_resolutions, levels),
            between: Between::of(levels, c.resblock_updown, c.conv_resample),
            classes: None,
            adaptive: c.use_scale_shift_norm,
            pool: Some(c.pool),
            last_size: (c.pool == Pool::Attention).then(|| c.image_size >> (levels - 1)),
        }
    }

    fn levels(&self) -> usize {
        self.channels.len()
    }

    fn attention_resolutions(&self) -> Vec<usize> {
        (0..self.levels()).filter(|&l| self.attends[l]).map(|l| 1 << l).collect()
    }

    fn channel_mult(&self) -> Vec<f64> {
        self.channels.iter().map(|&c| multiplier(c, self.model_channels)).collect()
    }

    /// Heads and channels of a head: what is hinted, 64 channels where all that
    /// attend divide, else four heads.
    fn heads(&self, hints: &Hints) -> (usize, Option<usize>) {
        let last = self.levels() - 1;
        let attending = (0..=last).filter(|&l| self.attends[l] || l == last);
        let divides = attending.map(|l| self.channels[l]).all(|c| c.is_multiple_of(HEAD_CHANNELS));
        match (hints.num_heads, hints.num_head_channels) {
            (heads, Some(channels)) => (heads.unwrap_or(1), Some(channels)),
            (Some(heads), None) => (heads, None),
            (None, None) if divides => (1, Some(HEAD_CHANNELS)),
            (None, None) => (HEADS, None),
        }
    }

    fn unet(&self, hints: &Hints) -> Result<UNetConfig> {
        let super_resolution = self.is_super_resolution(hints);
        // A size that only presets tell: those with the same parameters.
        let alike = || {
            presets_like(self).into_iter().filter_map(|name| match model_preset(name) {
                Some(ModelConfig::UNet(config)) => Some(config),
                _ => None,
            })
        };
        let small_size = match (super_resolution, hints.small_size) {
            (false, _) => None,
            (true, Some(size)) => Some(size),
            (true, None) => Some(alike().find_map(|p| p.small_size).ok_or_else(|| {
                Error::Config(
                    "a super-resolution network: the size of its small image has to be given \
                     (--small-size)"
                        .into(),
                )
            })?),
        };
        let image_size = hints.image_size.or_else(|| alike().next().map(|p| p.image_size));
        let (num_heads, num_head_channels) = self.heads(hints);
        let config = UNetConfig {
            image_size: image_size.ok_or_else(|| {
                Error::Config(
                    "the parameters of a network do not tell the size of its images: \
                     it has to be given (--image-size)"
                        .into(),
                )
            })?,
            in_channels: if super_resolution { self.stem / 2 } else { self.stem },
            model_channels: self.model_channels,
            out_channels: self.out_channels,
            num_res_blocks: self.num_res_blocks,
            attention_resolutions: self.attention_resolutions(),
            channel_mult: self.channel_mult(),
            conv_resample: self.between != Between::Plain,
            num_classes: self.classes,
            small_size,
            num_heads,
            num_head_channels,
            use_scale_shift_norm: self.adaptive,
            resblock_updown: self.between == Between::Blocks,
            use_new_attention_order: hints.new_attention_order,
            ..Default::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// The first convolution sees the noisy and the small image. Six channels in
    /// and three or six out are taken for it even where nothing is hinted.
    fn is_super_resolution(&self, hints: &Hints) -> bool {
        let images = self.stem.is_multiple_of(2)
            && (self.out_channels == self.stem || 2 * self.out_channels == self.stem);
        images && (hints.small_size.is_some() || self.stem == 6 || self.out_channels < self.stem)
    }

    fn encoder(&self, pool: Pool, hints: &Hints) -> Result<EncoderConfig> {
        let told = self.last_size.map(|size| size << (self.levels() - 1));
        let (num_heads, num_head_channels) = self.heads(hints);
        let config = EncoderConfig {
            image_size: told.or(hints.image_size).ok_or_else(|| {
                Error::Config(
                    "the parameters of this classifier do not tell the size of its images: \
                     it has to be given (--image-size)"
                        .into(),
                )
            })?,
            in_channels: self.stem,
            model_channels: self.model_channels,
            out_channels: self.out_channels,
            num_res_blocks: self.num_res_blocks,
            attention_resolutions: self.attention_resolutions(),
            channel_mult: self.channel_mult(),
            conv_resample: self.between != Between::Plain,
            num_heads,
            num_head_channels,
            use_scale_shift_norm: self.adaptive,
            resblock_updown: self.between == Between::Blocks,
            use_new_attention_order: hints.new_attention_order,
            pool,
            ..Default::default()
        };
        config.validate()?;
        Ok(config)
    }
}

/// The factor that gives `channels` when multiplied by `base` and truncated.
pub(crate) fn multiplier(channels: usize, base: usize) -> f64 {
    let factor = channels as f64 / base as f64;
    // A quotient rounded down could lose a whole channel.
    if ((factor * base as f64) as usize) < channels { factor.next_up() } else { factor }
}

/// Infers the configuration of the network whose parameters have these shapes.
///
/// # Errors
/// [`Error::Config`] naming the parameter that is missing or does not fit, or
/// the hint without which the configuration is unknown.
pub fn infer(shapes: &Shapes, hints: &Hints) -> Result<ModelConfig> {
    let structure = Reader(shapes).structure(hints)?;
    Ok(match structure.pool {
        None => ModelConfig::UNet(structure.unet(hints)?),
        Some(pool) => ModelConfig::Encoder(structure.encoder(pool, hints)?),
    })
}

/// The presets whose parameters have these names and shapes. Several may, since
/// heads and dropout leave no trace; none if it is no network of this kind.
pub fn match_preset(shapes: &Shapes) -> Vec<&'static str> {
    Reader(shapes).structure(&Hints::default()).map_or(Vec::new(), |found| presets_like(&found))
}

fn presets_like(structure: &Structure) -> Vec<&'static str> {
    let alike = |name: &str| model_preset(name).is_some_and(|p| Structure::of(&p) == *structure);
    preset_names().iter().copied().filter(|name| alike(name)).collect()
}

/// The network called `name`, of any kind.
pub fn model_preset(name: &str) -> Option<ModelConfig> {
    let encoder = || encoder_preset(name).map(ModelConfig::Encoder);
    preset(name).map(ModelConfig::UNet).or_else(encoder)
}

/// Looks parameters up.
struct Reader<'a>(&'a Shapes);

impl Reader<'_> {
    fn has(&self, name: &str) -> bool {
        self.0.contains_key(name)
    }

    /// The shape of a parameter that must be there and have as many axes.
    fn shape<const N: usize>(&self, name: &str) -> Result<[usize; N]> {
        let shape = self.0.get(name).ok_or_else(|| {
            Error::Config(format!("no network of a known kind: {name} is missing"))
        })?;
        let extents = shape[..]
            .try_into()
            .ok()
            .filter(|s: &[usize; N]| s.iter().all(|d| (1..=MAX_EXTENT).contains(d)));
        extents.ok_or_else(|| {
            let why = format!("{name} has the shape {shape:?}, {N} axes are needed");
            Error::Config(format!("no network of a known kind: {why}"))
        })
    }

    /// One more than the highest number after `prefix`.
    fn blocks(&self, prefix: &str) -> Result<usize> {
        let names = self.0.range(prefix.to_owned()..).take_while(|(n, _)| n.starts_with(prefix));
        let number = |name: &String| name[prefix.len()..].split('.').next()?.parse().ok();
        let most = names.filter_map(|(name, _)| number(name)).max().unwrap_or(0);
        if most >= MAX_BLOCKS {
            return Err(Error::Config(format!("{prefix}{most} is beyond {MAX_BLOCKS} blocks")));
        }
        Ok(most + 1)
    }

    fn is_res_block(&self, block: usize) -> bool {
        self.has(&format!("input_blocks.{block}.0.in_layers.2.weight"))
    }

    fn attends(&self, block: usize) -> bool {
        self.has(&format!("input_blocks.{block}.1.qkv.weight"))
    }

    /// Input and output channels of an encoder's residual block.
    fn widths(&self, block: usize) -> Result<[usize; 2]> {
        let [cout, cin, _, _] =
            self.shape::<4>(&format!("input_blocks.{block}.0.in_layers.2.weight"))?;
        Ok([cin, cout])
    }

    fn structure(&self, hints: &Hints) -> Result<Structure> {
        let [embedding, model_channels] = self.shape::<2>("time_embed.0.weight")?;
        if embedding != 4 * model_channels {
            return Err(Error::Config(format!(
                "no network of a known kind: time_embed.0.weight has the shape \
                 [{embedding}, {model_channels}], four times as many rows are needed"
            )));
        }
        let [_, stem, _, _] = self.shape::<4>("input_blocks.0.0.weight")?;
        let is_unet = self.has("output_blocks.0.0.in_layers.2.weight");
        let (out_channels, pool, last_size) =
            if is_unet { (self.shape::<4>("out.2.weight")?[0], None, None) } else { self.head()? };
        let blocks = self.blocks("input_blocks.")?;
        let group = self.group(blocks, is_unet, last_size, hints)?;
        let levels = blocks / group;
        if levels > MAX_LEVELS {
            return Err(Error::Config(format!("{levels} levels are beyond {MAX_LEVELS}")));
        }
        let mut channels = Vec::with_capacity(levels);
        for level in 0..levels {
            channels.push(self.widths(1 + level * group)?[1]);
        }
        let [width, _] = self.shape::<2>("input_blocks.1.0.emb_layers.1.weight")?;
        let classes = "label_emb.weight";
        Ok(Structure {
            model_channels,
            stem,
            out_channels,
            num_res_blocks: group - 1,
            attends: (0..levels).map(|level| self.attends(1 + level * group)).collect(),
            between: match levels {
                2.. if self.is_res_block(group) => Between::Blocks,
                2.. if self.has(&format!("input_blocks.{group}.0.op.weight")) => {
                    Between::Convolutions
                }
                _ => Between::Plain,
            },
            classes: if self.has(classes) { Some(self.shape::<2>(classes)?[0]) } else { None },
            adaptive: width == 2 * channels[0],
            channels,
            pool,
            last_size,
        })
    }

    /// A classifier's head: its classes, its kind, and the side of the feature
    /// map it pools where that can be told.
    fn head(&self) -> Result<(usize, Option<Pool>, Option<usize>)> {
        if self.has("out.2.positional_embedding") {
            let [_, tokens] = self.shape::<2>("out.2.positional_embedding")?;
            let [classes, _, _] = self.shape::<3>("out.2.c_proj.weight")?;
            // One token is the mean of the others.
            return Ok((classes, Some(Pool::Attention), Some((tokens - 1).isqrt())));
        }
        if self.0.get("out.3.weight").is_some_and(|s| s.len() == 4) {
            return Ok((self.shape::<4>("out.3.weight")?[0], Some(Pool::Adaptive), None));
        }
        if self.has("out.3.weight") {
            return Ok((self.shape::<2>("out.3.weight")?[0], Some(Pool::SpatialV2), None));
        }
        Ok((self.shape::<2>("out.2.weight")?[0], Some(Pool::Spatial), None))
    }

    /// Encoder blocks of a level: its residual blocks, and the one that halves
    /// the resolution or, before the first level, the first convolution.
    fn group(
        &self,
        blocks: usize,
        is_unet: bool,
        last_size: Option<usize>,
        hints: &Hints,
    ) -> Result<usize> {
        let undecided = |what: String| Error::Config(format!("no network of a known kind: {what}"));
        // A convolution, or nothing where resampling has no parameters.
        let downsample = (1..blocks).find(|&block| !self.is_res_block(block));
        // Else the decoder tells, whose levels end in one layer more.
        let upsample = (0..blocks).find(|&block| {
            (1..=2)
                .any(|layer| self.has(&format!("output_blocks.{block}.{layer}.in_layers.0.weight")))
        });
        let group = match (downsample, upsample) {
            (Some(block), _) => block,
            (None, Some(block)) => block + 1,
            (None, None) if is_unet => blocks,
            (None, None) => {
                let could_be: Vec<usize> =
                    (2..=blocks).filter(|&g| self.could_be_group(blocks, g)).collect();
                let fits = |group: usize| {
                    let size = last_size.map(|s| s << (blocks / group - 1).min(32));
                    hints.num_res_blocks.is_none_or(|r| r + 1 == group)
                        && (size.is_none()
                            || hints.image_size.is_none()
                            || size == hints.image_size)
                };
                let fitting: Vec<usize> = could_be.iter().copied().filter(|&g| fits(g)).collect();
                let [group] = fitting[..] else {
                    let counts: Vec<usize> = could_be.iter().map(|g| g - 1).collect();
                    return Err(undecided(format!(
                        "its residual blocks per level could be any of {counts:?}, which has to \
                         be given (--num-res-blocks)"
                    )));
                };
                group
            }
        };
        if group < 2 || !blocks.is_multiple_of(group) {
            return Err(undecided(format!("{blocks} input blocks in levels of {group}")));
        }
        Ok(group)
    }

    /// Whether an encoder of nothing but residual blocks can have levels of
    /// `group` blocks: widths and attention change with the level alone, and the
    /// last block of a level, which halves the resolution, does neither.
    fn could_be_group(&self, blocks: usize, group: usize) -> bool {
        if !blocks.is_multiple_of(group) {
            return false;
        }
        (1..blocks).all(|block| {
            let (level, place) = ((block - 1) / group, (block - 1) % group);
            let first = 1 + level * group;
            let (Ok([cin, cout]), Ok([_, width])) = (self.widths(block), self.widths(first)) else {
                return false;
            };
            let attends = place + 1 < group && self.attends(first);
            cout == width && (place == 0 || cin == cout) && self.attends(block) == attends
        })
    }
}
