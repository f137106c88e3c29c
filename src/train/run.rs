//! A training run: the loop around a [`Session`]. At intervals it tells the losses,
//! evaluates, and has a folder keep what there is; without a folder it writes nothing, so
//! that a second process can take part in the same training.

use super::evaluate::Evaluation;
use super::run_folder::{self, RunFolder, state_path};
use super::state::load_state;
use super::{Event, Losses, RunOptions, Session, StopFlag, TrainOutcome};
use crate::Result;
use crate::checkpoint::NetworkInfo;
use crate::data::Dataset;
use crate::gpu::Ticket;
use crate::runtime::Context;
use pollster::block_on;
use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Submitted steps that may wait in the queue.
const IN_FLIGHT: usize = 2;

/// Called with every event; an error that it returns ends the run at once.
pub type OnEvent<'a> = &'a mut dyn FnMut(Event) -> Result<()>;

/// Trains what `info` describes on the images of `dataset`; see [`go`]. A resumed run
/// takes its position and its values from the folder and everything else from `info`,
/// which the caller read from there.
///
/// # Errors
/// Anything that can fail on the way; what was saved before stays.
pub fn train(
    ctx: Context,
    dataset: Arc<Dataset>,
    info: NetworkInfo,
    options: &RunOptions,
    stop: &StopFlag,
    on_event: OnEvent,
) -> Result<TrainOutcome> {
    if let Some(folder) = &options.folder {
        run_folder::create(folder)?;
    }
    let mut session = block_on(Session::new(ctx, info, dataset))?;
    match &options.folder {
        Some(folder) if options.resume => {
            block_on(load_state(ctx, &mut session, &state_path(folder)))?;
        }
        _ => session.begin(ctx, options.initial.as_deref())?,
    }
    go(ctx, &mut session, options, stop, on_event)
}

/// Trains until the session's `training.steps`, the time limit or a stop; the folder, if
/// there is one, keeps what there is at the end in any case.
///
/// # Errors
/// Anything that can fail on the way; what was saved before stays.
pub fn go(
    ctx: Context,
    session: &mut Session,
    options: &RunOptions,
    stop: &StopFlag,
    on_event: OnEvent,
) -> Result<TrainOutcome> {
    let open = |path: &std::path::PathBuf| RunFolder::open(path, options, session);
    let folder = options.folder.as_ref().map(open).transpose()?;
    let begun_with = session.info().progress.images_seen;
    let run = Run {
        ctx,
        session,
        options,
        folder,
        on_event,
        losses: None,
        evaluation: None,
        watch: Stopwatch::default(),
        begun_with,
    };
    run.go(stop)
}

/// A run in progress.
struct Run<'a> {
    ctx: Context<'a>,
    session: &'a mut Session,
    options: &'a RunOptions,
    folder: Option<RunFolder>,
    on_event: OnEvent<'a>,
    /// The first and the last loss.
    losses: Option<(f64, f64)>,
    /// The last evaluation and its step.
    evaluation: Option<(u64, Evaluation)>,
    watch: Stopwatch,
    /// Images seen before this run.
    begun_with: u64,
}

