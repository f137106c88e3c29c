//! The runtime: turns a plan into pipelines, buffers and bind groups once and replays it
//! for every step.
//!
//! What a browser makes its caller await is an async function here, as in [`crate::gpu`].

mod compile;
mod context;
mod guard_words;
mod guards;
mod memory;
#[cfg(feature = "files")]
mod pipeline_file;
mod pipelines;
mod program;
mod state;
mod step;
mod timing;
#[cfg(not(target_arch = "wasm32"))]
mod warm_up;
#[cfg(not(target_arch = "wasm32"))]
mod workers;

pub use context::Context;
pub use memory::PinnedTensor;
pub use pipelines::{Compiling, Pipelines};
pub use program::{CompileOptions, Program};
pub use state::FlatBuffers;
pub use timing::{Clock, Span};
