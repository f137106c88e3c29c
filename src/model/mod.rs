//! Networks: the ADM U-Net and the noisy-image classifier with their
//! configurations, presets of published networks, and initial values of their
//! parameters.

mod any;
mod blocks;
mod config;
mod encoder;
mod infer;
mod initialise;
mod presets;
mod unet;

pub use any::model_params;
pub use config::{EncoderConfig, ModelConfig, Pool, UNetConfig};
pub use encoder::build_encoder;
#[cfg(feature = "files")]
pub(crate) use infer::multiplier;
pub use infer::{Hints, Shapes, infer, match_preset, model_preset};
pub use initialise::initialise;
pub use presets::{default_encoder, default_model, encoder_preset, preset, preset_names};
pub use unet::{UNetInputs, build};
