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

mod options;

use std::path::Path;

use serde_json::{Map, Value, json};

use self::options::{Options, read_config, read_scheduler, their_config, their_scheduler};
use super::guess::default_diffusion;
use super::tensor::Tensor;
use super::tensor_file::{Storage, TensorFile};
use super::torch::read_tensors;
use crate::diffusion::DiffusionConfig;
use crate::files::atomic;
use crate::model::{Hints, UNetConfig};
use crate::{Error, Result};

/// Longest configuration that is read.
const MAX_JSON: u64 = 1 << 20;
/// The weights' name without its extension.
const WEIGHTS: &str = "diffusion_pytorch_model";

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
    // An empty tensor may have any other extent.
    stacked[0] = shape[0].checked_mul(3).ok_or_else(|| format!("q has the shape {shape:?}"))?;
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
