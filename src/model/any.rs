//! What all networks have in common.

use super::{EncoderConfig, ModelConfig, UNetConfig, UNetInputs, build, build_encoder};
use crate::caps::human_bytes;
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

    /// Refuses a batch that no plan can hold, before anything counts its bytes;
    /// `max_binding` is the device's largest binding in bytes.
    ///
    /// # Errors
    /// [`Error::Config`] for a batch of none, or one beyond any device, [`Error::Memory`]
    /// if its images are larger than a binding.
    pub fn check_batch(&self, batch: usize, max_binding: u64) -> Result<()> {
        if batch == 0 {
            return Err(Error::Config("a batch must hold at least 1 image".into()));
        }
        self.validate()?;
        let (side, channels) = (self.image_size(), self.in_channels());
        let needed = (batch as u64).saturating_mul((side * side * channels * 4) as u64);
        if needed > max_binding {
            return Err(Error::Memory(format!(
                "a batch of {batch} images of {side}x{side}x{channels} needs a binding of {}, \
                 the device allows {}; use a smaller batch",
                human_bytes(needed),
                human_bytes(max_binding)
            )));
        }
        // The backward walk is twice the forward one; 64 bits count to 1.8e19.
        if 3.0 * self.work() * batch as f64 > 1e19 {
            return Err(Error::Config(format!(
                "a batch of {batch} images through this network is beyond any device; \
                 use a smaller batch"
            )));
        }
        Ok(())
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
    let image =
        |g: &mut Graph, side: usize| g.input("image", &[1, side, side, channels], DType::F32);
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
