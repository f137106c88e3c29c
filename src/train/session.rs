//! [`Session`]: a training in progress, without files. It feeds the device's step with
//! images, timesteps and labels, and tells losses and evaluations.
//!
//! All random numbers are functions of seed, step and image number, so the position is
//! all the random state there is: a training that goes on from its values and its
//! position computes the same bits as one that was never stopped, and so does a second
//! process beside it.

use super::evaluate::{Evaluation, Evaluator, spread};
use super::step::{QUARTILES, state_kinds};
use super::timesteps::Timesteps;
use super::{MicroBatch, Noise, TermSum, TrainStep};
use crate::checkpoint::{NetworkInfo, Progress};
use crate::data::{Batch, Dataset, Loader, LoaderOptions};
use crate::diffusion::LossSecondMoment;
use crate::gpu::Ticket;
use crate::graph::{FlatKind, ParamInfo};
use crate::model::{ModelConfig, initialise};
use crate::ops::LossScale;
use crate::runtime::Context;
use crate::{Error, Result, rng};
use std::sync::Arc;

/// Below this logarithm of the loss scale an overflow is no matter of scale.
const MIN_LG_SCALE: f32 = -8.0;

/// So many looks in a row at losses that are not finite end a training.
const MOST_NOT_FINITE: u32 = 5;

/// A training in progress on one device.
pub struct Session {
    step: TrainStep,
    info: NetworkInfo,
    dataset: Arc<Dataset>,
    /// Started with the first step.
    loader: Option<Loader>,
    timesteps: Timesteps,
    evaluator: Option<Evaluator>,
    /// Step at which the losses were last asked for.
    told: u64,
    /// Images in each quarter of the timesteps since then.
    quartile_images: [usize; QUARTILES],
    /// Updates skipped so far by the loss scale.
    skipped: u32,
    /// Looks in a row at losses that were not finite.
    not_finite: u32,
}

/// What was learned since the last look.
#[derive(Debug, Clone, PartialEq)]
pub struct Losses {
    /// Optimizer steps done.
    pub step: u64,
    /// Images seen.
    pub images_seen: u64,
    /// Mean loss of an image: the sum of the terms that are trained on.
    pub loss: f64,
    /// Its terms, as means over the images; not a number where no image fell into a
    /// quarter of the timesteps.
    pub terms: Vec<TermSum>,
    /// Norm of the last gradient.
    pub grad_norm: f64,
    /// Learning rate of the last step.
    pub lr: f64,
    /// In half precision: the updates skipped on overflow, and the loss scale.
    pub scale: Option<ScaleReport>,
    /// Loss and gradient are numbers, or an overflow explains why they are not.
    pub finite: bool,
}

/// What the loss scale of half precision did.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ScaleReport {
    /// Updates skipped since the last look.
    pub skipped: u32,
    /// Logarithm to base 2 of the scale now.
    pub lg: f32,
}

impl Session {
    /// Compiles the training that `info` describes, on the images of `dataset`. The
    /// weights are zero until [`Session::begin`] or [`Session::go_on`].
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options, [`Error::Memory`] if the device has no
    /// room.
    pub async fn new(
        ctx: Context<'_>,
        info: NetworkInfo,
        dataset: Arc<Dataset>,
    ) -> Result<Session> {
        let NetworkInfo { model, diffusion, training, .. } = &info;
        let step = TrainStep::new_async(ctx, model, diffusion, training, Noise::Drawn).await?;
        Ok(Session {
            step,
            timesteps: Timesteps::new(&info, None),
            info,
            dataset,
            loader: None,
            evaluator: None,
            told: 0,
            quartile_images: [0; QUARTILES],
            skipped: 0,
            not_finite: 0,
        })
    }

    /// Begins with step 0, from `initial` values in device layout or, without them, from
    /// random ones.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not those of the parameters.
    pub fn begin(&mut self, ctx: Context, initial: Option<&[Vec<f32>]>) -> Result<()> {
        let random;
        let values = match initial {
            Some(values) => values,
            None => {
                random = initialise(self.params(), self.info.training.seed);
                &random
            }
        };
        let averages = (0..self.info.training.ema_rates.len() as u8).map(FlatKind::Ema);
        for kind in averages.chain([FlatKind::Weights]) {
            self.write(ctx, kind, values)?;
        }
        self.set_position(Progress::default(), None, 0);
        Ok(())
    }

