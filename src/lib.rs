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
//! * The front door, at the crate's root: [`Device`], [`Network`], [`Generator`],
//!   [`Trainer`] and [`Classifier`].
//! * What networks and processes are, and their files: [`model`], [`diffusion`],
//!   [`recipe`], [`checkpoint`].
//! * Images in and out: [`data`], [`output`].
//! * Training, and a training run in a folder as the program does it: [`train`].
//! * For those who write kernels: [`engine`].
//!
//! `ARCHITECTURE.md` in the repository tells how the modules depend on each other.
#![warn(missing_docs)]
// A browser's device stays on its thread; the same code shares it between threads elsewhere.
#![cfg_attr(target_arch = "wasm32", allow(clippy::arc_with_non_send_sync))]

mod api;
pub mod checkpoint;
pub mod data;
pub mod diffusion;
mod error;
pub mod model;
pub mod output;
pub mod recipe;
pub mod train;

// Their public place is `engine`; inside the crate each is named from the root.
#[cfg(feature = "files")]
#[doc(hidden)]
pub mod bench;
#[cfg(not(target_arch = "wasm32"))]
#[doc(hidden)]
pub mod blocking;
#[doc(hidden)]
pub mod caps;
#[doc(hidden)]
pub mod gpu;
#[doc(hidden)]
pub mod graph;
#[doc(hidden)]
pub mod kernel;
#[doc(hidden)]
pub mod ops;
#[doc(hidden)]
pub mod rng;
#[doc(hidden)]
pub mod runtime;
#[doc(hidden)]
pub mod tuning;

// Writing files whole or not at all, as the program and the tests do.
#[cfg(feature = "files")]
#[doc(hidden)]
pub mod files;
// Each op once more on the CPU, for tests to compare with.
#[doc(hidden)]
pub mod reference;

#[cfg(not(target_arch = "wasm32"))]
pub use api::block_on;
pub use api::{
    AdapterSummary, Classes, Classifier, Compiling, Device, DeviceOptions, DrawRequest, DrawStep,
    Drawn, EvaluationRequest, Generator, Image, ImageLikelihood, LikelihoodRequest, LikelihoodStep,
    Likelihoods, Network, OnCompiling, Prepared, Sampler, Trainer, TrainerOptions, TrainerStep,
    Watch, slerp,
};
pub use error::{Error, Result};

pub mod engine {
    //! The engine below the front door, for those who write kernels and ops, plan and
    //! replay graphs, or measure.
    //!
    //! ```text
    //! graph ── lowered by ops, with kernels ──> plan ── runtime ──> program on a gpu
    //! ```
    //!
    //! [`graph`] holds nodes, tensors `[n, h, w, c]` and the plan with its memory; [`ops`]
    //! appends nodes and knows each one's forward and backward launches; [`kernel`] is a
    //! shader with its bindings, parameters and variants; [`gpu`] is an open device;
    //! [`runtime`] compiles a plan and replays it. [`caps`] is what a device offers as plain
    //! data, [`tuning`] which variants were measured to be the fastest, [`mod@bench`] the
    //! measuring, [`rng`] the counter-based random numbers of host and device.
    //!
    //! Names and signatures here change more often than those at the crate's root.

    #[cfg(feature = "files")]
    #[doc(inline)]
    pub use crate::bench;
    #[cfg(not(target_arch = "wasm32"))]
    #[doc(inline)]
    pub use crate::blocking;
    #[doc(inline)]
    pub use crate::{caps, gpu, graph, kernel, ops, rng, runtime, tuning};
}
