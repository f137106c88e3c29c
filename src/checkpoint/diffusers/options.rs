//! The configurations of diffusers' networks and schedulers as ours, and back.

use std::collections::BTreeSet;
use std::path::PathBuf;

use serde_json::{Map, Value, json};

use crate::checkpoint::guess::default_diffusion;
use crate::diffusion::{DiffusionConfig, MeanType, NoiseSchedule, VarType};
use crate::model::{Hints, UNetConfig, multiplier};
use crate::{Error, Result};

/// Ends of the betas of a linear schedule of 1000 steps.
const LINEAR_BETAS: [f64; 2] = [1e-4, 0.02];

/// A configuration of theirs.
pub(super) struct Options {
    pub(super) map: Map<String, Value>,
    pub(super) path: PathBuf,
}

impl Options {
    /// What is wrong with an option.
    fn refuse(&self, key: &str, needed: &str) -> Error {
        let found = self.map.get(key).unwrap_or(&Value::Null);
        Error::Config(format!("{}: {key} is {found}, {needed}", self.path.display()))
    }

    /// The option, unless it is missing or null.
    fn get(&self, key: &str) -> Option<&Value> {
        self.map.get(key).filter(|value| !value.is_null())
    }

    /// An option that is one of ours only with this value; missing, it is that.
    fn only(&self, key: &str, value: &Value) -> Result<()> {
        let same = |found: &Value| match (found.as_f64(), value.as_f64()) {
            (Some(a), Some(b)) => (a - b).abs() <= 1e-9 * b.abs(),
            _ => found == value,
        };
        if self.map.get(key).is_none_or(same) {
            return Ok(());
        }
        Err(self.refuse(key, &format!("our networks need {value}")))
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        let wrong = || self.refuse(key, "a count is needed");
        let count = |v: &Value| v.as_u64().filter(|n| *n < 1 << 32).ok_or_else(wrong);
        self.get(key).map(|v| count(v).map(|n| n as usize)).transpose()
    }

    fn needed_count(&self, key: &str) -> Result<usize> {
        self.count(key)?.ok_or_else(|| self.refuse(key, "a count is needed"))
    }

    fn text(&self, key: &str) -> Option<&str> {
        self.get(key).and_then(Value::as_str)
    }

    fn list<T>(&self, key: &str, of: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        let list = self.get(key).and_then(Value::as_array);
        let items: Option<Vec<T>> = list.and_then(|items| items.iter().map(of).collect());
        items.filter(|l| !l.is_empty()).ok_or_else(|| self.refuse(key, "a list is needed"))
    }
}

