//! `demist train-classifier`: trains a classifier of noisy images, to guide
//! sampling with.

use super::options::{DataArgs, DiffusionArgs, RunArgs, TrainArgs};
use super::shared::DeviceArgs;
use super::train::{Start, names_where, open_both, run_training};
use demist::data::Dataset;
use demist::diffusion::DiffusionConfig;
use demist::model::{EncoderConfig, Hints, ModelConfig, Pool, default_encoder, encoder_preset};
use demist::{Error, Result};
use std::path::PathBuf;

/// Arguments of `train-classifier`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Labelled images: a folder (classes by subfolder or by file name before
    /// the first underscore), an atlas .png with its .json, or IDX files.
    data: PathBuf,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    data_options: DataArgs,
    #[command(flatten)]
    model: ClassifierArgs,
    #[command(flatten)]
    diffusion: DiffusionArgs,
    #[command(flatten)]
    training: TrainArgs,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Classifier (defaults depend on the image size)")]
struct ClassifierArgs {
    /// Start from a published classifier's options.
    #[arg(long)]
    preset: Option<String>,
    /// Train on clean images instead of noised ones.
    #[arg(long)]
    clean: bool,
    /// Base width; a multiple of 32.
    #[arg(long)]
    classifier_width: Option<usize>,
    /// Residual blocks a level.
    #[arg(long)]
    classifier_depth: Option<usize>,
    /// Image sizes at which blocks attend ("16,8").
    #[arg(long, value_delimiter = ',')]
    classifier_attention_resolutions: Option<Vec<usize>>,
    /// How the last feature map becomes one vector.
    #[arg(long, value_enum)]
    classifier_pool: Option<PoolArg>,
    /// Dropout probability in residual blocks.
    #[arg(long, allow_negative_numbers = true)]
    dropout: Option<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "snake_case")]
enum PoolArg {
    /// Mean of the last feature map.
    Adaptive,
    /// Attention from the mean to all positions.
    Attention,
    /// Channel means of every block.
    Spatial,
    /// The same with group norm.
    SpatialV2,
}

/// Trains.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let saved = args.run.saved()?;
    if let Some(info) = &saved
        && info.model.encoder().is_err()
    {
        return Err(Error::file(&args.run.out, "no classifier's run; continue it with train"));
    }
    let start = match saved {
        Some(info) => Start::again(info, &args.training, &args.data)?,
        None => start(args)?,
    };
    let options = (&args.data_options, &args.run);
    run_training(device, start, &args.data, options, args.training.memory)
}

fn start(args: &Args) -> Result<Start> {
    let d = &args.data_options;
    let m = &args.model;
    let hints = Hints { num_res_blocks: m.classifier_depth, ..Default::default() };
    let (base, dataset) = open_both(&args.run, m.preset.as_deref(), hints, &args.data, d)?;
    let classes = dataset.classes().len();
    if classes < 2 {
        return Err(Error::Config(format!(
            "a classifier needs at least 2 classes, the data has {classes}"
        )));
    }
    let model = match (&base, &args.run.init) {
        (Some(base), Some(path)) => {
            let base = base.model.encoder().map_err(|e| Error::file(path, e.to_string()))?;
            m.agree(base).map_err(|e| Error::file(path, e))?;
            EncoderConfig {
                image_size: dataset.size(),
                out_channels: classes,
                dropout: m.dropout.unwrap_or(base.dropout),
                ..base.clone()
            }
        }
        _ => encoder_config(m, &dataset)?,
    };
    let process = base.as_ref().map_or_else(DiffusionConfig::default, |b| b.diffusion.clone());
    let diffusion = args.diffusion.apply(process)?;
    let mut training = args.training.config(d)?;
    training.noised = !m.clean;
    let described = (ModelConfig::Encoder(model), diffusion, training);
    Start::new(described, base.as_ref(), dataset, &args.data)
}

impl From<PoolArg> for Pool {
    fn from(pool: PoolArg) -> Pool {
        match pool {
            PoolArg::Adaptive => Pool::Adaptive,
            PoolArg::Attention => Pool::Attention,
            PoolArg::Spatial => Pool::Spatial,
            PoolArg::SpatialV2 => Pool::SpatialV2,
        }
    }
}

impl ClassifierArgs {
    /// What was asked for that the network of --init is not.
    fn agree(&self, base: &EncoderConfig) -> std::result::Result<(), String> {
        let attention = self.classifier_attention_resolutions.is_none();
        for (option, same) in [
            ("--classifier-width", self.classifier_width.is_none_or(|v| v == base.model_channels)),
            ("--classifier-depth", self.classifier_depth.is_none_or(|v| v == base.num_res_blocks)),
            ("--classifier-pool", self.classifier_pool.is_none_or(|v| Pool::from(v) == base.pool)),
            ("--classifier-attention-resolutions", attention),
        ] {
            if !same {
                return Err(format!("{option} contradicts the network; leave it out"));
            }
        }
        Ok(())
    }
}

fn encoder_config(m: &ClassifierArgs, dataset: &Dataset) -> Result<EncoderConfig> {
    let (size, channels, classes) = (dataset.size(), dataset.channels(), dataset.classes().len());
    let mut c = match &m.preset {
        Some(name) => encoder_preset(name).ok_or_else(|| {
            Error::Config(format!(
                "no classifier is called `{name}`; there are {}",
                names_where(|name| encoder_preset(name).is_some())
            ))
        })?,
        None => default_encoder(size, channels, classes),
    };
    if c.image_size != size {
        return Err(Error::Config(format!(
            "the preset is for images of {} pixels, the data has {size}; give --image-size {}",
            c.image_size, c.image_size
        )));
    }
    c.in_channels = channels;
    c.out_channels = classes;
    c.model_channels = m.classifier_width.unwrap_or(c.model_channels);
    c.num_res_blocks = m.classifier_depth.unwrap_or(c.num_res_blocks);
    c.dropout = m.dropout.unwrap_or(c.dropout);
    if let Some(sizes) = &m.classifier_attention_resolutions {
        c.attention_resolutions =
            super::train::attention_factors(sizes, c.image_size, c.channel_mult.len())?;
    }
    if let Some(pool) = m.classifier_pool {
        c.pool = pool.into();
    }
    Ok(c)
}
