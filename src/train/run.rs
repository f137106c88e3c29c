//! A training run: the loop around [`TrainStep`] with its folder of files.
//!
//! ```text
//! RUN/state.safetensors    weights, averages, both moments, position: all of a resume
//! RUN/network.safetensors  the first average, ready for `sample`
//! RUN/network_ema_R.safetensors  the averages of further rates R
//! RUN/best.safetensors     the first average where the validation loss was lowest
//! RUN/metrics.csv          step, losses by term and quartile, gradient norm, rate
//! RUN/evaluation.csv       the same losses on the validation set
//! RUN/loss.png             both as a picture
//! RUN/samples/             a class-labelled grid at intervals
//! ```
//!
//! All random numbers are functions of seed, step and image number, so the
//! position is all the random state there is, and a resumed run computes the
//! same bits as one that was never stopped.

use super::evaluate::{Evaluation, Evaluator, spread};
use super::files::{best_path, load_state, network_path, save_network, save_state, state_path};
use super::preview::Preview;
use super::step::QUARTILES;
use super::{Event, MicroBatch, Noise, RunOptions, StopFlag, TermSum, TrainOutcome, TrainStep};
use crate::checkpoint::{NetworkInfo, Progress};
use crate::data::{Batch, Dataset, Loader, LoaderOptions};
use crate::diffusion::timestep_weights::{HISTORY_PER_TERM, draw};
use crate::diffusion::{LossSecondMoment, TimestepWeights};
use crate::gpu::Ticket;
use crate::graph::FlatKind;
use crate::model::{ModelConfig, initialise};
use crate::output::metrics::{Metrics, MetricsWriter};
use crate::output::plot;
use crate::runtime::Context;
use crate::{Error, Result, rng};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Submitted steps that may wait in the queue.
const IN_FLIGHT: usize = 2;

/// Below this logarithm of the loss scale an overflow is no matter of scale.
const MIN_LG_SCALE: f32 = -8.0;

/// How old the loss plot may grow.
const PLOT_EVERY: Duration = Duration::from_secs(30);

/// A run in progress.
struct Run<'a> {
    ctx: Context<'a>,
    step: TrainStep,
    info: NetworkInfo,
    options: &'a RunOptions,
    dataset: Arc<Dataset>,
    metrics: MetricsWriter,
    evaluations: Option<MetricsWriter>,
    sampler: Option<LossSecondMoment>,
    preview: Option<Preview>,
    evaluator: Option<Evaluator>,
    evaluation: Option<Evaluation>,
    /// Step of the last row of evaluation.csv.
    evaluated: Option<u64>,
    on_event: &'a mut dyn FnMut(Event) -> Result<()>,
    logged: u64,
    /// Images in each quarter of the timesteps since the last row.
    quartile_images: [usize; QUARTILES],
    losses: Vec<f64>,
    /// Time spent training up to `running`, and images in all of it.
    clock: Duration,
    running: Option<Instant>,
    images: u64,
    not_finite: u32,
    /// Updates skipped so far by the loss scale.
    skipped: u32,
    plotted: Instant,
}

/// Trains until `info.training.steps`, the time limit or a stop; saves at the
/// end in any case. A resumed run takes its position from the folder and
/// everything else from `info`, which the caller read from there.
///
/// # Errors
/// Anything that can fail on the way; what was saved before stays.
pub fn train(
    ctx: Context,
    dataset: Arc<Dataset>,
    mut info: NetworkInfo,
    options: &RunOptions,
    stop: &StopFlag,
    on_event: &mut dyn FnMut(Event) -> Result<()>,
) -> Result<TrainOutcome> {
    std::fs::create_dir_all(&options.folder)
        .map_err(|e| Error::io("create", &options.folder, e))?;
    let step = TrainStep::new(ctx, &info.model, &info.diffusion, &info.training, Noise::Drawn)?;
    let mut sampler = None;
    if options.resume {
        (info.progress, sampler) = load_state(ctx, &step, &info, &state_path(&options.folder))?;
    } else {
        info.progress = Progress::default();
        let params = &step.graph().params;
        let random = || initialise(params, info.training.seed);
        let values = options.initial.clone().unwrap_or_else(random);
        let averages = (0..info.training.ema_rates.len() as u8).map(FlatKind::Ema);
        for kind in averages.chain([FlatKind::Weights]) {
            step.flat().write(ctx.gpu, kind, params, &values)?;
        }
    }
    if info.training.schedule_sampler == TimestepWeights::LossSecondMoment {
        let steps = info.diffusion.diffusion_steps;
        sampler.get_or_insert_with(|| LossSecondMoment::new(steps, HISTORY_PER_TERM));
    }
    let names = step.term_names();
    let skipped = step.loss_scale(ctx)?.map_or(0, |s| s.skipped);
    let at = options.resume.then_some(info.progress.step);
    let metrics = open_csv(&options.folder.join("metrics.csv"), &columns(&names, true), at)?;
    let (mut evaluations, mut evaluated) = (None, None);
    if options.validation.is_some() {
        let path = options.folder.join("evaluation.csv");
        evaluations = Some(open_csv(&path, &columns(&names, false), at)?);
        evaluated = Metrics::read(&path)?.rows.last().map(|row| row.step);
    }
    let logged = info.progress.step;
    let mut run = Run {
        ctx,
        step,
        info,
        options,
        dataset,
        metrics,
        evaluations,
        sampler,
        preview: None,
        evaluator: None,
        evaluation: None,
        evaluated,
        on_event,
        logged,
        quartile_images: [0; QUARTILES],
        losses: Vec::new(),
        clock: Duration::ZERO,
        running: None,
        images: 0,
        not_finite: 0,
        skipped,
        plotted: Instant::now(),
    };
    run.go(stop)
}

