//! `demist import` and `demist export`: networks from and to other systems.

use super::shared::{command_line, print_network, print_process};
use demist::checkpoint::{
    DataInfo, Holds, NetworkInfo, Progress, Storage, import as import_network, read_network,
    write_diffusers, write_network, write_reference,
};
use demist::diffusion::{DiffusionConfig, MeanType, NoiseSchedule, VarType};
use demist::model::{Hints, ModelConfig, UNetConfig};
use demist::recipe::TrainConfig;
use demist::{Error, Result};
use std::path::{Path, PathBuf};

/// Arguments of `import`.
#[derive(Debug, clap::Args)]
pub struct ImportArgs {
    /// A .pt or .safetensors file with the reference's names, or a diffusers
    /// UNet2D folder.
    file: PathBuf,
    /// The published network that it is ("256x256_diffusion"); otherwise found
    /// by its shapes.
    #[arg(long)]
    preset: Option<String>,
    /// Side of the images, where the shapes leave it open.
    #[arg(long)]
    image_size: Option<usize>,
    /// Side of the small images of a super-resolution network.
    #[arg(long)]
    small_size: Option<usize>,
    /// Attention heads.
    #[arg(long)]
    num_heads: Option<usize>,
    /// Channels a head.
    #[arg(long, conflicts_with = "num_heads")]
    num_head_channels: Option<usize>,
    /// Residual blocks a level.
    #[arg(long)]
    num_res_blocks: Option<usize>,
    /// qkv channels are ordered [q|k|v][head].
    #[arg(long)]
    use_new_attention_order: bool,
    /// The last class stands for "no class" (classifier-free guidance).
    #[arg(long)]
    null_class: bool,
    /// Store half-precision values.
    #[arg(long)]
    half: bool,
    /// The file to write.
    #[arg(short, long, default_value = "network.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    diffusion: super::shared::DiffusionArgs,
    #[command(flatten)]
    objective: super::shared::ObjectiveArgs,
}

/// Imports.
pub fn import(args: &ImportArgs) -> Result<()> {
    let hints = Hints {
        image_size: args.image_size,
        num_heads: args.num_heads,
        num_head_channels: args.num_head_channels,
        new_attention_order: args.use_new_attention_order,
        small_size: args.small_size,
        num_res_blocks: args.num_res_blocks,
    };
    refuse_itself(&args.file, &args.out)?;
    let imported = import_network(&args.file, args.preset.as_deref(), &hints)?;
    let diffusion = args.objective.apply(args.diffusion.apply(imported.diffusion)?);
    let mut model = imported.model;
    if let ModelConfig::UNet(m) = &mut model {
        check_outputs(m, &diffusion)?;
    }
    if args.null_class {
        set_null_class(&mut model)?;
    }
    let info = NetworkInfo {
        model,
        diffusion,
        data: DataInfo { classes: Vec::new(), images: 0, source: args.file.display().to_string() },
        training: TrainConfig::default(),
        progress: Progress::default(),
        holds: Holds::Weights,
        command: command_line(),
        device: String::new(),
        version: env!("CARGO_PKG_VERSION").into(),
    };
    if let Some(name) = &imported.preset {
        say!("recognised  {name}");
    }
    let count = imported.tensors.tensors.len();
    write_network(&args.out, &info, imported.tensors, args.half)?;
    say!("wrote       {} ({count} tensors)", args.out.display());
    print_network(&info.model);
    print_process(&info.model, &info.diffusion);
    Ok(())
}

/// A network must have outputs for the variance it is said to learn, and no
/// others.
fn check_outputs(m: &UNetConfig, diffusion: &DiffusionConfig) -> Result<()> {
    let twice = m.out_channels == 2 * m.in_channels;
    if diffusion.var_type.is_learned() && !twice {
        return Err(Error::Config(format!(
            "the network has {} outputs for {} channels, none of them for a learned variance",
            m.out_channels, m.in_channels
        )));
    }
    Ok(())
}

/// Takes the last class for "no class".
fn set_null_class(model: &mut ModelConfig) -> Result<()> {
    match model {
        ModelConfig::UNet(UNetConfig { num_classes: Some(n), null_class, .. }) if *n > 1 => {
            (*n, *null_class) = (*n - 1, true);
            Ok(())
        }
        _ => Err(Error::Config("--null-class is for diffusion networks with classes".into())),
    }
}

/// What a file of the reference does not tell, as options of `import` (most of
/// them the reference's own).
fn untold(info: &NetworkInfo) -> String {
    let mut text = format!(" --image-size {}", info.model.image_size());
    let mut add = |applies: bool, option: &str| {
        if applies {
            text += &format!(" {option}");
        }
    };
    let (heads, head_channels, new_order) = match &info.model {
        ModelConfig::UNet(m) => (m.num_heads, m.num_head_channels, m.use_new_attention_order),
        ModelConfig::Encoder(m) => (m.num_heads, m.num_head_channels, m.use_new_attention_order),
    };
    add(
        true,
        &match head_channels {
            Some(channels) => format!("--num-head-channels {channels}"),
            None => format!("--num-heads {heads}"),
        },
    );
    add(new_order, "--use-new-attention-order");
    let d = &info.diffusion;
    add(d.diffusion_steps != 1000, &format!("--diffusion-steps {}", d.diffusion_steps));
    add(d.noise_schedule == NoiseSchedule::Cosine, "--noise-schedule cosine");
    add(d.rescale_timesteps, "--rescale-timesteps");
    let Ok(m) = info.model.unet() else { return text };
    if let Some(small) = m.small_size {
        add(true, &format!("--small-size {small}"));
    }
    add(m.null_class, "--null-class");
    add(d.mean_type == MeanType::XStart, "--predict-xstart");
    add(d.var_type == VarType::Learned, "--learn-log-variance");
    add(d.var_type == VarType::FixedSmall, "--sigma-small");
    text
}

/// Refuses to write over what is read.
fn refuse_itself(from: &Path, to: &Path) -> Result<()> {
    match (from.canonicalize(), to.canonicalize()) {
        (Ok(a), Ok(b)) if a == b => {
            Err(Error::file(to, "is the file that is read; choose another --out"))
        }
        _ => Ok(()),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    /// One safetensors file with the names of the reference's state_dict.
    Reference,
    /// A diffusers UNet2D folder, where it can express the network.
    Diffusers,
}

/// Arguments of `export`.
#[derive(Debug, clap::Args)]
pub struct ExportArgs {
    /// A network file.
    file: PathBuf,
    /// What to write.
    #[arg(long, value_enum, default_value_t = Format::Reference)]
    format: Format,
    /// The file or folder to write.
    #[arg(short, long)]
    out: PathBuf,
}

/// Exports.
pub fn export(args: &ExportArgs) -> Result<()> {
    refuse_itself(&args.file, &args.out)?;
    let (info, mut file) = read_network(&args.file)?;
    if info.holds == Holds::State {
        return Err(Error::file(
            &args.file,
            "is the state of a run; export its network.safetensors",
        ));
    }
    file.metadata.clear();
    match args.format {
        Format::Reference => {
            write_reference(&args.out, file, "", Storage::F32)?;
            say!("wrote {}", args.out.display());
            say!("in Python:  model.load_state_dict(safetensors.torch.load_file({:?}))", args.out);
            say!("way back:   demist import {}{}", args.out.display(), untold(&info));
        }
        Format::Diffusers => {
            let model = info.model.unet().map_err(|e| Error::file(&args.file, e.to_string()))?;
            write_diffusers(&args.out, model, &info.diffusion, file, Storage::F32)?;
            say!("wrote {}", args.out.display());
        }
    }
    Ok(())
}
