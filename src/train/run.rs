//! A training run: the loop around [`TrainStep`] with its folder of files.
//!
//! ```text
//! RUN/state.safetensors    weights, EMA, both moments, position: all of a resume
//! RUN/network.safetensors  the averaged weights, ready for `sample`
//! RUN/metrics.csv          step, loss, gradient norm, learning rate, images/s
//! RUN/loss.png             the same as a picture
//! RUN/samples/             a class-labelled grid at intervals
//! ```
//!
//! All random numbers are functions of seed, step and image number, so the
//! position is all the random state there is, and a resumed run computes the
//! same bits as one that was never stopped.

use super::{MicroBatch, Noise, TrainStep};
use crate::checkpoint::{NetworkInfo, Progress, TensorFile, read_network, write_network};
use crate::data::{Batch, Dataset, Loader, LoaderOptions};
use crate::diffusion::{ImageSampler, SampleOptions, Sampler};
use crate::graph::FlatKind;
use crate::model::{initialise, parameters, parameters_to_tensors};
use crate::output::metrics::{Metrics, MetricsWriter};
use crate::output::{Grid, image::to_u8, plot};
use crate::runtime::{Context, Ticket};
use crate::{Error, Result};
use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// Submitted steps that may wait in the queue.
const IN_FLIGHT: usize = 2;

/// How old the loss plot may grow.
const PLOT_EVERY: Duration = Duration::from_secs(30);

/// Columns of metrics.csv after the step.
const COLUMNS: [&str; 5] = ["images", "loss", "grad_norm", "lr", "images_per_second"];

/// The prefixes under which state.safetensors keeps each flat buffer.
const STATE: [(FlatKind, &str); 4] = [
    (FlatKind::Weights, "weights."),
    (FlatKind::Ema(0), "ema."),
    (FlatKind::ExpAvg, "exp_avg."),
    (FlatKind::ExpAvgSq, "exp_avg_sq."),
];

/// Asks a run to save and stop; shared with a signal handler.
#[derive(Debug, Clone, Default)]
pub struct StopFlag(Arc<AtomicBool>);

