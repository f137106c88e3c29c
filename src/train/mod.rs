//! Training: the device side of a step ([`TrainStep`]), the options, and the
//! run with its files.

mod config;
mod run;
mod step;

pub use config::TrainConfig;
pub use run::{Event, RunOptions, StopFlag, TrainOutcome, train};
pub use step::{MicroBatch, Noise, TrainStep, plan_report};
