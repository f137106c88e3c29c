//! Everything the program writes for people and other programs: PNG images,
//! labelled grids, loss plots, metrics.csv and NumPy archives.
//!
//! Every file goes through [`crate::files::atomic`], so a reader never meets a half-written
//! one. Nothing here touches the GPU.

#[cfg(feature = "plots")]
mod axis;
#[cfg(feature = "plots")]
pub mod bars;
#[cfg(feature = "plots")]
mod canvas;
#[cfg(feature = "plots")]
pub mod grid;
pub mod image;
#[cfg(feature = "files")]
pub mod metrics;
#[cfg(feature = "files")]
pub mod npz;
#[cfg(feature = "plots")]
pub mod plot;
#[cfg(feature = "plots")]
mod text;

#[cfg(feature = "plots")]
pub use {canvas::Canvas, grid::Grid};