    /// Goes on from a position, after all of [`Session::kinds`] were written: `losses` are
    /// those that decide on the timesteps, `scale` is the state of the loss scale.
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub async fn go_on(
        &mut self,
        ctx: Context<'_>,
        progress: Progress,
        losses: Option<LossSecondMoment>,
        scale: Option<LossScale>,
    ) -> Result<()> {
        if let (true, Some(scale)) = (self.info.training.half, scale) {
            self.step.set_loss_scale(ctx, scale)?;
        }
        let skipped = self.step.loss_scale_async(ctx).await?.map_or(0, |s| s.skipped);
        self.set_position(progress, losses, skipped);
        Ok(())
    }

    fn set_position(&mut self, progress: Progress, losses: Option<LossSecondMoment>, skipped: u32) {
        self.info.progress = progress;
        self.timesteps = Timesteps::new(&self.info, losses);
        (self.told, self.skipped, self.loader) = (progress.step, skipped, None);
    }

    /// What is trained, and how far.
    pub fn info(&self) -> &NetworkInfo {
        &self.info
    }

    /// The images that are trained on.
    pub fn dataset(&self) -> &Arc<Dataset> {
        &self.dataset
    }

    /// The compiled step.
    pub fn step_program(&self) -> &TrainStep {
        &self.step
    }

    /// The parameters, in order.
    pub fn params(&self) -> &[ParamInfo] {
        &self.step.graph().params
    }

    /// The sets of values of which a training is made: weights, moments and averages.
    pub fn kinds(&self) -> Vec<FlatKind> {
        state_kinds(self.info.training.ema_rates.len())
    }

    /// The losses that decide on the timesteps, where they do.
    pub fn timestep_losses(&self) -> Option<&LossSecondMoment> {
        self.timesteps.losses()
    }

    /// One set of values in device layout.
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub async fn read(&self, ctx: Context<'_>, kind: FlatKind) -> Result<Vec<Vec<f32>>> {
        self.step.flat().read_async(ctx.gpu, kind, self.params()).await
    }

    /// Sets one set of values, in device layout.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are not those of the parameters.
    pub fn write(&self, ctx: Context, kind: FlatKind, values: &[Vec<f32>]) -> Result<()> {
        self.step.flat().write(ctx.gpu, kind, self.params(), values)
    }

    /// Starts what prepares images, so that the first step need not wait for it.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible batch.
    pub fn warm_up(&mut self) -> Result<()> {
        if self.loader.is_none() {
            let c = &self.info.training;
            let options = LoaderOptions {
                batch_size: c.micro_batch,
                seed: c.seed,
                start: self.info.progress.images_seen,
                flip: c.flip,
                random_crop: c.random_crop,
                workers: 0,
            };
            self.loader = Some(Loader::new(self.dataset.clone(), options)?);
        }
        Ok(())
    }

    /// Submits one optimizer step on the next images.
    ///
    /// # Errors
    /// [`Error::Data`] if an image cannot be read, [`Error::Device`] on a fault.
    pub async fn step(&mut self, ctx: Context<'_>) -> Result<Ticket> {
        let number = self.info.progress.step;
        for part in 0..self.info.training.micro_batches() {
            let batch = self.next_batch()?;
            let n = batch.labels.len();
            let (timesteps, importance) = self.timesteps.draw(&self.step, number, batch.start, n);
            let labels = self.drop_labels(number, &batch);
            let micro = MicroBatch {
                images: &batch.images,
                labels: &labels,
                timesteps: &timesteps,
                importance: &importance,
                first: batch.start,
                noise: None,
            };
            self.step.micro_step(ctx, number, part, &micro)?;
            for t in &timesteps {
                self.quartile_images[self.step.quartile(*t)] += 1;
            }
            if self.timesteps.learns() {
                // Waits for the device: the next timesteps depend on these losses.
                let losses = self.step.image_losses_async(ctx).await?;
                self.timesteps.learn(&timesteps, &losses);
            }
            self.info.progress.images_seen += n as u64;
        }
        let ticket = self.step.update(ctx, number)?;
        self.info.progress.step += 1;
        Ok(ticket)
    }

    fn next_batch(&mut self) -> Result<Batch> {
        self.warm_up()?;
        match &mut self.loader {
            Some(loader) => loader.next(),
            None => Err(Error::Data("no images are prepared".into())),
        }
    }