impl StopFlag {
    /// Requests the stop.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether it was requested.
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Where and how often a run writes.
#[derive(Debug, Clone)]
pub struct RunOptions {
    /// The run folder, created if need be.
    pub folder: PathBuf,
    /// Continue from the folder's state.
    pub resume: bool,
    /// Steps between rows of metrics.csv.
    pub log_every: u64,
    /// Steps between saves.
    pub save_every: u64,
    /// Steps between sample grids; 0 draws none.
    pub sample_every: u64,
    /// Stop after this long even if steps are left.
    pub time_limit: Option<Duration>,
}

/// What a run reports while it goes on.
#[derive(Debug)]
pub enum Event<'a> {
    /// Compiled and ready; training starts or continues after `step` steps.
    Ready {
        /// Steps done before.
        step: u64,
    },
    /// A step was submitted.
    Step {
        /// Steps done.
        step: u64,
        /// Images per second since the start of this run.
        images_per_second: f64,
    },
    /// The mean loss since the last row.
    Log {
        /// Steps done.
        step: u64,
        /// Mean squared error.
        loss: f64,
        /// Norm of the last gradient.
        grad_norm: f64,
    },
    /// A file was written.
    Wrote(&'a Path),
    /// Loss or gradient are not finite; those updates were skipped.
    NotFinite {
        /// Steps done.
        step: u64,
    },
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct TrainOutcome {
    /// Where training stands.
    pub progress: Progress,
    /// First and last logged loss of this run.
    pub losses: Option<(f64, f64)>,
    /// Images per second, compilation and saving excluded.
    pub images_per_second: f64,
    /// Stopped by the user rather than finished.
    pub interrupted: bool,
}

/// A run in progress.
struct Run<'a> {
    ctx: Context<'a>,
    step: TrainStep,
    info: NetworkInfo,
    options: &'a RunOptions,
    metrics: MetricsWriter,
    sampler: Option<ImageSampler>,
    on_event: &'a mut dyn FnMut(Event) -> Result<()>,
    logged: u64,
    losses: Vec<f64>,
    /// Time spent training, and images in it.
    clock: Duration,
    images: u64,
    not_finite: u32,
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
    if options.resume {
        info.progress = load_state(ctx, &step, &options.folder)?;
    } else {
        info.progress = Progress::default();
        let values = initialise(&step.graph().params, info.training.seed);
        for kind in [FlatKind::Weights, FlatKind::Ema(0)] {
            step.flat().write(ctx.gpu, kind, &step.graph().params, &values)?;
        }
    }
    let csv = options.folder.join("metrics.csv");
    let metrics = if options.resume {
        MetricsWriter::resume(&csv, &COLUMNS, info.progress.step)?
    } else {
        MetricsWriter::create(&csv, &COLUMNS)?
    };
    let logged = info.progress.step;
    let mut run = Run {
        ctx,
        step,
        info,
        options,
        metrics,
        sampler: None,
        on_event,
        logged,
        losses: Vec::new(),
        clock: Duration::ZERO,
        images: 0,
        not_finite: 0,
        plotted: Instant::now(),
    };
    run.go(dataset, stop)
}

impl Run<'_> {
    fn go(&mut self, dataset: Arc<Dataset>, stop: &StopFlag) -> Result<TrainOutcome> {
        let c = self.info.training.clone();
        let mut loader = Loader::new(
            dataset,
            LoaderOptions {
                batch_size: c.micro_batch,
                seed: c.seed,
                start: self.info.progress.images_seen,
                flip: c.flip,
                random_crop: c.random_crop,
                workers: 0,
            },
        )?;
        self.ctx.gpu.wait()?;
        (self.on_event)(Event::Ready { step: self.info.progress.step })?;
        let begun = Instant::now();
        let mut queue: VecDeque<Ticket> = VecDeque::new();
        let mut mark = Instant::now();
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
            let rate = self.images as f64 / (self.clock + mark.elapsed()).as_secs_f64();
            (self.on_event)(Event::Step { step, images_per_second: rate })?;
            let due = |every: u64| every > 0 && step.is_multiple_of(every) && step < c.steps;
            if due(self.options.log_every) {
                self.log()?;
            }
            if due(self.options.save_every) || due(self.options.sample_every) {
                self.ctx.gpu.wait()?;
                self.clock += mark.elapsed();
                if due(self.options.save_every) {
                    self.save()?;
                }
                if due(self.options.sample_every) {
                    self.draw()?;
                }
                mark = Instant::now();
            }
        }
        self.ctx.gpu.wait()?;
        self.clock += mark.elapsed();
        self.log()?;
        self.save()?;
        if self.options.sample_every > 0 && !interrupted {
            self.draw()?;
        }
        let losses = self.losses.first().copied().zip(self.losses.last().copied());
        Ok(TrainOutcome {
            progress: self.info.progress,
            losses,
            images_per_second: self.rate(),
            interrupted,
        })
    }

    fn rate(&self) -> f64 {
        if self.images == 0 { 0.0 } else { self.images as f64 / self.clock.as_secs_f64().max(1e-9) }
    }

    /// Submits one optimizer step.
    fn one_step(&mut self, loader: &mut Loader) -> Result<Ticket> {
        let number = self.info.progress.step;
        for part in 0..self.info.training.micro_batches() {
            let batch: Batch = loader.next()?;
            let n = batch.labels.len();
            let timesteps: Vec<usize> =
                (0..n as u64).map(|i| self.step.draw_timestep(number, batch.start + i)).collect();
            let micro = MicroBatch {
                images: &batch.images,
                labels: &batch.labels,
                timesteps: &timesteps,
                first: batch.start,
                noise: None,
            };
            self.step.micro_step(self.ctx, number, part, &micro)?;
            self.info.progress.images_seen += n as u64;
            self.images += n as u64;
        }
        let ticket = self.step.update(self.ctx, number)?;
        self.info.progress.step += 1;
        Ok(ticket)
    }

    /// Writes a row for the steps since the last one.
    fn log(&mut self) -> Result<()> {
        let step = self.info.progress.step;
        let steps = step - self.logged;
        if steps == 0 {
            return Ok(());
        }
        let (sum, grad_norm) = self.step.take_loss(self.ctx)?;
        let loss = sum / steps as f64;
        self.logged = step;
        if loss.is_finite() && grad_norm.is_finite() {
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
        let rate = if self.clock.is_zero() { f64::NAN } else { self.rate() };
        let images = self.info.progress.images_seen as f64;
        self.metrics.append(step, &[images, loss, grad_norm, lr, rate])?;
        (self.on_event)(Event::Log { step, loss, grad_norm })?;
        if self.plotted.elapsed() >= PLOT_EVERY { self.plot() } else { Ok(()) }
    }

    /// Writes the state, the averaged network and the loss plot.
    fn save(&mut self) -> Result<()> {
        let folder = &self.options.folder;
        let params = &self.step.graph().params;
        let mut state = TensorFile::default();
        let mut network = TensorFile::default();
        for (kind, prefix) in STATE {
            let values = self.step.flat().read(self.ctx.gpu, kind, params)?;
            if kind == FlatKind::Ema(0) {
                network.tensors.extend(parameters_to_tensors(params, &values, "")?);
            }
            state.tensors.extend(parameters_to_tensors(params, &values, prefix)?);
        }
        let path = folder.join("state.safetensors");
        write_network(
            &path,
            &NetworkInfo { holds: "state".into(), ..self.info.clone() },
            state,
            false,
        )?;
        let path = folder.join("network.safetensors");
        write_network(
            &path,
            &NetworkInfo { holds: "ema".into(), ..self.info.clone() },
            network,
            false,
        )?;
        (self.on_event)(Event::Wrote(&path))?;
        self.plot()
    }

    fn plot(&mut self) -> Result<()> {
        let metrics = Metrics::read(&self.options.folder.join("metrics.csv"))?;
        let Some(points) = metrics.points("loss").filter(|p| !p.is_empty()) else { return Ok(()) };
        let path = self.options.folder.join("loss.png");
        plot::loss_plot(
            &path,
            &format!("training loss on {}", self.ctx.gpu.summary.name),
            &points,
        )?;
        self.plotted = Instant::now();
        (self.on_event)(Event::Wrote(&path))
    }

    /// Draws a grid with the averaged weights, one row a class.
    fn draw(&mut self) -> Result<()> {
        const COLUMNS: usize = 8;
        let rows = self.info.model.num_classes.unwrap_or(4).min(10);
        if self.sampler.is_none() {
            self.sampler = Some(ImageSampler::new(
                self.ctx,
                &self.info.model,
                &self.info.diffusion,
                COLUMNS,
                self.step.flat(),
                FlatKind::Ema(0),
            )?);
        }
        let Some(sampler) = &self.sampler else { return Ok(()) };
        let steps = self.info.diffusion.diffusion_steps.min(25);
        let options = SampleOptions {
            respacing: if steps < self.info.diffusion.diffusion_steps {
                format!("{steps}")
            } else {
                String::new()
            },
            sampler: Sampler::Ddim { eta: 0.0 },
            clip: true,
            seed: self.info.training.seed,
        };
        let mut images = Vec::new();
        for row in 0..rows {
            let labels = if self.info.model.num_classes.is_some() {
                vec![row as u32; COLUMNS]
            } else {
                Vec::new()
            };
            let first = (row * COLUMNS) as u64;
            images.extend(sampler.sample(
                self.ctx,
                &options,
                first,
                &labels,
                COLUMNS,
                &mut |_, _| Ok(()),
            )?);
        }
        let (size, channels) = (self.info.model.image_size, self.info.model.in_channels);
        let folder = self.options.folder.join("samples");
        std::fs::create_dir_all(&folder).map_err(|e| Error::io("create", &folder, e))?;
        let path = folder.join(format!("step_{:07}.png", self.info.progress.step));
        let pixels = to_u8(&images);
        let mut grid = Grid::new(&pixels, [size, size, channels], COLUMNS).title(format!(
            "step {}, {} images seen",
            self.info.progress.step, self.info.progress.images_seen
        ));
        if self.info.model.num_classes.is_some() {
            grid = grid.row_labels(self.info.data.classes.iter().take(rows).cloned());
        }
        grid.save(&path, &[("Software", "demist"), ("Comment", &self.info.command)])?;
        (self.on_event)(Event::Wrote(&path))
    }
}

fn self_time(begun: Instant, limit: Option<Duration>) -> bool {
    limit.is_some_and(|l| begun.elapsed() >= l)
}

/// Uploads a saved state and returns its position.
fn load_state(ctx: Context, step: &TrainStep, folder: &Path) -> Result<Progress> {
    let path = folder.join("state.safetensors");
    let (info, file) = read_network(&path)?;
    let params = &step.graph().params;
    for (kind, prefix) in STATE {
        let values = parameters(params, &file, prefix).map_err(|e| Error::file(&path, e))?;
        step.flat().write(ctx.gpu, kind, params, &values)?;
    }
    Ok(info.progress)
}
