//! `demist import` and `demist export`: networks from and to other systems.

use super::command_line;
use demist::checkpoint::{
    DataInfo, NetworkInfo, Progress, Storage, import as import_network, read_network,
    write_diffusers, write_network, write_reference,
};
use demist::diffusion::DiffusionConfig;
use demist::model::Hints;
use demist::train::TrainConfig;
use demist::{Error, Result};
use std::path::PathBuf;

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
    #[command(flatten)]
    diffusion: super::options::DiffusionArgs,
    /// The network predicts the clean image.
    #[arg(long)]
    predict_xstart: bool,
    /// Store half-precision values.
    #[arg(long)]
    half: bool,
    /// The file to write.
    #[arg(short, long, default_value = "network.safetensors")]
    out: PathBuf,
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
    let imported = import_network(&args.file, args.preset.as_deref(), &hints)?;
    let mut diffusion = args.diffusion.apply(imported.diffusion)?;
    if args.predict_xstart {
        diffusion.mean_type = demist::diffusion::MeanType::XStart;
    }
    let info = NetworkInfo {
        model: imported.model,
        diffusion,
        data: DataInfo {
            classes: Vec::new(),
            images: 0,
            source: args.file.display().to_string(),
        },
        training: TrainConfig::default(),
        progress: Progress::default(),
        holds: "ema".into(),
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
    let DiffusionConfig { diffusion_steps, noise_schedule, mean_type, var_type, .. } = info.diffusion;
    say!(
        "process     {diffusion_steps} steps, {noise_schedule:?} schedule, predicts {mean_type:?}, variance {var_type:?}"
    );
    say!("all of it:  demist info {}", args.out.display());
    Ok(())
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
    let (info, mut file) = read_network(&args.file)?;
    if info.holds == "state" {
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
        }
        Format::Diffusers => {
            write_diffusers(&args.out, info.model.unet()?, &info.diffusion, file, Storage::F32)?;
            say!("wrote {}", args.out.display());
        }
    }
    Ok(())
}
