//! Networks: the ADM U-Net and the noisy-image classifier with their
//! configurations, presets of published networks, and parameters as named
//! tensors.

mod any;
mod blocks;
mod config;
mod encoder;
mod infer;
mod presets;
mod unet;
mod weights;

pub use any::model_params;
pub use config::{EncoderConfig, ModelConfig, Pool, UNetConfig};
pub use encoder::build_encoder;
pub use presets::{default_encoder, default_model, encoder_preset, preset, preset_names};
pub(crate) use infer::multiplier;
pub use infer::{Hints, Shapes, infer, match_preset, model_preset};
pub use unet::{UNetInputs, build};
pub use weights::{check_parameters, initialise, parameters, parameters_to_tensors};
