//! Arguments that all commands share which train, and what they mean.

use super::{open_data, parse_bytes, time_limit};
use demist::checkpoint::{NetworkInfo, read_info};
use demist::data::{Dataset, first_names};
use demist::diffusion::TimestepWeights;
use demist::recipe::TrainConfig;
use demist::train::{RunOptions, state_path};
use demist::{Error, Result};
use std::path::PathBuf;
use std::sync::Arc;

/// Which images.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Data")]
pub struct DataArgs {
    /// Side of the images; needed if they are not all square and of one size.
    #[arg(long)]
    pub image_size: Option<usize>,
    /// 1 for grey, 3 for RGB; default is what the images have.
    #[arg(long)]
    pub channels: Option<usize>,
    /// Mirror images at random.
    #[arg(long)]
    pub flip: bool,
    /// Cut images at random, from up to a quarter around.
    #[arg(long)]
    pub random_crop: bool,
    /// Images to evaluate on at intervals; the best network is kept.
    #[arg(long, value_name = "DATA")]
    pub validation: Option<PathBuf>,
}

/// How to train.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Training")]
pub struct TrainArgs {
    /// Steps in all [default: 10000].
    #[arg(long)]
    pub steps: Option<u64>,
    /// Images in all, instead of steps.
    #[arg(long, conflicts_with = "steps")]
    pub images: Option<u64>,
    /// Images a step.
    #[arg(long, default_value_t = 16)]
    pub batch_size: usize,
    /// Images computed at once, to fit into memory [default: the batch].
    #[arg(long)]
    pub micro_batch: Option<usize>,
    /// Learning rate.
    #[arg(long, default_value_t = 2e-4, allow_negative_numbers = true)]
    pub lr: f64,
    /// Steps over which the rate rises.
    #[arg(long, default_value_t = 0)]
    pub lr_warmup: u64,
    /// Let the rate fall linearly to zero at the last step.
    #[arg(long)]
    pub lr_anneal: bool,
    /// Decoupled weight decay.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub weight_decay: f64,
    /// Largest gradient norm; 0 does not clip.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    pub max_grad_norm: f64,
    /// Decay of the averaged weights; several ("0.9999,0.999") keep several averages.
    #[arg(long, value_delimiter = ',', default_value = "0.9999", allow_negative_numbers = true)]
    pub ema_rate: Vec<f64>,
    /// Draw timesteps in proportion to their loss instead of uniformly.
    #[arg(long)]
    pub loss_second_moment: bool,
    /// Store activations and convolution weights in half precision, with a
    /// dynamic loss scale.
    #[arg(long)]
    pub half: bool,
    /// Recompute as many levels as it takes to stay below this ("6GiB", "800MiB").
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    pub memory: Option<u64>,
    /// Seed of everything random.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

/// Where the run lies, and how often it writes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Run")]
pub struct RunArgs {
    /// Run folder.
    #[arg(short, long, default_value = "runs/latest")]
    pub out: PathBuf,
    /// Continue the run in the folder with its own options; only --steps,
    /// --images, --validation, intervals, --memory and the time limit are new.
    #[arg(long)]
    pub resume: bool,
    /// Start from the weights of a network: a file of ours, of the reference
    /// (.pt) or a diffusers folder.
    #[arg(long, value_name = "NETWORK", conflicts_with = "resume")]
    pub init: Option<PathBuf>,
    /// Steps between rows of metrics.csv.
    #[arg(long, default_value_t = 20)]
    pub log_every: u64,
    /// Steps between saves.
    #[arg(long, default_value_t = 1000)]
    pub save_every: u64,
    /// Steps between sample grids; 0 for none.
    #[arg(long, default_value_t = 1000)]
    pub sample_every: u64,
    /// Steps between evaluations.
    #[arg(long, default_value_t = 500)]
    pub eval_every: u64,
    /// Validation images an evaluation looks at.
    #[arg(long, default_value_t = 1000)]
    pub eval_images: usize,
    /// Stop after this many minutes, saving.
    #[arg(long, value_name = "MINUTES", allow_negative_numbers = true)]
    pub time_limit: Option<f64>,
}

impl TrainArgs {
    /// The options of a new run.
    pub fn config(&self, data: &DataArgs) -> Result<TrainConfig> {
        let steps = match self.images {
            Some(images) => images.div_ceil(self.batch_size.max(1) as u64),
            None => self.steps.unwrap_or(10_000),
        };
        let sampler = if self.loss_second_moment {
            TimestepWeights::LossSecondMoment
        } else {
            TimestepWeights::Uniform
        };
        let config = TrainConfig {
            batch_size: self.batch_size,
            micro_batch: self.micro_batch.unwrap_or(self.batch_size),
            lr: self.lr,
            lr_warmup: self.lr_warmup,
            lr_anneal: self.lr_anneal,
            weight_decay: self.weight_decay,
            max_grad_norm: self.max_grad_norm,
            ema_rates: self.ema_rate.clone(),
            steps,
            seed: self.seed,
            flip: data.flip,
            random_crop: data.random_crop,
            timestep_weights: sampler,
            half: self.half,
            ..Default::default()
        };
        config.validate()?;
        Ok(config)
    }

    /// Changes what a resumed run may change.
    pub fn resume(&self, config: &mut TrainConfig) {
        if let Some(steps) = self.steps {
            config.steps = steps;
        } else if let Some(images) = self.images {
            config.steps = images.div_ceil(config.batch_size as u64);
        }
    }
}

impl RunArgs {
    /// What the run folder holds: the run to continue, or nothing where one starts.
    pub fn saved(&self) -> Result<Option<NetworkInfo>> {
        let state = state_path(&self.out);
        match (self.resume, state.exists()) {
            (true, true) => read_info(&state).map(Some),
            (true, false) => {
                Err(Error::file(&self.out, "holds no run that --resume could continue"))
            }
            (false, false) => Ok(None),
            (false, true) => Err(Error::file(
                &self.out,
                "holds a run already; continue it with --resume or choose another --out",
            )),
        }
    }

    /// Where and how often the run writes.
    pub fn options(&self, validation: Option<Arc<Dataset>>) -> Result<RunOptions> {
        Ok(RunOptions {
            resume: self.resume,
            validation,
            eval_images: self.eval_images.max(1),
            eval_every: self.eval_every,
            log_every: self.log_every.max(1),
            save_every: self.save_every,
            sample_every: self.sample_every,
            time_limit: self.time_limit.map(|m| time_limit(m, 60.0, "minutes")).transpose()?,
            ..RunOptions::new(&self.out)
        })
    }
}

impl DataArgs {
    /// The validation set, which must have the `classes` of a conditional network.
    pub fn open_validation(
        &self,
        size: usize,
        channels: usize,
        classes: Option<&[String]>,
    ) -> Result<Option<Arc<Dataset>>> {
        let Some(path) = &self.validation else { return Ok(None) };
        let set = open_data(path, Some(size), Some(channels), false)?;
        if let Some(classes) = classes.filter(|c| *c != set.classes()) {
            return Err(Error::Config(format!(
                "the validation set has the classes {}, the training set {}",
                first_names(set.classes()),
                first_names(classes)
            )));
        }
        Ok(Some(Arc::new(set)))
    }
}