impl Run<'_> {
    fn go(mut self, stop: &StopFlag) -> Result<TrainOutcome> {
        let steps = self.session.info().training.steps;
        self.session.warm_up()?;
        self.ctx.gpu.wait()?;
        let step = self.step();
        (self.on_event)(Event::Ready { step })?;
        let begun = Instant::now();
        let out_of_time = || self.options.time_limit.is_some_and(|l| begun.elapsed() >= l);
        let mut queue: VecDeque<Ticket> = VecDeque::new();
        self.watch.go_on();
        let mut interrupted = false;
        while self.step() < steps && !out_of_time() {
            if stop.is_set() {
                interrupted = true;
                break;
            }
            queue.push_back(block_on(self.session.step(self.ctx))?);
            if queue.len() > IN_FLIGHT
                && let Some(ticket) = queue.pop_front()
            {
                self.ctx.gpu.wait_for(&ticket)?;
            }
            let (step, images_per_second) = (self.step(), self.rate());
            (self.on_event)(Event::Step { step, images_per_second })?;
            self.do_what_is_due(steps)?;
        }
        self.ctx.gpu.wait()?;
        self.watch.pause();
        self.finish(interrupted)
    }

    /// Steps done.
    fn step(&self) -> u64 {
        self.session.info().progress.step
    }

    /// Images per second of this run, the time between the steps excluded.
    fn rate(&self) -> f64 {
        let images = self.session.info().progress.images_seen - self.begun_with;
        images as f64 / self.watch.elapsed().as_secs_f64().max(1e-9)
    }

    /// What the intervals ask for after a step that is not the last.
    fn do_what_is_due(&mut self, steps: u64) -> Result<()> {
        let (step, o) = (self.step(), self.options);
        let due = |every: u64| every > 0 && step.is_multiple_of(every) && step < steps;
        if due(o.log_every) {
            self.tell_losses()?;
        }
        if [o.save_every, o.sample_every, o.eval_every].into_iter().any(due) {
            self.ctx.gpu.wait()?;
            self.watch.pause();
            if due(o.eval_every) {
                self.evaluate()?;
            }
            if due(o.save_every) {
                self.save()?;
            }
            if due(o.sample_every) {
                self.draw()?;
            }
            self.watch.go_on();
        }
        Ok(())
    }

    fn finish(mut self, interrupted: bool) -> Result<TrainOutcome> {
        self.tell_losses()?;
        if !interrupted {
            self.evaluate()?;
        }
        self.save()?;
        if self.options.sample_every > 0 && !interrupted {
            self.draw()?;
        }
        Ok(TrainOutcome {
            progress: self.session.info().progress,
            losses: self.losses,
            images_per_second: self.rate(),
            evaluation: self.evaluation.map(|(_, evaluation)| evaluation),
            interrupted,
        })
    }

    /// Tells the losses of the steps since the last time.
    fn tell_losses(&mut self) -> Result<()> {
        let Some(losses) = block_on(self.session.take_losses(self.ctx))? else { return Ok(()) };
        let Losses { step, loss, ref terms, grad_norm, scale, finite, .. } = losses;
        if let Some(scale) = scale.filter(|s| s.skipped > 0) {
            (self.on_event)(Event::LossScaled { step, skipped: scale.skipped, lg: scale.lg })?;
        }
        if finite {
            let first = self.losses.map_or(loss, |(first, _)| first);
            self.losses = Some((first, loss));
        } else {
            (self.on_event)(Event::NotFinite { step })?;
            self.session.check_converging()?;
        }
        let rate = self.rate();
        if let Some(folder) = &mut self.folder {
            folder.write_losses(&losses, rate)?;
        }
        (self.on_event)(Event::Log { step, loss, terms, grad_norm })?;
        if self.folder.as_ref().is_some_and(RunFolder::plot_is_old) {
            self.plot()?;
        }
        Ok(())
    }

    /// Evaluates the averaged weights and keeps them if they are the best yet.
    fn evaluate(&mut self) -> Result<()> {
        let Some(dataset) = &self.options.validation else { return Ok(()) };
        let step = self.step();
        if self.evaluation.as_ref().is_some_and(|(at, _)| *at == step) {
            return Ok(());
        }
        let most = self.options.eval_images;
        let evaluation = block_on(self.session.evaluate(self.ctx, dataset, most))?;
        if let Some(folder) = &mut self.folder {
            folder.write_evaluation(step, &evaluation)?;
        }
        let best = self.session.note_evaluation(&evaluation);
        if let (true, Some(folder)) = (best, &self.folder) {
            let path = folder.save_best(self.ctx, self.session)?;
            self.wrote(&path)?;
        }
        (self.on_event)(Event::Evaluated { step, evaluation: &evaluation, best })?;
        self.evaluation = Some((step, evaluation));
        Ok(())
    }

    fn wrote(&mut self, path: &Path) -> Result<()> {
        (self.on_event)(Event::Wrote(path))
    }

    /// Has the folder keep the state and the averaged networks, and draw the losses.
    fn save(&mut self) -> Result<()> {
        let Some(folder) = &self.folder else { return Ok(()) };
        for path in folder.save(self.ctx, self.session)? {
            self.wrote(&path)?;
        }
        self.plot()
    }

    fn plot(&mut self) -> Result<()> {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        match folder.plot(self.ctx)? {
            Some(path) => self.wrote(&path),
            None => Ok(()),
        }
    }

    /// Has the folder draw a grid of images.
    fn draw(&mut self) -> Result<()> {
        let Some(folder) = &mut self.folder else { return Ok(()) };
        let dataset = self.options.validation.as_ref().unwrap_or(self.session.dataset());
        match folder.draw(self.ctx, self.session, dataset)? {
            Some(path) => self.wrote(&path),
            None => Ok(()),
        }
    }
}

/// Time spent training, without what happens between the steps.
#[derive(Default)]
struct Stopwatch {
    before: Duration,
    since: Option<Instant>,
}

impl Stopwatch {
    fn go_on(&mut self) {
        self.since = Some(Instant::now());
    }

    fn pause(&mut self) {
        self.before = self.elapsed();
        self.since = None;
    }

    fn elapsed(&self) -> Duration {
        self.before + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}