/// Columns after the step: loss, each term, its quartiles.
fn columns(terms: &[&str], training: bool) -> Vec<String> {
    let mut columns: Vec<String> = vec!["images".into(), "loss".into()];
    if training {
        columns.extend(["grad_norm", "lr", "images_per_second"].map(String::from));
    }
    for term in terms {
        columns.push((*term).into());
        columns.extend((0..QUARTILES).map(|q| format!("{term}_q{q}")));
    }
    columns
}

fn open_csv(path: &Path, columns: &[String], resume_at: Option<u64>) -> Result<MetricsWriter> {
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    match resume_at {
        Some(step) => MetricsWriter::resume(path, &names, step),
        None => MetricsWriter::create(path, &names),
    }
}

fn term_values(terms: &[TermSum]) -> impl Iterator<Item = f64> + '_ {
    terms.iter().flat_map(|t| std::iter::once(t.total).chain(t.quartiles))
}

impl Run<'_> {
    fn go(&mut self, stop: &StopFlag) -> Result<TrainOutcome> {
        let c = self.info.training.clone();
        let options = LoaderOptions {
            batch_size: c.micro_batch,
            seed: c.seed,
            start: self.info.progress.images_seen,
            flip: c.flip,
            random_crop: c.random_crop,
            workers: 0,
        };
        let mut loader = Loader::new(self.dataset.clone(), options)?;
        self.ctx.gpu.wait()?;
        (self.on_event)(Event::Ready { step: self.info.progress.step })?;
        let begun = Instant::now();
        let mut queue: VecDeque<Ticket> = VecDeque::new();
        self.running = Some(Instant::now());
        let mut interrupted = false;
        let out_of_time = || self_time(begun, self.options.time_limit);
        while self.info.progress.step < c.steps && !out_of_time() {
            if stop.is_set() {
                interrupted = true;
                break;
            }
            queue.push_back(self.one_step(&mut loader)?);
            if queue.len() > IN_FLIGHT
                && let Some(ticket) = queue.pop_front()
            {
                self.ctx.gpu.wait_for(&ticket)?;
            }
            let step = self.info.progress.step;
            let rate = self.rate();
            (self.on_event)(Event::Step { step, images_per_second: rate })?;
            let due = |every: u64| every > 0 && step.is_multiple_of(every) && step < c.steps;
            if due(self.options.log_every) {
                self.log()?;
            }
            if [self.options.save_every, self.options.sample_every, self.options.eval_every]
                .into_iter()
                .any(due)
            {
                self.ctx.gpu.wait()?;
                self.pause();
                if due(self.options.eval_every) {
                    self.evaluate()?;
                }
                if due(self.options.save_every) {
                    self.save()?;
                }
                if due(self.options.sample_every) {
                    self.draw()?;
                }
                self.running = Some(Instant::now());
            }
        }
        self.ctx.gpu.wait()?;
        self.pause();
        self.log()?;
        if !interrupted {
            self.evaluate()?;
        }
        self.save()?;
        if self.options.sample_every > 0 && !interrupted {
            self.draw()?;
        }
        let losses = self.losses.first().copied().zip(self.losses.last().copied());
        Ok(TrainOutcome {
            progress: self.info.progress,
            losses,
            evaluation: self.evaluation.take(),
            images_per_second: self.rate(),
            interrupted,
        })
    }

    /// Time spent training, without saves, evaluations and grids.
    fn trained(&self) -> Duration {
        self.clock + self.running.map_or(Duration::ZERO, |since| since.elapsed())
    }

    fn pause(&mut self) {
        self.clock = self.trained();
        self.running = None;
    }

    fn rate(&self) -> f64 {
        self.images as f64 / self.trained().as_secs_f64().max(1e-9)
    }

    /// Submits one optimizer step.
    fn one_step(&mut self, loader: &mut Loader) -> Result<Ticket> {
        let number = self.info.progress.step;
        for part in 0..self.info.training.micro_batches() {
            let batch: Batch = loader.next()?;
            let n = batch.labels.len();
            let (timesteps, importance) = self.draw_timesteps(number, batch.start, n);
            let labels = self.drop_labels(number, &batch);
            let micro = MicroBatch {
                images: &batch.images,
                labels: &labels,
                timesteps: &timesteps,
                importance: &importance,
                first: batch.start,
                noise: None,
            };
            self.step.micro_step(self.ctx, number, part, &micro)?;
            for t in &timesteps {
                self.quartile_images[self.step.quartile(*t)] += 1;
            }
            if let Some(sampler) = &mut self.sampler {
                // Waits for the device: the next timesteps depend on these losses.
                let losses = self.step.image_losses(self.ctx)?;
                timesteps.iter().zip(losses).for_each(|(t, loss)| sampler.update(*t, loss));
            }
            self.info.progress.images_seen += n as u64;
            self.images += n as u64;
        }
        let ticket = self.step.update(self.ctx, number)?;
        self.info.progress.step += 1;
        Ok(ticket)
    }

    /// Timesteps of the images `first..first + n` and their importance weights.
    fn draw_timesteps(&self, step: u64, first: u64, n: usize) -> (Vec<usize>, Vec<f64>) {
        let images = first..first + n as u64;
        match self.sampler.as_ref().filter(|s| s.warmed_up()) {
            None => (images.map(|i| self.step.draw_timestep(step, i)).collect(), Vec::new()),
            Some(sampler) => {
                let p = sampler.probabilities();
                let seed = self.info.training.seed;
                let uniform = |i: u64| {
                    rng::uniform_f32(seed, step as u32, rng::STREAM_TIMESTEP, i as u32, 0).into()
                };
                images.map(|i| draw(&p, uniform(i))).unzip()
            }
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

    /// Writes a row for the steps since the last one.
    fn log(&mut self) -> Result<()> {
        let step = self.info.progress.step;
        if step == self.logged {
            return Ok(());
        }
        let (mut terms, grad_norm) = self.step.take_terms(self.ctx)?;
        let counts = std::mem::take(&mut self.quartile_images);
        let images = counts.iter().sum::<usize>().max(1) as f64;
        for term in &mut terms {
            term.total /= images;
            // Without an image there is no mean: an empty field.
            term.quartiles.iter_mut().zip(counts).for_each(|(sum, n)| *sum /= n as f64);
        }
        let loss: f64 = terms.iter().filter(|t| t.trained).map(|t| t.total).sum();
        self.logged = step;
        let overflowed = self.report_loss_scale(step)?;
        if loss.is_finite() && (grad_norm.is_finite() || overflowed) {
            self.not_finite = 0;
            self.losses.push(loss);
        } else {
            self.not_finite += 1;
            (self.on_event)(Event::NotFinite { step })?;
            if self.not_finite >= 5 {
                return Err(Error::Config(format!(
                    "training diverged: loss and gradients have not been finite up to step {step}; use a lower learning rate"
                )));
            }
        }
        let lr = self.info.training.lr_at(step.saturating_sub(1));
        let rate = self.rate();
        let seen = self.info.progress.images_seen as f64;
        let row: Vec<f64> =
            [seen, loss, grad_norm, lr, rate].into_iter().chain(term_values(&terms)).collect();
        self.metrics.append(step, &row)?;
        (self.on_event)(Event::Log { step, loss, terms: &terms, grad_norm })?;
        if self.plotted.elapsed() >= PLOT_EVERY { self.plot() } else { Ok(()) }
    }

    /// Tells of updates that half precision skipped; whether there were any that
    /// a smaller scale may still prevent.
    fn report_loss_scale(&mut self, step: u64) -> Result<bool> {
        let Some(scale) = self.step.loss_scale(self.ctx)? else { return Ok(false) };
        let skipped = scale.skipped.saturating_sub(self.skipped);
        self.skipped = scale.skipped;
        if skipped > 0 {
            (self.on_event)(Event::LossScaled { step, skipped, lg: scale.lg })?;
        }
        Ok(skipped > 0 && scale.lg > MIN_LG_SCALE)
    }

    /// Evaluates the averaged weights and keeps them if they are the best yet.
    fn evaluate(&mut self) -> Result<()> {
        let Some(dataset) = &self.options.validation else { return Ok(()) };
        let step = self.info.progress.step;
        if self.evaluation.is_some() && self.evaluated == Some(step) {
            return Ok(());
        }
        let evaluator = match self.evaluator.take() {
            Some(evaluator) => evaluator,
            None => {
                let NetworkInfo { model, diffusion, training, .. } = &self.info;
                let (flat, average) = (self.step.flat(), FlatKind::Ema(0));
                Evaluator::new(self.ctx, model, diffusion, training, flat, average)?
            }
        };
        let images = self.options.eval_images.min(dataset.len());
        let fetch = spread(dataset, images);
        let evaluation = evaluator.run(self.ctx, images, &fetch, &mut |_| Ok(()))?;
        self.evaluator = Some(evaluator);
        let loss = evaluation.loss();
        // A run that was finished and resumed has its row already.
        if let Some(csv) = self.evaluations.as_mut().filter(|_| self.evaluated != Some(step)) {
            let row: Vec<f64> = [evaluation.images as f64, loss]
                .into_iter()
                .chain(term_values(&evaluation.terms))
                .collect();
            csv.append(step, &row)?;
        }
        self.evaluated = Some(step);
        let best = loss.is_finite() && self.info.progress.best_loss.is_none_or(|b| loss < b);
        if best {
            self.info.progress.best_loss = Some(loss);
            let path = best_path(&self.options.folder);
            save_network(self.ctx, &self.step, &self.info, FlatKind::Ema(0), &path)?;
            (self.on_event)(Event::Wrote(&path))?;
        }
        (self.on_event)(Event::Evaluated { step, evaluation: &evaluation, best })?;
        self.evaluation = Some(evaluation);
        Ok(())
    }

    /// Writes the state, the averaged networks and the loss plot.
    fn save(&mut self) -> Result<()> {
        let (ctx, folder) = (self.ctx, self.options.folder.clone());
        let path = state_path(&folder);
        save_state(ctx, &self.step, &self.info, self.sampler.as_ref(), &path)?;
        for (i, rate) in self.info.training.ema_rates.clone().iter().enumerate() {
            let path = match i {
                0 => network_path(&folder),
                _ => folder.join(format!("network_ema_{rate}.safetensors")),
            };
            save_network(ctx, &self.step, &self.info, FlatKind::Ema(i as u8), &path)?;
            (self.on_event)(Event::Wrote(&path))?;
        }
        self.plot()
    }

    fn plot(&mut self) -> Result<()> {
        let folder = &self.options.folder;
        let metrics = Metrics::read(&folder.join("metrics.csv"))?;
        let Some(points) = metrics.points("loss").filter(|p| !p.is_empty()) else { return Ok(()) };
        let validation = match self.evaluations {
            Some(_) => Metrics::read(&folder.join("evaluation.csv"))?.points("loss"),
            None => None,
        };
        let path = folder.join("loss.png");
        let title = format!("training loss on {}", self.ctx.gpu.summary.name);
        plot::loss_plot(&path, &title, &points, validation)?;
        self.plotted = Instant::now();
        (self.on_event)(Event::Wrote(&path))
    }

    /// Draws a grid with the averaged weights of a diffusion network.
    fn draw(&mut self) -> Result<()> {
        if matches!(self.info.model, ModelConfig::Encoder(_)) {
            return Ok(());
        }
        let preview = match self.preview.take() {
            Some(preview) => preview,
            None => Preview::new(self.ctx, &self.step, &self.info)?,
        };
        let dataset = self.options.validation.as_ref().unwrap_or(&self.dataset);
        let path = preview.draw(self.ctx, &self.info, dataset, &self.options.folder)?;
        self.preview = Some(preview);
        (self.on_event)(Event::Wrote(&path))
    }
}

fn self_time(begun: Instant, limit: Option<Duration>) -> bool {
    limit.is_some_and(|l| begun.elapsed() >= l)
}
