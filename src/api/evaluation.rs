//! How good a network is on images that it was not trained on.

use super::{Device, Network};
use crate::graph::FlatKind;
use crate::recipe::TrainConfig;
use crate::runtime::FlatBuffers;
use crate::train::{Evaluation, Evaluator, evaluation_params};
use crate::{Error, Result};

/// Images for [`Network::evaluate`].
#[derive(Debug, Clone)]
pub struct EvaluationRequest {
    /// `[count, size, size, channels]` in -1..=1.
    pub images: Vec<f32>,
    /// Class number of each, for a network that knows classes; empty otherwise.
    pub labels: Vec<u32>,
    /// Noises the images to random timesteps. A diffusion network needs that; a
    /// classifier may also see them clean.
    pub noised: bool,
    /// Images computed at once, at most.
    pub batch: usize,
    /// Seed of timesteps and noise: image i sees the same ones each time.
    pub seed: u64,
}

impl Default for EvaluationRequest {
    fn default() -> Self {
        EvaluationRequest {
            images: Vec::new(),
            labels: Vec::new(),
            noised: true,
            batch: 16,
            seed: 0,
        }
    }
}

impl Network {
    /// The training losses of the network on images, without dropout, and a classifier's
    /// accuracy. `watch` is called with the number of images done; it may stop the work by
    /// an error.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible request, [`Error::Memory`] if the device has no
    /// room for the batch, [`Error::Device`] on a fault, and what `watch` returns.
    pub async fn evaluate(
        &self,
        device: &Device,
        request: &EvaluationRequest,
        watch: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Evaluation> {
        let count = request.count(self)?;
        let (gpu, ctx, info) = (device.gpu(), device.context(), self.info());
        let batch = request.batch.min(count);
        let config = TrainConfig {
            micro_batch: batch,
            batch_size: batch,
            seed: request.seed,
            noised: request.noised,
            ..info.training.clone()
        };
        info.model.check_batch(batch, gpu.caps.max_binding)?;
        let (model, diffusion) = (&info.model, &info.diffusion);
        let (params, layout) = evaluation_params(&gpu.caps, model, diffusion, &config)?;
        let values = self.values(&params)?;
        let flat = FlatBuffers::new_async(gpu, &layout, &[FlatKind::Weights]).await?;
        flat.write(gpu, FlatKind::Weights, &params, &values)?;
        let weights = FlatKind::Weights;
        let evaluator =
            Evaluator::new_async(ctx, model, diffusion, &config, &flat, weights).await?;
        let len = request.images.len() / count;
        let fetch = |i: usize, out: &mut [f32]| {
            out.copy_from_slice(&request.images[i * len..(i + 1) * len]);
            Ok(request.labels.get(i).copied().unwrap_or(0))
        };
        evaluator.run_async(ctx, count, &fetch, watch).await
    }
}

impl EvaluationRequest {
    /// Number of images, if they and their labels fit `network`.
    fn count(&self, network: &Network) -> Result<usize> {
        let (size, channels) = (network.image_size(), network.channels());
        let len = size * size * channels;
        if self.batch == 0 || self.images.is_empty() || !self.images.len().is_multiple_of(len) {
            return Err(Error::Config(format!(
                "{} values in batches of {} are no images of {size}x{size}x{channels}",
                self.images.len(),
                self.batch
            )));
        }
        let count = self.images.len() / len;
        let needed = if network.classes().is_some() { count } else { 0 };
        match self.labels.len() {
            given if given != needed => Err(Error::Config(format!(
                "{count} images with {given} labels, {needed} are needed"
            ))),
            _ => Ok(count),
        }
    }
}
