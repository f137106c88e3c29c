//! Networks: the ADM U-Net and its configuration, presets of published
//! networks, and parameters as named tensors.

mod config;
mod infer;
mod presets;
mod unet;
mod weights;

pub use config::{EncoderConfig, ModelConfig, Pool, UNetConfig};
pub(crate) use infer::multiplier;
pub use infer::{Hints, Shapes, infer, match_preset, model_preset};
pub use presets::{default_model, preset, preset_names};
pub use unet::{UNetInputs, build};
pub use weights::{check_parameters, initialise, parameters, parameters_to_tensors};