/// Options that must have one value, or be missing.
fn fixed_options() -> [(&'static str, Value); 12] {
    [
        ("_class_name", json!("UNet2DModel")),
        ("center_input_sample", json!(false)),
        ("time_embedding_type", json!("positional")),
        ("freq_shift", json!(0)),
        ("flip_sin_to_cos", json!(true)),
        ("mid_block_type", json!("UNetMidBlock2D")),
        ("mid_block_scale_factor", json!(1)),
        ("act_fn", json!("silu")),
        ("norm_num_groups", json!(32)),
        ("norm_eps", json!(1e-5)),
        ("add_attention", json!(true)),
        ("class_embed_type", Value::Null),
    ]
}

/// Options that are looked at one by one, or that only matter in training.
const OTHER_OPTIONS: [&str; 16] = [
    "sample_size",
    "in_channels",
    "out_channels",
    "time_embedding_dim",
    "down_block_types",
    "up_block_types",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "downsample_type",
    "upsample_type",
    "dropout",
    "attention_head_dim",
    "attn_norm_num_groups",
    "resnet_time_scale_shift",
    "num_class_embeds",
];

/// The network of a `UNet2DModel`'s configuration.
///
/// # Errors
/// [`Error::Config`] naming the first option that our networks do not have.
pub(super) fn read_config(options: &Options, hints: &Hints) -> Result<UNetConfig> {
    if options.text("_class_name").is_none() {
        return Err(options.refuse("_class_name", "\"UNet2DModel\" is needed"));
    }
    let fixed = fixed_options();
    for (key, value) in &fixed {
        options.only(key, value)?;
    }
    // An option that we do not know changes the network unless it is off.
    let known = |key: &str| {
        let listed = fixed.iter().map(|f| f.0).chain(OTHER_OPTIONS);
        key.starts_with('_') || key == "num_train_timesteps" || listed.into_iter().any(|k| k == key)
    };
    let off = |value: &Value| matches!(value, Value::Null | Value::Bool(false));
    if let Some((key, _)) = options.map.iter().find(|(k, v)| !known(k) && !off(v)) {
        return Err(options.refuse(key, "which our networks do not have"));
    }

    let channels = options.list("block_out_channels", |v| {
        v.as_u64().filter(|n| (1..1 << 32).contains(n)).map(|n| n as usize)
    })?;
    let blocks = BlockTypes::read(options, channels.len())?;
    let adaptive = match options.text("resnet_time_scale_shift").unwrap_or("default") {
        "default" => false,
        "scale_shift" => true,
        _ => {
            let needed = "\"default\" or \"scale_shift\" is possible";
            return Err(options.refuse("resnet_time_scale_shift", needed));
        }
    };
    // Without this option the middle of an adaptive network has no group norm.
    match options.count("attn_norm_num_groups")? {
        Some(32) => {}
        None if !adaptive => {}
        _ => return Err(options.refuse("attn_norm_num_groups", "our networks need 32")),
    }
    if options.count("time_embedding_dim")?.is_some_and(|n| n != 4 * channels[0]) {
        let needed = format!("our networks need {}", 4 * channels[0]);
        return Err(options.refuse("time_embedding_dim", &needed));
    }
    let head_channels = match options.map.get("attention_head_dim") {
        None => Some(8),
        Some(_) => options.count("attention_head_dim")?,
    };
    let config = UNetConfig {
        image_size: image_size(options, hints)?,
        in_channels: options.needed_count("in_channels")?,
        model_channels: channels[0],
        out_channels: options.needed_count("out_channels")?,
        num_res_blocks: options.needed_count("layers_per_block")?,
        attention_resolutions: blocks.attention_resolutions,
        dropout: options.get("dropout").and_then(Value::as_f64).unwrap_or(0.0) as f32,
        channel_mult: channels.iter().map(|&c| multiplier(c, channels[0])).collect(),
        num_classes: options.count("num_class_embeds")?,
        num_head_channels: head_channels,
        use_scale_shift_norm: adaptive,
        resblock_updown: blocks.updown,
        // Three matrices one after the other: what we make of theirs.
        use_new_attention_order: true,
        ..Default::default()
    };
    config.validate().map_err(|e| Error::Config(format!("{}: {e}", options.path.display())))?;
    Ok(config)
}

fn image_size(options: &Options, hints: &Hints) -> Result<usize> {
    let told = match options.get("sample_size") {
        None => None,
        Some(Value::Array(sides)) if sides.len() == 2 && sides[0] == sides[1] => {
            sides[0].as_u64().map(|n| n as usize)
        }
        Some(Value::Array(_)) => {
            return Err(options.refuse("sample_size", "our images are square"));
        }
        Some(_) => options.count("sample_size")?,
    };
    hints
        .image_size
        .or(told)
        .ok_or_else(|| options.refuse("sample_size", "so the size of the images has to be given"))
}

/// What the lists of block types say.
struct BlockTypes {
    attention_resolutions: Vec<usize>,
    /// Resample inside residual blocks.
    updown: bool,
}

impl BlockTypes {
    fn read(options: &Options, levels: usize) -> Result<BlockTypes> {
        let text = |v: &Value| v.as_str().map(str::to_owned);
        let mut attends = BTreeSet::new();
        let mut updown = None;
        for (key, resample, plain, adaptive, attending) in [
            (
                "down_block_types",
                "downsample_type",
                "DownBlock2D",
                "ResnetDownsampleBlock2D",
                "AttnDownBlock2D",
            ),
            (
                "up_block_types",
                "upsample_type",
                "UpBlock2D",
                "ResnetUpsampleBlock2D",
                "AttnUpBlock2D",
            ),
        ] {
            let mut types = options.list(key, text)?;
            if types.len() != levels || levels > 16 {
                return Err(
                    options.refuse(key, "as many as block_out_channels are needed, up to 16")
                );
            }
            // The decoder's are listed from the innermost level outwards.
            if key == "up_block_types" {
                types.reverse();
            }
            let inside = match options.text(resample).unwrap_or("conv") {
                "conv" => false,
                "resnet" => true,
                _ => return Err(options.refuse(resample, "\"conv\" or \"resnet\" is possible")),
            };
            let mut attending_here = BTreeSet::new();
            for (level, kind) in types.iter().enumerate() {
                let how = match kind.as_str() {
                    k if k == plain => false,
                    k if k == adaptive => true,
                    k if k == attending => {
                        attending_here.insert(level);
                        inside
                    }
                    _ => {
                        let needed = format!("{plain}, {adaptive} and {attending} are possible");
                        return Err(options.refuse(key, &needed));
                    }
                };
                // The innermost level does not resample.
                if level + 1 < levels && *updown.get_or_insert(how) != how {
                    let needed = "our networks resample alike on all levels, here and back";
                    return Err(options.refuse(key, needed));
                }
            }
            if key == "up_block_types" && attending_here != attends {
                let needed = "our networks attend on the same levels as in down_block_types";
                return Err(options.refuse(key, needed));
            }
            attends = attending_here;
        }
        let updown = updown.unwrap_or(false);
        if levels > 1 && !updown {
            options.only("downsample_padding", &json!(1))?;
        }
        Ok(BlockTypes {
            attention_resolutions: attends.into_iter().map(|level| 1 << level).collect(),
            updown,
        })
    }
}

/// The process of a scheduler: schedule, prediction and variance.
///
/// # Errors
/// [`Error::Config`] naming the first option that our processes do not have.
pub(super) fn read_scheduler(options: &Options, model: &UNetConfig) -> Result<DiffusionConfig> {
    let steps = options.count("num_train_timesteps")?.unwrap_or(1000);
    let number = |key: &str, otherwise: f64| {
        options.get(key).map_or(Some(otherwise), Value::as_f64).unwrap_or(f64::NAN)
    };
    let noise_schedule = match options.text("beta_schedule") {
        Some("squaredcos_cap_v2") => NoiseSchedule::Cosine,
        Some("linear") => {
            for (key, of_1000) in [("beta_start", LINEAR_BETAS[0]), ("beta_end", LINEAR_BETAS[1])] {
                let ours = of_1000 * 1000.0 / steps as f64;
                let same = (number(key, of_1000) - ours).abs() <= 1e-6 * ours;
                if !same {
                    return Err(options.refuse(key, &format!("our linear schedule has {ours}")));
                }
            }
            NoiseSchedule::Linear
        }
        _ => {
            let needed = "\"linear\" and \"squaredcos_cap_v2\" are possible";
            return Err(options.refuse("beta_schedule", needed));
        }
    };
    options.only("trained_betas", &Value::Null)?;
    options.only("rescale_betas_zero_snr", &json!(false))?;
    let mean_type = match options.text("prediction_type").unwrap_or("epsilon") {
        "epsilon" => MeanType::Epsilon,
        "sample" => MeanType::XStart,
        _ => {
            let needed = "\"epsilon\" and \"sample\" are possible";
            return Err(options.refuse("prediction_type", needed));
        }
    };
    let defaults = default_diffusion(model);
    // Only some schedulers have a variance; whether it is learned, the network tells.
    let var_type = match (options.text("variance_type"), defaults.var_type.is_learned()) {
        (Some("learned"), true) => VarType::Learned,
        (Some("fixed_small" | "fixed_small_log"), false) => VarType::FixedSmall,
        _ => defaults.var_type,
    };
    Ok(DiffusionConfig {
        diffusion_steps: steps,
        noise_schedule,
        mean_type,
        var_type,
        rescale_timesteps: false,
        ..defaults
    })
}

/// An option of ours that they do not have.
fn inexpressible(option: &str) -> Error {
    Error::Config(format!("diffusers' UNet2DModel cannot express {option}"))
}

/// The `UNet2DModel` of our network, with as many classes as the class embedding
/// has rows.
///
/// # Errors
/// [`Error::Config`] naming what it cannot express.
pub(super) fn their_config(model: &UNetConfig, class_rows: Option<usize>) -> Result<Value> {
    model.validate()?;
    if model.small_size.is_some() {
        return Err(inexpressible("super-resolution (small_size)"));
    }
    let levels = model.channel_mult.len();
    if model.channels(0) != model.model_channels {
        return Err(inexpressible(&format!(
            "a first level of {} channels beside model_channels {}",
            model.channels(0),
            model.model_channels
        )));
    }
    if !model.conv_resample && !model.resblock_updown && levels > 1 {
        return Err(inexpressible("resampling without parameters (conv_resample false)"));
    }
    let attends = |level: usize| model.attention_resolutions.contains(&(1 << level));
    let types = |attending: &'static str, updown: &'static str, plain: &'static str| {
        move |level: usize| match (attends(level), model.resblock_updown) {
            (true, _) => attending,
            (false, true) => updown,
            (false, false) => plain,
        }
    };
    let down = types("AttnDownBlock2D", "ResnetDownsampleBlock2D", "DownBlock2D");
    let up = types("AttnUpBlock2D", "ResnetUpsampleBlock2D", "UpBlock2D");
    let between = if model.resblock_updown { "resnet" } else { "conv" };
    let mut config = json!({
        "sample_size": model.image_size,
        "in_channels": model.in_channels,
        "out_channels": model.out_channels,
        "down_block_types": (0..levels).map(down).collect::<Vec<_>>(),
        "up_block_types": (0..levels).rev().map(up).collect::<Vec<_>>(),
        "block_out_channels": (0..levels).map(|l| model.channels(l)).collect::<Vec<_>>(),
        "layers_per_block": model.num_res_blocks,
        "downsample_padding": 1,
        "downsample_type": between,
        "upsample_type": between,
        "dropout": model.dropout,
        "attention_head_dim": head_channels(model)?,
        "attn_norm_num_groups": 32,
        "resnet_time_scale_shift": if model.use_scale_shift_norm { "scale_shift" } else { "default" },
        "num_class_embeds": class_rows,
    });
    for (key, value) in fixed_options() {
        config[key] = value;
    }
    Ok(config)
}

