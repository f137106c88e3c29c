//! Training in a run folder under a progress bar.

use super::training_args::{DataArgs, RunArgs, TrainArgs};
use super::{
    DeviceArgs, bar, command_line, keep_compiling, open_data, open_device, stop_on_ctrl_c,
};
use demist::checkpoint::NetworkInfo;
use demist::data::{Dataset, first_names};
use demist::engine::caps::{Caps, human_bytes};
use demist::model::ModelConfig;
use demist::train::{Event, RunOptions, TermSum, TrainOutcome, fit_memory, state_path};
use demist::{Device, Error, Prepared, Result, Trainer, TrainerOptions, block_on};
use indicatif::ProgressBar;
use std::path::Path;
use std::sync::Arc;

/// The arguments of a run, whatever kind of network it trains.
#[derive(Clone, Copy)]
pub struct Typed<'a> {
    /// The images.
    pub data: &'a Path,
    pub data_options: &'a DataArgs,
    pub run: &'a RunArgs,
    pub training: &'a TrainArgs,
}

/// What a run begins or goes on with.
struct Start {
    prepared: Prepared,
    dataset: Dataset,
}

/// Trains what `meant` says, or goes on with the run in the folder. Only networks are
/// gone on with that `fits` accepts.
pub fn run(
    device: &DeviceArgs,
    typed: Typed,
    fits: impl Fn(&NetworkInfo) -> Result<()>,
    meant: impl Fn() -> Result<(TrainerOptions, Dataset)>,
) -> Result<()> {
    let start = match typed.run.saved()? {
        Some(info) => {
            fits(&info)?;
            go_on(info, typed)?
        }
        None => begin(meant()?, typed)?,
    };
    train(device, start, typed)
}

/// Goes on with a saved run.
fn go_on(mut info: NetworkInfo, typed: Typed) -> Result<Start> {
    typed.training.resume(&mut info.training);
    let (size, channels) = (info.model.image_size(), info.model.in_channels());
    let dataset = open_data(typed.data, Some(size), Some(channels), info.training.random_crop)?;
    check_classes(&info, &dataset)?;
    Ok(Start { prepared: Prepared::resumed(info, state_path(&typed.run.out)), dataset })
}

/// A new run.
fn begin((options, dataset): (TrainerOptions, Dataset), typed: Typed) -> Result<Start> {
    let options = TrainerOptions {
        source: typed.data.display().to_string(),
        command: command_line(),
        ..options
    };
    let prepared = options.prepare(&dataset)?;
    for name in prepared.fresh() {
        note!("{name} is not all in the file: what is missing begins anew");
    }
    Ok(Start { prepared, dataset })
}

/// Everything after the options.
fn train(device: &DeviceArgs, Start { mut prepared, dataset }: Start, typed: Typed) -> Result<()> {
    let Typed { data, data_options, run, training } = typed;
    let info = &mut prepared.info;
    if info.training.steps == 0 {
        return Err(Error::Config("--steps must be at least 1".into()));
    }
    let (done, steps) = (info.progress.step, info.training.steps);
    if run.resume && done >= steps {
        say!("the run has {done} steps already; for more give --steps, the number in all");
        return Ok(());
    }
    let (size, channels) = (info.model.image_size(), info.model.in_channels());
    let classes = info.model.classes().map(|_| dataset.classes());
    let options = run.options(data_options.open_validation(size, channels, classes)?)?;
    let device = open_device(device)?;
    if let Some(budget) = training.memory {
        choose_recompute(device.caps(), info, budget)?;
    }
    let command = match info.model {
        ModelConfig::UNet(_) => "train",
        ModelConfig::Encoder(_) => "train-classifier",
    };
    let outcome = train_with_bar(&device, Arc::new(dataset), prepared, &options)?;
    if outcome.progress.step < steps {
        let validation = data_options.validation.as_deref();
        let more = validation.map(|v| format!(" --validation {}", shell_word(v)));
        say!(
            "stopped and saved; continue with: demist {command} {} --out {} --resume{}",
            shell_word(data),
            shell_word(&run.out),
            more.unwrap_or_default()
        );
    }
    Ok(())
}

/// A path as a shell takes it.
fn shell_word(path: &Path) -> String {
    let path = path.display().to_string();
    let plain = |c: char| c.is_alphanumeric() || "/._-+,=@:%".contains(c);
    if !path.is_empty() && path.chars().all(plain) {
        path
    } else {
        format!("'{}'", path.replace('\'', "'\\''"))
    }
}

