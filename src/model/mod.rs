//! Networks: the ADM U-Net and the noisy-image classifier with their
//! configurations, presets of published networks, and parameters as named
//! tensors.

mod blocks;
mod config;
mod encoder;
mod presets;
mod unet;
mod weights;

pub use config::{EncoderConfig, ModelConfig, Pool, UNetConfig};
pub use encoder::build_encoder;
pub use presets::{default_encoder, default_model, encoder_preset, preset, preset_names};
pub use unet::{UNetInputs, build};
pub use weights::{initialise, parameters, parameters_to_tensors};
