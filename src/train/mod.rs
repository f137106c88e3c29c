//! Training: the device side of a step ([`TrainStep`]), evaluation, the
//! options, and the run with its files.

mod evaluate;
mod events;
mod files;
mod memory;
mod preview;
mod run;
mod step;
mod wiring;

pub use evaluate::{Evaluation, Evaluator, evaluation_params, spread};
pub use events::{Event, RunOptions, StopFlag, TrainOutcome};
pub use files::state_prefix;
pub use memory::{MemoryNeed, fit_memory, memory_need};
pub use run::train;
pub use step::{MicroBatch, QUARTILES, TermSum, TrainStep, plan_report, plan_step};
pub use wiring::Noise;
