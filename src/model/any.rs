//! What all networks have in common.

use super::{EncoderConfig, ModelConfig, UNetConfig, UNetInputs, build, build_encoder};
use crate::graph::{DType, Graph, ParamInfo};
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

/// The parameters of a network, in the order of its graph.
///
/// # Errors
/// [`Error::Config`] for impossible options.
pub fn model_params(model: &ModelConfig) -> Result<Vec<ParamInfo>> {
    let mut g = Graph::new();
    let (side, channels) = (model.image_size(), model.in_channels());
    let image = |g: &mut Graph, side: usize| {
        g.input("image", &[1, side, side, channels], DType::F32)
    };
    let x = image(&mut g, side);
    let t = g.input("t", &[1], DType::F32);
    match model {
        ModelConfig::UNet(m) => {
            let y = m.num_classes.map(|_| g.input("y", &[1], DType::U32));
            let low_res = m.small_size.map(|side| image(&mut g, side));
            build(m, &mut g, UNetInputs { x, t, y, low_res, rng: None })?;
        }
        ModelConfig::Encoder(m) => {
            build_encoder(m, &mut g, x, t, None)?;
        }
    }
    Ok(g.params)
}
