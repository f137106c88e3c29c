//! Networks as diffusers keeps them: a folder with `config.json` and
//! `diffusion_pytorch_model.safetensors`, or a pipeline's folder with these in
//! `unet` and the process in `scheduler`. Its `UNet2DModel` can express most U-Nets
//! of ours under other names, with q, k and v as three matrices:
//!
//! ```text
//! input_blocks.1.0.in_layers.2   down_blocks.0.resnets.0.conv1
//! input_blocks.3.0.op            down_blocks.0.downsamplers.0.conv
//! middle_block.1.qkv             mid_block.attentions.0.to_q, to_k, to_v
//! output_blocks.2.2              up_blocks.0.upsamplers.0
//! ```
//!
//! What one side can say and the other cannot is an error that names the option.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::import::default_diffusion;
use super::{Storage, Tensor, TensorFile, read_tensors};
use crate::diffusion::{DiffusionConfig, MeanType, NoiseSchedule, VarType};
use crate::model::{Hints, UNetConfig, multiplier};
use crate::output::atomic;
use crate::{Error, Result};

/// Longest configuration that is read.
const MAX_JSON: u64 = 1 << 20;
/// The weights' name without its extension.
const WEIGHTS: &str = "diffusion_pytorch_model";
/// Ends of the betas of a linear schedule of 1000 steps.
const LINEAR_BETAS: [f64; 2] = [1e-4, 0.02];

/// Our and their name of each part of a residual block.
const RES_BLOCK: [(&str, &str); 6] = [
    ("in_layers.0", "norm1"),
    ("in_layers.2", "conv1"),
    ("emb_layers.1", "time_emb_proj"),
    ("out_layers.0", "norm2"),
    ("out_layers.3", "conv2"),
    ("skip_connection", "conv_shortcut"),
];
/// Their names of q, k, v and the projection after attention, and the old ones.
const PROJECTIONS: [[&str; 4]; 2] =
    [["to_q", "to_k", "to_v", "to_out.0"], ["query", "key", "value", "proj_attn"]];

/// A part of the network under both names.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    /// A layer with a weight and usually a bias.
    Layer,
    ResBlock,
    /// Heads.
    Attention(usize),
}

struct Named {
    ours: String,
    theirs: String,
    part: Part,
}

/// All parts of the network, in the order of its wiring.
fn parts(config: &UNetConfig) -> Vec<Named> {
    let mut parts = Vec::new();
    let mut add = |ours: String, theirs: String, part: Part| {
        parts.push(Named { ours, theirs, part });
    };
    let mut layer = |ours: &str, theirs: &str| add(ours.into(), theirs.into(), Part::Layer);
    layer("time_embed.0", "time_embedding.linear_1");
    layer("time_embed.2", "time_embedding.linear_2");
    if config.num_classes.is_some() {
        layer("label_emb", "class_embedding");
    }
    layer("input_blocks.0.0", "conv_in");
    layer("out.0", "conv_norm_out");
    layer("out.2", "conv_out");

    let levels = config.channel_mult.len();
    // Encoder blocks of a level with its downsampling, or the first convolution.
    let group = config.num_res_blocks + 1;
    let attends = |level: usize| config.attention_resolutions.contains(&(1 << level));
    for level in 0..levels {
        let heads = config.heads(config.channels(level), false);
        for i in 0..config.num_res_blocks {
            let ours = format!("input_blocks.{}", 1 + level * group + i);
            let theirs = format!("down_blocks.{level}");
            add(format!("{ours}.0"), format!("{theirs}.resnets.{i}"), Part::ResBlock);
            if attends(level) {
                let theirs = format!("{theirs}.attentions.{i}");
                add(format!("{ours}.1"), theirs, Part::Attention(heads));
            }
        }
        if level + 1 < levels {
            let ours = format!("input_blocks.{}.0", (level + 1) * group);
            let theirs = format!("down_blocks.{level}.downsamplers.0");
            if config.resblock_updown {
                add(ours, theirs, Part::ResBlock);
            } else {
                add(format!("{ours}.op"), format!("{theirs}.conv"), Part::Layer);
            }
        }
    }
    let heads = config.heads(config.channels(levels - 1), false);
    add("middle_block.0".into(), "mid_block.resnets.0".into(), Part::ResBlock);
    add("middle_block.1".into(), "mid_block.attentions.0".into(), Part::Attention(heads));
    add("middle_block.2".into(), "mid_block.resnets.1".into(), Part::ResBlock);
    for level in (0..levels).rev() {
        let heads = config.heads(config.channels(level), true);
        let up = levels - 1 - level;
        for i in 0..group {
            let ours = format!("output_blocks.{}", up * group + i);
            let theirs = format!("up_blocks.{up}");
            add(format!("{ours}.0"), format!("{theirs}.resnets.{i}"), Part::ResBlock);
            if attends(level) {
                let theirs = format!("{theirs}.attentions.{i}");
                add(format!("{ours}.1"), theirs, Part::Attention(heads));
            }
            if level > 0 && i + 1 == group {
                let ours = format!("{ours}.{}", 1 + usize::from(attends(level)));
                let theirs = format!("{theirs}.upsamplers.0");
                if config.resblock_updown {
                    add(ours, theirs, Part::ResBlock);
                } else {
                    add(format!("{ours}.conv"), format!("{theirs}.conv"), Part::Layer);
                }
            }
        }
    }
    parts
}

