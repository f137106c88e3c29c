//! demist: diffusion models on raw wgpu.
//!
//! See ARCHITECTURE.md for how the modules depend on each other.
#![warn(missing_docs)]

mod api;
#[cfg(feature = "files")]
pub mod bench;
#[cfg(not(target_arch = "wasm32"))]
pub mod blocking;
pub mod caps;
pub mod checkpoint;
pub mod data;
pub mod diffusion;
mod error;
#[cfg(feature = "files")]
pub mod files;
pub mod gpu;
pub mod graph;
pub mod kernel;
pub mod model;
pub mod ops;
pub mod output;
pub mod recipe;
pub mod reference;
pub mod rng;
pub mod runtime;
pub mod train;
pub mod tuning;

#[cfg(not(target_arch = "wasm32"))]
pub use api::block_on;
pub use api::{
    AdapterSummary, Classes, Classifier, Compiling, Device, DeviceOptions, DrawRequest, DrawStep,
    Drawn, EvaluationRequest, Generator, Image, ImageLikelihood, LikelihoodRequest, LikelihoodStep,
    Likelihoods, Network, OnCompiling, Prepared, Sampler, Trainer, TrainerOptions, TrainerStep,
    Watch, slerp,
};
pub use error::{Error, Result};
