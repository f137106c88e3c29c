//! demist: diffusion models on raw wgpu, with kernels of its own in WGSL.
//!
//! The library trains and samples the U-Nets of ADM, DDPM and DDIM on any GPU that wgpu
//! knows, and on software drivers. The program `demist` is its first client.
//!
//! # Drawing
//!
//! ```
//! use demist::{Classes, Device, DeviceOptions, DrawRequest, Generator, block_on};
//!
//! # fn main() -> demist::Result<()> {
//! let device = block_on(Device::open(DeviceOptions::default()))?;
//! let mut generator = Generator::open(&device, "assets/faces16.safetensors")?;
//! let request = DrawRequest {
//!     classes: Classes::named(["hat", "glasses"]),
//!     count: 2, // of each class
//!     steps: "4".into(), // more steps draw better images
//!     seed: 7,
//!     ..Default::default()
//! };
//! let drawn = block_on(generator.draw(&request))?;
//! assert_eq!(drawn.class_names, ["hat", "hat", "glasses", "glasses"]);
//! // 16x16 pixels of red, green and blue.
//! for image in drawn.images() {
//!     assert_eq!(image.pixels().len(), 16 * 16 * 3);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! What waits for a device is asynchronous, as in a browser it must be; [`block_on`] waits
//! for it in native programs.
//!
//! # Where things are
//!
//! * The front door: [`Device`], [`Network`] and [`Generator`], at the crate's root.
//! * What networks and processes are: [`model`], [`diffusion`], [`checkpoint`].
//! * Images in and out: [`data`], [`output`].
//! * The engine below, for those who write kernels: [`graph`], [`kernel`], [`ops`],
//!   [`runtime`], [`gpu`].
//!
//! `ARCHITECTURE.md` in the repository tells how the modules depend on each other.
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