/// Reads a network from a folder of diffusers: its configuration, its process
/// (the default one if no scheduler is beside it) and its parameters under our
/// names. `hints` may give the size of images that the folder does not tell.
///
/// # Errors
/// [`Error::Config`] naming the first option that our networks do not have,
/// [`Error::Io`] or [`Error::File`] for files that are missing or not sound.
pub fn read_diffusers(
    folder: &Path,
    hints: &Hints,
) -> Result<(UNetConfig, DiffusionConfig, TensorFile)> {
    let inner = folder.join("unet");
    let home = if inner.is_dir() { inner.as_path() } else { folder };
    let path = home.join("config.json");
    let options = Options { map: read_json(&path)?, path: path.clone() };
    let model = read_config(&options, hints)?;
    let schedulers = [folder.join("scheduler"), folder.to_owned()];
    let scheduler = schedulers.map(|f| f.join("scheduler_config.json"));
    let diffusion = match scheduler.into_iter().find(|path| path.is_file()) {
        Some(path) => read_scheduler(&Options { map: read_json(&path)?, path }, &model)?,
        None => default_diffusion(&model),
    };
    let weights = ["safetensors", "bin"].map(|e| home.join(format!("{WEIGHTS}.{e}")));
    let weights = weights.into_iter().find(|path| path.is_file()).ok_or_else(|| {
        Error::file(home, format!("holds neither {WEIGHTS}.safetensors nor {WEIGHTS}.bin"))
    })?;
    let file = read_tensors(&weights)?;
    let tensors = to_ours(&model, file).map_err(|why| Error::file(&weights, why))?;
    Ok((model, diffusion, tensors))
}

fn read_json(path: &Path) -> Result<Map<String, Value>> {
    let read = |e| Error::io("read", path, e);
    let size = std::fs::metadata(path).map_err(read)?.len();
    if size > MAX_JSON {
        return Err(Error::file(path, format!("{size} bytes are too long for a configuration")));
    }
    let bytes = std::fs::read(path).map_err(read)?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("no configuration: {e}")))
}

