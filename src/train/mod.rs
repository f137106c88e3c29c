//! Training: the device side of a step ([`TrainStep`]), evaluation, the
//! options, and the run with its files.

mod evaluate;
mod events;
mod memory;
mod run;
mod run_folder;
mod session;
mod step;
mod timesteps;
mod wiring;

pub use evaluate::{Evaluation, Evaluator, evaluation_params, spread};
pub use events::{Event, RunOptions, StopFlag, TrainOutcome};
pub use memory::{MemoryNeed, fit_memory, memory_need};
pub use run::{OnEvent, go, train};
pub use run_folder::{load_state, network_file, save_state, state_path, state_prefix};
pub use session::{Losses, ScaleReport, Session};
pub use step::{MicroBatch, QUARTILES, TermSum, TrainStep, plan_report, plan_step};
pub use wiring::Noise;
