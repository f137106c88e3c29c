//! Scoring images: bits per dimension under a network.

use super::generator::upload;
use super::{Generator, Network};
use crate::diffusion::{
    ImageLikelihood, Likelihood, LikelihoodGraph, LikelihoodJob, SpacedSchedule,
};
use crate::{Error, Result};

/// Images to be scored by [`Generator::likelihood`].
#[derive(Debug, Clone)]
pub struct LikelihoodRequest {
    /// `[count, size, size, channels]` in -1..=1, of bytes: the bound is that of 256
    /// levels.
    pub images: Vec<f32>,
    /// Class number of each, for a network that knows classes; empty otherwise.
    pub labels: Vec<u32>,
    /// Timesteps to sum over, as [`DrawRequest::steps`](super::DrawRequest::steps); the
    /// default "" takes all, which the bound needs to be tight.
    pub steps: String,
    /// Clamps the predicted clean image to the range of pixels.
    pub clip: bool,
    /// Images computed at once, at most.
    pub batch: usize,
    /// Seed of the noise.
    pub seed: u64,
}

impl Default for LikelihoodRequest {
    fn default() -> Self {
        LikelihoodRequest {
            images: Vec::new(),
            labels: Vec::new(),
            steps: String::new(),
            clip: true,
            batch: 16,
            seed: 0,
        }
    }
}

/// How far scoring is.
#[derive(Debug, Clone)]
pub struct LikelihoodStep<'a> {
    /// Timesteps done of all batches: 0 when everything is compiled.
    pub done: usize,
    /// Timesteps of all batches.
    pub in_all: usize,
    /// Images that are scored.
    pub scored: &'a [ImageLikelihood],
}

/// Scores of images.
#[derive(Debug, Clone, PartialEq)]
pub struct Likelihoods {
    /// Of each image.
    pub images: Vec<ImageLikelihood>,
    /// The timesteps that the terms of an image belong to, the last first.
    pub timesteps: Vec<usize>,
}

impl LikelihoodRequest {
    /// Refuses what `network` cannot score, without a device. Scoring does this first.
    ///
    /// # Errors
    /// [`Error::Config`], or [`Error::File`] if it is no diffusion network.
    pub fn check(&self, network: &Network) -> Result<()> {
        let count = self.count(network)?;
        if count == 0 || self.batch == 0 {
            return Err(Error::Config("count and batch must be at least 1".into()));
        }
        self.graph(network, 1)?;
        SpacedSchedule::new(&network.info().diffusion, &self.steps)?;
        let labels = if network.classes().is_some() { count } else { 0 };
        if self.labels.len() != labels {
            return Err(Error::Config(format!(
                "{count} images with {} labels, {labels} are needed",
                self.labels.len()
            )));
        }
        Ok(())
    }

    /// Number of images.
    fn count(&self, network: &Network) -> Result<usize> {
        let (size, channels) = (network.image_size(), network.channels());
        let len = size * size * channels;
        if !self.images.len().is_multiple_of(len) {
            return Err(Error::Config(format!(
                "{} values are no images of {size}x{size}x{channels}",
                self.images.len()
            )));
        }
        Ok(self.images.len() / len)
    }

    fn graph(&self, network: &Network, batch: usize) -> Result<LikelihoodGraph> {
        let diffusion = &network.info().diffusion;
        LikelihoodGraph::new(network.unet()?, diffusion, batch, self.clip, false)
    }
}

impl Generator {
    /// The variational bound of images under the network, in bits per dimension. `watch`
    /// is called when everything is compiled and after every timestep; it may stop the
    /// work by an error.
    ///
    /// # Errors
    /// As [`LikelihoodRequest::check`]; [`Error::Memory`] if the device has no room for the
    /// batch, [`Error::Device`] on a fault, and what `watch` returns.
    pub async fn likelihood(
        &self,
        request: &LikelihoodRequest,
        watch: &mut dyn FnMut(&LikelihoodStep) -> Result<()>,
    ) -> Result<Likelihoods> {
        let (network, device) = (self.network(), self.device());
        request.check(network)?;
        let (gpu, ctx) = (device.gpu(), device.context());
        let (count, info) = (request.count(network)?, network.info());
        let batch = request.batch.min(count);
        info.model.check_batch(batch, gpu.caps.max_binding)?;
        let wiring = request.graph(network, batch)?;
        let plan = wiring.plan(&gpu.caps)?;
        let flat = upload(device, network, &plan, &wiring.graph.params).await?;
        let scorer =
            Likelihood::compile_async(ctx, wiring, plan, &info.diffusion, &request.steps, &flat)
                .await?;
        let len = request.images.len() / count;
        let in_all = scorer.steps() * count.div_ceil(batch);
        let mut done = 0;
        let mut images: Vec<ImageLikelihood> = Vec::new();
        watch(&LikelihoodStep { done, in_all, scored: &images })?;
        for first in (0..count).step_by(batch) {
            let end = count.min(first + batch);
            let job = LikelihoodJob {
                first: first as u64,
                images: &request.images[first * len..end * len],
                labels: request.labels.get(first..end).unwrap_or(&[]),
                seed: request.seed,
            };
            let scores = scorer
                .evaluate_async(ctx, &job, None, &mut || {
                    done += 1;
                    watch(&LikelihoodStep { done, in_all, scored: &images })
                })
                .await?;
            images.extend(scores);
        }
        Ok(Likelihoods { images, timesteps: scorer.timesteps() })
    }
}
