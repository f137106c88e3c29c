//! Networks: the ADM U-Net and its configuration, presets of published
//! networks, and parameters as named tensors.

mod blocks;
mod config;
mod presets;
mod unet;
mod weights;

pub use config::{EncoderConfig, ModelConfig, Pool, UNetConfig};
pub use presets::{default_model, preset, preset_names};
pub use unet::{UNetInputs, build};
pub use weights::{initialise, parameters, parameters_to_tensors};
