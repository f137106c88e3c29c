//! The data layer: every source, damaged files, conversions, the order and the
//! loader.

mod atlas;
mod floats;
mod folder;
mod idx;
mod loader;
mod order;
mod support;