/// Chooses the levels that are recomputed to stay within `budget`.
fn choose_recompute(caps: &Caps, info: &mut NetworkInfo, budget: u64) -> Result<()> {
    let NetworkInfo { model, diffusion, training, .. } = info;
    model.check_batch(training.micro_batch, caps.max_binding)?;
    let need = fit_memory(caps, model, diffusion, training, budget)?;
    note!(
        "memory: {} of {}, {} of {} levels recomputed in the backward walk",
        human_bytes(need.bytes()),
        human_bytes(budget),
        training.recompute_levels.count_ones(),
        model.levels()
    );
    Ok(())
}

fn check_classes(info: &NetworkInfo, dataset: &Dataset) -> Result<()> {
    let classes = dataset.classes();
    let fits = |n| n == classes.len() && info.data.classes == classes;
    if info.model.classes().is_some_and(|n| !fits(n)) {
        return Err(Error::Config(format!(
            "the run was trained on the classes {}, the data has {}",
            first_names(&info.data.classes),
            first_names(dataset.classes())
        )));
    }
    Ok(())
}

/// Trains under a progress bar and prints what happens.
pub fn train_with_bar(
    device: &Device,
    dataset: Arc<Dataset>,
    prepared: Prepared,
    options: &RunOptions,
) -> Result<TrainOutcome> {
    let stop = stop_on_ctrl_c()?;
    let skipped = dataset.skipped().len();
    let steps = prepared.info.training.steps;
    let mut trainer = block_on(Trainer::begin(device, dataset, prepared))?;
    let bar = bar(steps, "training");
    let mut shown = Shown { bar: &bar, options, losses: String::new() };
    let outcome = trainer.run(options, &stop, &mut |event| {
        shown.show(event);
        Ok(())
    })?;
    bar.abandon();
    if skipped > 0 {
        note!("{skipped} unreadable images were skipped");
    }
    print_outcome(&outcome, options);
    Ok(outcome)
}

/// What the progress line shows.
struct Shown<'a> {
    bar: &'a ProgressBar,
    options: &'a RunOptions,
    /// The last losses, in words.
    losses: String,
}

impl Shown<'_> {
    fn show(&mut self, event: Event) {
        let bar = self.bar;
        match event {
            Event::Ready { step } => {
                keep_compiling();
                bar.reset_elapsed();
                bar.set_position(step);
                bar.reset_eta();
            }
            Event::Step { step, images_per_second } => {
                bar.set_position(step);
                let message = format!("{}  {images_per_second:.1} images/s", self.losses);
                bar.set_message(message.trim_start().to_owned());
            }
            Event::Log { step, loss, terms, grad_norm } => {
                let text = format!("loss {loss:.4}  {}", accuracy(terms));
                self.losses = text.trim_end().to_owned();
                let seldom = self.options.log_every.saturating_mul(10);
                if bar.is_hidden() && step.is_multiple_of(seldom) {
                    note!("step {step}: loss {loss:.4}, gradient norm {grad_norm:.3}");
                }
            }
            Event::Evaluated { step, evaluation, best } => {
                let star = if best { ", the best so far" } else { "" };
                let (loss, accuracy) = (evaluation.loss(), accuracy(&evaluation.terms));
                let line = format!("step {step}: validation loss {loss:.4}  {accuracy}");
                bar.suspend(|| say!("{}{star}", line.trim_end()));
            }
            Event::LossScaled { step, skipped, lg } => {
                bar.suspend(|| {
                    note!(
                        "step {step}: {skipped} updates skipped on overflow, loss scale now 2^{lg:.1}"
                    );
                });
            }
            Event::NotFinite { step } => {
                bar.suspend(|| note!("step {step}: loss or gradient not finite, update skipped"));
            }
            Event::Wrote(path) => {
                let picture = path.extension().is_some_and(|e| e == "png");
                if picture && path.parent() != self.options.folder.as_deref() {
                    bar.suspend(|| say!("samples: {}", path.display()));
                }
            }
        }
    }
}

/// How a run ended, and where its files are.
fn print_outcome(outcome: &TrainOutcome, options: &RunOptions) {
    let p = outcome.progress;
    say!(
        "{} steps, {} images seen, {:.1} images/s",
        p.step,
        p.images_seen,
        outcome.images_per_second
    );
    if let Some((first, last)) = outcome.losses {
        say!("loss {first:.4} -> {last:.4}");
    }
    let Some(folder) = &options.folder else { return };
    if folder.join("best.safetensors").is_file() {
        say!("{}", folder.join("best.safetensors").display());
    }
    for file in ["network.safetensors", "loss.png", "metrics.csv"] {
        say!("{}", folder.join(file).display());
    }
}

/// A classifier's accuracy for the progress line.
fn accuracy(terms: &[TermSum]) -> String {
    let shown = |t: &TermSum| format!("{} {:.1} %", t.name, 100.0 * t.total);
    let terms = terms.iter().filter(|t| t.name.starts_with("acc"));
    terms.map(shown).collect::<Vec<_>>().join("  ")
}
