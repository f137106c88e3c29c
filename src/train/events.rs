//! What a run is told, and what it tells: where and how often it writes, how it
//! is stopped, its events and its end.

use super::{Evaluation, TermSum};
use crate::checkpoint::Progress;
use crate::data::Dataset;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

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
    /// The run folder, created if need be; a run without one writes nothing.
    pub folder: Option<PathBuf>,
    /// Continue from the folder's state, or with its tables.
    pub resume: bool,
    /// Start from these values, in device layout, instead of random ones.
    pub initial: Option<Vec<Vec<f32>>>,
    /// Images to evaluate on.
    pub validation: Option<Arc<Dataset>>,
    /// At most so many of them.
    pub eval_images: usize,
    /// Steps between evaluations.
    pub eval_every: u64,
    /// Steps between rows of metrics.csv.
    pub log_every: u64,
    /// Steps between saves.
    pub save_every: u64,
    /// Steps between sample grids; 0 draws none.
    pub sample_every: u64,
    /// Stop after this long even if steps are left.
    pub time_limit: Option<Duration>,
}

impl RunOptions {
    /// A new run in `folder` with the program's intervals.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        RunOptions { folder: Some(folder.into()), ..Default::default() }
    }
}

impl Default for RunOptions {
    /// A new run without a folder, with the program's intervals.
    fn default() -> Self {
        RunOptions {
            folder: None,
            resume: false,
            initial: None,
            validation: None,
            eval_images: 1000,
            eval_every: 1000,
            log_every: 20,
            save_every: 1000,
            sample_every: 1000,
            time_limit: None,
        }
    }
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
        /// Mean loss.
        loss: f64,
        /// Its terms, as means over the images.
        terms: &'a [TermSum],
        /// Norm of the last gradient.
        grad_norm: f64,
    },
    /// The validation set was evaluated.
    Evaluated {
        /// Steps done.
        step: u64,
        /// The means.
        evaluation: &'a Evaluation,
        /// Better than every evaluation before.
        best: bool,
    },
    /// A file was written.
    Wrote(&'a Path),
    /// Loss or gradient are not finite; those updates were skipped.
    NotFinite {
        /// Steps done.
        step: u64,
    },
    /// Gradients overflowed half precision: updates were skipped and the loss
    /// scale lowered, as is usual in the first steps.
    LossScaled {
        /// Steps done.
        step: u64,
        /// Updates skipped since the last row.
        skipped: u32,
        /// Logarithm to base 2 of the scale now.
        lg: f32,
    },
}

/// How a run ended.
#[derive(Debug, Clone)]
pub struct TrainOutcome {
    /// Where training stands.
    pub progress: Progress,
    /// First and last logged loss of this run.
    pub losses: Option<(f64, f64)>,
    /// The last evaluation.
    pub evaluation: Option<Evaluation>,
    /// Images per second, compilation and saving excluded.
    pub images_per_second: f64,
    /// Stopped by the user rather than finished.
    pub interrupted: bool,
}