/// Their channels of a head, the same wherever a network attends; none is one head.
fn head_channels(model: &UNetConfig) -> Result<Option<usize>> {
    let last = model.channel_mult.len() - 1;
    let mut sizes = BTreeSet::new();
    let mut single = true;
    for level in 0..=last {
        let decoder = model.attention_resolutions.contains(&(1 << level));
        for side in [false, true] {
            if decoder || (level == last && !side) {
                let heads = model.heads(model.channels(level), side);
                sizes.insert(model.channels(level) / heads);
                single &= heads == 1;
            }
        }
    }
    match sizes.first() {
        Some(&size) if sizes.len() == 1 => Ok(Some(size)),
        _ if single => Ok(None),
        _ => Err(inexpressible("a number of heads with heads of several widths (num_heads)")),
    }
}

/// The `DDPMScheduler` of our process.
///
/// # Errors
/// [`Error::Config`] naming what it cannot express.
pub(super) fn their_scheduler(diffusion: &DiffusionConfig) -> Result<Value> {
    let steps = diffusion.diffusion_steps;
    if diffusion.rescale_timesteps && steps != 1000 {
        return Err(Error::Config("diffusers cannot express rescale_timesteps".into()));
    }
    let scale = 1000.0 / steps as f64;
    let variance = match diffusion.var_type {
        VarType::FixedSmall => "fixed_small",
        VarType::FixedLarge => "fixed_large",
        VarType::Learned => "learned",
        VarType::LearnedRange => "learned_range",
    };
    Ok(json!({
        "_class_name": "DDPMScheduler",
        "num_train_timesteps": steps,
        "beta_start": LINEAR_BETAS[0] * scale,
        "beta_end": LINEAR_BETAS[1] * scale,
        "beta_schedule": match diffusion.noise_schedule {
            NoiseSchedule::Linear => "linear",
            NoiseSchedule::Cosine => "squaredcos_cap_v2",
        },
        "variance_type": variance,
        "prediction_type": match diffusion.mean_type {
            MeanType::Epsilon => "epsilon",
            MeanType::XStart => "sample",
        },
        "clip_sample": true,
    }))
}
