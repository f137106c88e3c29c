//! The commands: what was typed becomes what the library is asked to do, and
//! its events become lines, bars and pictures.

pub mod bench;
pub mod convert;
pub mod demo;
pub mod devices;
pub mod evaluate;
pub mod info;
pub mod latents;
pub mod nll;
pub mod profile;
pub mod sample;
mod shared;
pub mod sweep;
pub mod train;
pub mod train_classifier;
pub mod tune;

pub use shared::DeviceArgs;
