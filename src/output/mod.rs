//! Everything the program writes for people and other programs: PNG images,
//! labelled grids, loss plots, metrics.csv and NumPy archives.
//!
//! Every file goes through [`crate::files::atomic`], so a reader never meets a half-written
//! one. Nothing here touches the GPU.

mod axis;
pub mod bars;
mod canvas;
pub mod grid;
pub mod image;
pub mod metrics;
pub mod npz;
pub mod plot;
mod text;

pub use canvas::Canvas;
pub use grid::Grid;