/// A configuration of theirs.
struct Options {
    map: Map<String, Value>,
    path: PathBuf,
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

fn read_config(options: &Options, hints: &Hints) -> Result<UNetConfig> {
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
        conv_resample: true,
        num_classes: options.count("num_class_embeds")?,
        null_class: false,
        small_size: None,
        use_checkpoint: false,
        num_heads: 1,
        num_head_channels: head_channels,
        num_heads_upsample: None,
        use_scale_shift_norm: adaptive,
        resblock_updown: blocks.updown,
        // Three matrices one after the other: what we make of theirs.
        use_new_attention_order: true,
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
fn read_scheduler(options: &Options, model: &UNetConfig) -> Result<DiffusionConfig> {
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

/// Their tensors under our names.
fn to_ours(config: &UNetConfig, file: TensorFile) -> std::result::Result<TensorFile, String> {
    let mut theirs = file.tensors;
    let mut ours = TensorFile::default();
    for Named { ours: name, theirs: their_name, part } in parts(config) {
        let mut layer = |ours_name: String, their_name: String| {
            for leaf in ["weight", "bias"] {
                if let Some(tensor) = theirs.remove(&format!("{their_name}.{leaf}")) {
                    ours.tensors.insert(format!("{ours_name}.{leaf}"), tensor);
                }
            }
        };
        match part {
            Part::Layer => layer(name, their_name),
            Part::ResBlock => {
                for (ours, theirs) in RES_BLOCK {
                    layer(format!("{name}.{ours}"), format!("{their_name}.{theirs}"));
                }
            }
            Part::Attention(_) => {
                layer(format!("{name}.norm"), format!("{their_name}.group_norm"));
                let old = theirs.contains_key(&format!("{their_name}.query.weight"));
                let [q, k, v, out] = PROJECTIONS[usize::from(old)];
                for leaf in ["weight", "bias"] {
                    let mut take = |part: &str| {
                        let name = format!("{their_name}.{part}.{leaf}");
                        theirs.remove(&name).ok_or_else(|| format!("{name} is missing"))
                    };
                    let qkv = stack(&[take(q)?, take(k)?, take(v)?])
                        .map_err(|why| format!("{their_name}: {why}"))?;
                    ours.tensors.insert(format!("{name}.qkv.{leaf}"), qkv);
                    let out = as_conv1d(take(out)?);
                    ours.tensors.insert(format!("{name}.proj_out.{leaf}"), out);
                }
            }
        }
    }
    match theirs.keys().next() {
        Some(name) => Err(format!("{name} is not part of the network of its configuration")),
        None => Ok(ours),
    }
}

/// A linear layer's weight [O, I] as that of a 1x1 convolution [O, I, 1].
fn as_conv1d(mut tensor: Tensor) -> Tensor {
    if tensor.shape.len() == 2 {
        tensor.shape.push(1);
    }
    tensor
}

/// Tensors of one shape one after the other, as 32-bit floats.
fn stack(tensors: &[Tensor; 3]) -> std::result::Result<Tensor, String> {
    let shape = &tensors[0].shape;
    if shape.is_empty() || tensors.iter().any(|t| t.shape != *shape) {
        let shapes: Vec<_> = tensors.iter().map(|t| &t.shape).collect();
        return Err(format!("q, k and v have the shapes {shapes:?}"));
    }
    let mut stacked = shape.clone();
    stacked[0] *= tensors.len();
    let mut values = Vec::new();
    for tensor in tensors {
        values.extend_from_slice(&tensor.to_f32().map_err(|e| e.to_string())?);
    }
    Tensor::f32(stacked, values).map(as_conv1d).map_err(|e| e.to_string())
}

/// Writes a network as a pipeline's folder of diffusers, which its
/// `DDPMPipeline` loads. `tensors` have our names.
///
/// # Errors
/// [`Error::Config`] naming the first option that `UNet2DModel` or `DDPMScheduler`
/// cannot express, [`Error::Io`] if the folder cannot be written.
pub fn write_diffusers(
    folder: &Path,
    model: &UNetConfig,
    diffusion: &DiffusionConfig,
    tensors: TensorFile,
    storage: Storage,
) -> Result<()> {
    let rows = tensors.tensors.get("label_emb.weight").and_then(|t| t.shape.first().copied());
    let config = their_config(model, rows)?;
    let scheduler = their_scheduler(diffusion)?;
    let mut file = to_theirs(model, tensors)?;
    file.metadata.insert("format".into(), "pt".into());
    for part in ["unet", "scheduler"] {
        let path = folder.join(part);
        std::fs::create_dir_all(&path).map_err(|e| Error::io("create", &path, e))?;
    }
    let index = json!({
        "_class_name": "DDPMPipeline",
        "scheduler": ["diffusers", "DDPMScheduler"],
        "unet": ["diffusers", "UNet2DModel"],
    });
    file.write_as(&folder.join("unet").join(format!("{WEIGHTS}.safetensors")), storage)?;
    for (name, value) in [
        ("unet/config.json", config),
        ("scheduler/scheduler_config.json", scheduler),
        ("model_index.json", index),
    ] {
        atomic::write(&folder.join(name), format!("{value:#}\n").as_bytes())?;
    }
    Ok(())
}

/// An option of ours that they do not have.
fn inexpressible(option: &str) -> Error {
    Error::Config(format!("diffusers' UNet2DModel cannot express {option}"))
}

fn their_config(model: &UNetConfig, class_rows: Option<usize>) -> Result<Value> {
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

fn their_scheduler(diffusion: &DiffusionConfig) -> Result<Value> {
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

/// Our tensors under their names.
fn to_theirs(config: &UNetConfig, file: TensorFile) -> Result<TensorFile> {
    let mut ours = file.tensors;
    let mut theirs = TensorFile::default();
    for Named { ours: name, theirs: their_name, part } in parts(config) {
        let mut layer = |ours_name: String, their_name: String| {
            for leaf in ["weight", "bias"] {
                if let Some(tensor) = ours.remove(&format!("{ours_name}.{leaf}")) {
                    theirs.tensors.insert(format!("{their_name}.{leaf}"), tensor);
                }
            }
        };
        match part {
            Part::Layer => layer(name, their_name),
            Part::ResBlock => {
                for (ours, theirs) in RES_BLOCK {
                    layer(format!("{name}.{ours}"), format!("{their_name}.{theirs}"));
                }
            }
            Part::Attention(heads) => {
                layer(format!("{name}.norm"), format!("{their_name}.group_norm"));
                for leaf in ["weight", "bias"] {
                    let mut take = |part: &str| {
                        let name = format!("{name}.{part}.{leaf}");
                        ours.remove(&name)
                            .ok_or_else(|| Error::Config(format!("{name} is missing")))
                    };
                    let legacy = (!config.use_new_attention_order).then_some(heads);
                    let qkv = unstack(&take("qkv")?, legacy)?;
                    let out = take("proj_out")?;
                    let [q, k, v, o] = PROJECTIONS[0];
                    for (part, tensor) in [q, k, v, o].into_iter().zip(qkv.into_iter().chain([out]))
                    {
                        let name = format!("{their_name}.{part}.{leaf}");
                        theirs.tensors.insert(name, as_linear(tensor));
                    }
                }
            }
        }
    }
    match ours.keys().next() {
        Some(name) => Err(Error::Config(format!("{name} is not part of the network"))),
        None => Ok(theirs),
    }
}

/// A 1x1 convolution's weight [O, I, 1] as that of a linear layer [O, I].
fn as_linear(mut tensor: Tensor) -> Tensor {
    if tensor.shape.len() == 3 && tensor.shape[2] == 1 {
        tensor.shape.pop();
    }
    tensor
}

/// The rows of q, k and v, whose legacy order is [head][q|k|v][row].
fn unstack(qkv: &Tensor, legacy_heads: Option<usize>) -> Result<[Tensor; 3]> {
    let values = qkv.to_f32()?;
    let rows = qkv.shape.first().copied().unwrap_or(0);
    let heads = legacy_heads.unwrap_or(1);
    if rows == 0 || heads == 0 || !rows.is_multiple_of(3 * heads) {
        let why = format!("a qkv of shape {:?} for {heads} heads", qkv.shape);
        return Err(Error::shape("write_diffusers", why));
    }
    let columns = values.len() / rows;
    let head = rows / (3 * heads);
    let mut shape = qkv.shape.clone();
    shape[0] = rows / 3;
    let part = |which: usize| {
        let mut part = Vec::with_capacity(values.len() / 3);
        for h in 0..heads {
            let first = (h * 3 + which) * head * columns;
            part.extend_from_slice(&values[first..first + head * columns]);
        }
        Tensor::f32(shape.clone(), part)
    };
    Ok([part(0)?, part(1)?, part(2)?])
}
