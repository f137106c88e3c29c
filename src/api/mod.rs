//! The front door of the library: what a program needs that draws or trains, without
//! knowing how the engine works. Everything here is re-exported at the crate's root.

mod device;
mod generator;
mod images;
mod likelihood;
mod network;
mod request;

pub use crate::diffusion::{ImageLikelihood, Sampler, slerp};
pub use crate::gpu::AdapterSummary;
pub use crate::runtime::Compiling;
pub use device::{Device, DeviceOptions, OnCompiling};
pub use generator::{DrawStep, Generator, Watch};
pub use images::{Drawn, Image};
pub use likelihood::{LikelihoodRequest, LikelihoodStep, Likelihoods};
pub use network::Network;
pub use request::{Classes, DrawRequest};

/// Waits for a future of this crate on the calling thread, for native programs
/// without an asynchronous runtime.
///
/// A browser must not block its thread; there the futures are awaited.
#[cfg(not(target_arch = "wasm32"))]
pub fn block_on<T>(future: impl std::future::Future<Output = T>) -> T {
    pollster::block_on(future)
}
