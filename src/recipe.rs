//! Options of a training run, saved with every checkpoint.

use crate::diffusion::TimestepWeights;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// Averages that one run can keep.
const MAX_EMA_RATES: usize = 8;

/// How to train.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct TrainConfig {
    /// Images per optimizer step.
    pub batch_size: usize,
    /// Images computed at once; gradients of a step's parts are averaged.
    pub micro_batch: usize,
    /// Peak learning rate of AdamW.
    pub lr: f64,
    /// Steps over which the rate rises from zero.
    pub lr_warmup: u64,
    /// Let the rate fall linearly to zero at the last step.
    pub lr_anneal: bool,
    /// Decoupled weight decay.
    pub weight_decay: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Largest norm of the gradient; 0 does not clip.
    pub max_grad_norm: f64,
    /// Decays of the averaged weights; the first average is what the run draws
    /// and evaluates with.
    #[serde(alias = "ema_rate", deserialize_with = "one_or_many")]
    pub ema_rates: Vec<f64>,
    /// Keep the average young at first: the decay is at most (1+step)/(10+step).
    pub ema_warmup: bool,
    /// Steps in all.
    pub steps: u64,
    /// Seed of weights, order, noise, timesteps and dropout.
    pub seed: u64,
    /// Mirror images at random.
    pub flip: bool,
    /// Cut images at random from up to a quarter around.
    pub random_crop: bool,
    /// How likely each timestep is drawn. Files keep the reference's name for it.
    #[serde(rename = "schedule_sampler")]
    pub timestep_weights: TimestepWeights,
    /// Share of images that are shown without their class, for classifier-free
    /// guidance.
    pub label_dropout: f64,
    /// Train a classifier on noised images; clean ones otherwise.
    pub noised: bool,
    /// Store activations and convolution weights as half, with a dynamic loss
    /// scale.
    pub half: bool,
    /// Bit mask of the levels whose blocks are recomputed in the backward walk.
    pub recompute_levels: u32,
}

/// The first files held a single rate.
fn one_or_many<'de, D: serde::Deserializer<'de>>(
    from: D,
) -> std::result::Result<Vec<f64>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Rates {
        One(f64),
        Many(Vec<f64>),
    }
    Ok(match Rates::deserialize(from)? {
        Rates::One(rate) => vec![rate],
        Rates::Many(rates) => rates,
    })
}

impl Default for TrainConfig {
    fn default() -> Self {
        TrainConfig {
            batch_size: 16,
            micro_batch: 16,
            lr: 2e-4,
            lr_warmup: 0,
            lr_anneal: false,
            weight_decay: 0.0,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            max_grad_norm: 1.0,
            ema_rates: vec![0.9999],
            ema_warmup: true,
            steps: 10_000,
            seed: 0,
            flip: false,
            random_crop: false,
            timestep_weights: TimestepWeights::Uniform,
            label_dropout: 0.0,
            noised: true,
            half: false,
            recompute_levels: 0,
        }
    }
}

impl TrainConfig {
    /// Micro-batches per optimizer step.
    pub fn micro_batches(&self) -> usize {
        self.batch_size / self.micro_batch.max(1)
    }

    /// Checks that the options can be followed.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option.
    pub fn validate(&self) -> Result<()> {
        let fail = |detail: String| Err(Error::Config(format!("training: {detail}")));
        if self.batch_size == 0 || self.micro_batch == 0 {
            return fail("batch sizes must be at least 1".into());
        }
        if !self.batch_size.is_multiple_of(self.micro_batch) {
            return fail(format!(
                "a batch of {} does not divide into micro-batches of {}",
                self.batch_size, self.micro_batch
            ));
        }
        if !(self.lr > 0.0 && self.lr.is_finite()) {
            return fail(format!("learning rate {} is not positive", self.lr));
        }
        if !(1..=MAX_EMA_RATES).contains(&self.ema_rates.len()) {
            return fail(format!(
                "{} EMA rates given, 1 to {MAX_EMA_RATES} are possible",
                self.ema_rates.len()
            ));
        }
        let rates = self.ema_rates.iter().map(|r| ("ema rate", *r));
        for (name, v) in [("beta1", self.beta1), ("beta2", self.beta2)]
            .into_iter()
            .chain(rates)
            .chain([("label dropout", self.label_dropout)])
        {
            if !(0.0..1.0).contains(&v) {
                return fail(format!("{name} {v} is not in [0, 1)"));
            }
        }
        for (name, v) in
            [("weight decay", self.weight_decay), ("gradient norm", self.max_grad_norm)]
        {
            if !(v >= 0.0 && v.is_finite()) {
                return fail(format!("{name} {v} is not zero or positive"));
            }
        }
        if !(self.eps > 0.0 && self.eps.is_finite()) {
            return fail(format!("eps {} is not positive", self.eps));
        }
        Ok(())
    }

    /// Learning rate of step `step` (from 0).
    pub fn lr_at(&self, step: u64) -> f64 {
        let warm = if self.lr_warmup > 0 {
            ((step + 1) as f64 / self.lr_warmup as f64).min(1.0)
        } else {
            1.0
        };
        let anneal = if self.lr_anneal && self.steps > 0 {
            (1.0 - step as f64 / self.steps as f64).max(0.0)
        } else {
            1.0
        };
        self.lr * warm * anneal
    }

    /// Decay of the average with the rate `ema_rate` at step `step` (from 0).
    pub fn ema_at(&self, ema_rate: f64, step: u64) -> f64 {
        if self.ema_warmup {
            ema_rate.min((1 + step) as f64 / (10 + step) as f64)
        } else {
            ema_rate
        }
    }
}
