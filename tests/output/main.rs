//! What the program writes: atomic files, images, grids, plots, metrics and
//! NumPy archives, read back with other libraries where there are any.

mod atomic;
mod grid;
mod images;
mod metrics;
mod npz;
mod plot;
mod support;
