//! Training: the device side of a step ([`TrainStep`]), evaluation, the
//! options, and the run with its files.

mod evaluate;
#[cfg(feature = "plots")]
mod events;
mod memory;
#[cfg(feature = "plots")]
mod run;
#[cfg(feature = "plots")]
mod run_folder;
mod session;
mod state;
mod step;
mod timesteps;
mod wiring;

pub use evaluate::{Evaluation, Evaluator, evaluation_params, spread};
pub use memory::{MemoryNeed, fit_memory, memory_need};
pub use session::{Losses, ScaleReport, Session};
#[cfg(feature = "files")]
pub use state::{load_state, save_state};
pub use state::{network_file, restore, state_file, state_prefix};
pub use step::{MicroBatch, QUARTILES, TermSum, TrainStep, plan_report, plan_step};
pub use wiring::Noise;
#[cfg(feature = "plots")]
pub use {
    events::{Event, RunOptions, StopFlag, TrainOutcome},
    run::{OnEvent, go, train},
    run_folder::state_path,
};
