//! The front door of the library: what a program needs that draws or trains, without
//! knowing how the engine works. Everything here is re-exported at the crate's root.

mod classifier;
mod device;
mod evaluation;
mod generator;
mod images;
mod likelihood;
mod network;
mod request;
mod trainer;

pub use crate::diffusion::{ImageLikelihood, Sampler, slerp};
pub use crate::gpu::AdapterSummary;
pub use crate::runtime::Compiling;
pub use classifier::Classifier;
pub use device::{Device, DeviceOptions, OnCompiling};
pub use evaluation::EvaluationRequest;
pub use generator::{DrawStep, Generator, Watch};
pub use images::{Drawn, Image};
pub use likelihood::{LikelihoodRequest, LikelihoodStep, Likelihoods};
pub use network::Network;
pub use request::{Classes, DrawRequest};
pub use trainer::{Prepared, Trainer, TrainerOptions, TrainerStep};

/// Waits for a future of this crate on the calling thread, for native programs
/// without an asynchronous runtime.
///
/// A browser must not block its thread; there the futures are awaited.
#[cfg(not(target_arch = "wasm32"))]
pub fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    pollster::block_on(future)
}
