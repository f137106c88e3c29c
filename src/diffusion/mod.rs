//! Gaussian diffusion on the host: what is configured, which timesteps are
//! kept, and the tables and coefficients that kernels and trainer work from.
//!
//! ```text
//! DiffusionConfig --betas--> SpacedSchedule --tables()--> Tables --update_for(i)--> Update
//!   config          schedule   respace                     tables
//! ```
//!
//! Everything is computed in float64 and rounded to float32 once, when it is
//! handed to a kernel.

pub mod config;
mod guidance;
mod latents;
mod likelihood;
mod released;

pub mod respace;
mod sampler;
mod sampling;
pub mod schedule;
pub mod tables;
pub mod timestep_weights;

pub use config::{DiffusionConfig, LossType, MeanType, NoiseSchedule, VarType};
pub use guidance::{Guide, GuideGraph};
pub use latents::slerp;
pub use likelihood::{GivenNoise, ImageLikelihood, Likelihood, LikelihoodGraph, LikelihoodJob};
pub use released::released_diffusion;
pub use respace::{SpacedSchedule, space_timesteps};
pub use sampler::Sampler;
pub(crate) use sampling::check_labels;
pub use sampling::{
    SampleJob, SampleOptions, SampleProgress, SamplingGraph, SamplingLoop, SamplingNeeds,
};
pub use schedule::named_betas;
pub use tables::{QSampleCoefs, Tables, q_sample};
pub use timestep_weights::{LossSecondMoment, TimestepWeights};