    /// The labels with some replaced by "no class".
    fn drop_labels(&self, step: u64, batch: &Batch) -> Vec<u32> {
        let share = self.info.training.label_dropout;
        let ModelConfig::UNet(model) = &self.info.model else { return batch.labels.clone() };
        let (true, Some(none)) = (share > 0.0 && model.null_class, model.num_classes) else {
            return batch.labels.clone();
        };
        let seed = self.info.training.seed;
        let dropped = |i: u64| {
            let u = rng::uniform_f32(seed, step as u32, rng::STREAM_NO_LABEL, i as u32, 0);
            f64::from(u) < share
        };
        let label = |(i, label): (u64, &u32)| if dropped(i) { none as u32 } else { *label };
        (batch.start..).zip(&batch.labels).map(label).collect()
    }

    /// The losses since the last call; none if there was no step since.
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub async fn take_losses(&mut self, ctx: Context<'_>) -> Result<Option<Losses>> {
        let Progress { step, images_seen, .. } = self.info.progress;
        if step == self.told {
            return Ok(None);
        }
        let (mut terms, grad_norm) = self.step.take_terms_async(ctx).await?;
        let counts = std::mem::take(&mut self.quartile_images);
        let images = counts.iter().sum::<usize>().max(1) as f64;
        for term in &mut terms {
            term.total /= images;
            // Without an image there is no mean.
            term.quartiles.iter_mut().zip(counts).for_each(|(sum, n)| *sum /= n as f64);
        }
        let loss: f64 = terms.iter().filter(|t| t.trained).map(|t| t.total).sum();
        self.told = step;
        let scale = self.scale_report(ctx).await?;
        let overflowed = scale.is_some_and(|s| s.skipped > 0 && s.lg > MIN_LG_SCALE);
        let finite = loss.is_finite() && (grad_norm.is_finite() || overflowed);
        self.not_finite = if finite { 0 } else { self.not_finite + 1 };
        let lr = self.info.training.lr_at(step.saturating_sub(1));
        Ok(Some(Losses { step, images_seen, loss, terms, grad_norm, lr, scale, finite }))
    }

    /// What the loss scale did since the last look.
    async fn scale_report(&mut self, ctx: Context<'_>) -> Result<Option<ScaleReport>> {
        let Some(scale) = self.step.loss_scale_async(ctx).await? else { return Ok(None) };
        let skipped = scale.skipped.saturating_sub(self.skipped);
        self.skipped = scale.skipped;
        Ok(Some(ScaleReport { skipped, lg: scale.lg }))
    }

    /// Whether it is worth going on.
    ///
    /// # Errors
    /// [`Error::Config`] if the last losses were not finite, several in a row.
    pub fn check_converging(&self) -> Result<()> {
        if self.not_finite < MOST_NOT_FINITE {
            return Ok(());
        }
        Err(Error::Config(format!(
            "training diverged: loss and gradients have not been finite up to step {}; use a lower \
             learning rate",
            self.info.progress.step
        )))
    }

    /// The losses of the first average on up to `most` images of `dataset`, spread over
    /// it, without dropout and under the same noise each time.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room, [`Error::Data`] if an image cannot be
    /// read.
    pub async fn evaluate(
        &mut self,
        ctx: Context<'_>,
        dataset: &Dataset,
        most: usize,
    ) -> Result<Evaluation> {
        let evaluator = match self.evaluator.take() {
            Some(evaluator) => evaluator,
            None => {
                let NetworkInfo { model, diffusion, training, .. } = &self.info;
                let (flat, average) = (self.step.flat(), FlatKind::Ema(0));
                Evaluator::new_async(ctx, model, diffusion, training, flat, average).await?
            }
        };
        let images = most.min(dataset.len());
        let fetch = spread(dataset, images);
        let evaluation = evaluator.run_async(ctx, images, &fetch, &mut |_| Ok(())).await?;
        self.evaluator = Some(evaluator);
        Ok(evaluation)
    }

    /// Remembers the loss of an evaluation if it is the lowest yet; whether it is.
    pub fn note_evaluation(&mut self, evaluation: &Evaluation) -> bool {
        let loss = evaluation.loss();
        let best = &mut self.info.progress.best_loss;
        let better = loss.is_finite() && best.is_none_or(|b| loss < b);
        if better {
            *best = Some(loss);
        }
        better
    }
}
