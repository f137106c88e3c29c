//! What all networks have in common.

use super::{EncoderConfig, ModelConfig, UNetConfig};
use crate::{Error, Result};

impl ModelConfig {
    /// Side of the square image in pixels.
    pub fn image_size(&self) -> usize {
        match self {
            ModelConfig::UNet(m) => m.image_size,
            ModelConfig::Encoder(m) => m.image_size,
        }
    }

    /// Channels of the image.
    pub fn in_channels(&self) -> usize {
        match self {
            ModelConfig::UNet(m) => m.in_channels,
            ModelConfig::Encoder(m) => m.in_channels,
        }
    }

    /// Classes that a label can name, if the network knows any.
    pub fn classes(&self) -> Option<usize> {
        match self {
            ModelConfig::UNet(m) => m.num_classes,
            ModelConfig::Encoder(m) => Some(m.out_channels),
        }
    }

    /// Resolutions.
    pub fn levels(&self) -> usize {
        match self {
            ModelConfig::UNet(m) => m.channel_mult.len(),
            ModelConfig::Encoder(m) => m.channel_mult.len(),
        }
    }

    /// Checks that the options describe a network.
    ///
    /// # Errors
    /// [`Error::Config`] naming the option and what it must be.
    pub fn validate(&self) -> Result<()> {
        match self {
            ModelConfig::UNet(m) => m.validate(),
            ModelConfig::Encoder(m) => m.validate(),
        }
    }

    /// An upper estimate of the arithmetic of one image forward, in
    /// floating-point operations.
    pub fn work(&self) -> f64 {
        match self {
            ModelConfig::UNet(m) => m.work(),
            ModelConfig::Encoder(m) => m.work(),
        }
    }

    /// The diffusion network.
    ///
    /// # Errors
    /// [`Error::Config`] for a classifier.
    pub fn unet(&self) -> Result<&UNetConfig> {
        match self {
            ModelConfig::UNet(m) => Ok(m),
            ModelConfig::Encoder(_) => {
                Err(Error::Config("this is a classifier, a diffusion network is needed".into()))
            }
        }
    }

    /// The classifier.
    ///
    /// # Errors
    /// [`Error::Config`] for a diffusion network.
    pub fn encoder(&self) -> Result<&EncoderConfig> {
        match self {
            ModelConfig::Encoder(m) => Ok(m),
            ModelConfig::UNet(_) => {
                Err(Error::Config("this is a diffusion network, a classifier is needed".into()))
            }
        }
    }
}
