//! [`Classifier`]: tells what images show.

use super::generator::upload;
use super::{Device, Network};
use crate::diffusion::SpacedSchedule;
use crate::graph::{DType, Graph, Lower, Plan, PlanOptions, TensorId};
use crate::model::build_encoder;
use crate::runtime::{CompileOptions, FlatBuffers, Program};
use crate::{Error, Result};

/// Images computed at once, at most.
const BATCH: usize = 16;

/// A classifier on a device. Those that guide sampling know noisy images too.
///
/// What a batch needs is compiled when images are classified, and kept for the next ones.
pub struct Classifier {
    device: Device,
    network: Network,
    compiled: Option<Compiled>,
}

/// The forward walk of a batch, with the weights that it is bound to.
struct Compiled {
    batch: usize,
    program: Program,
    /// `[batch, size, size, channels]`.
    x: TensorId,
    /// Timesteps as the network takes them: `[batch]`.
    t: TensorId,
    /// `[batch, classes]`.
    logits: TensorId,
    _weights: FlatBuffers,
}

impl Classifier {
    /// Opens a classifier's file on a device.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it is no file of a classifier.
    #[cfg(feature = "files")]
    pub fn open(device: &Device, path: impl AsRef<std::path::Path>) -> Result<Classifier> {
        Self::new(device, Network::read(path)?)
    }

    /// A classifier that was read already.
    ///
    /// # Errors
    /// [`Error::File`] if the network is no classifier.
    pub fn new(device: &Device, network: Network) -> Result<Classifier> {
        network.encoder()?;
        Ok(Classifier { device: device.clone(), network, compiled: None })
    }

    /// The network: its classes, the size of its images.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The probabilities of the classes, in their order, for each of the clean `images`
    /// `[n, size, size, channels]` in -1..=1. Those of an image add up to 1.
    ///
    /// # Errors
    /// [`Error::Config`] if these are no images of the network, [`Error::Memory`] if the
    /// device has no room, [`Error::Device`] on a fault.
    pub async fn probabilities(&mut self, images: &[f32]) -> Result<Vec<Vec<f32>>> {
        let count = self.count(images)?;
        self.classify(images, &vec![0.0; count]).await
    }

    /// As [`Classifier::probabilities`], of noisy images: image i is x_t of timestep
    /// `timesteps[i]` of the process that the classifier was trained for.
    ///
    /// # Errors
    /// As [`Classifier::probabilities`]; [`Error::Config`] if a timestep is none of the
    /// process.
    pub async fn probabilities_at(
        &mut self,
        images: &[f32],
        timesteps: &[usize],
    ) -> Result<Vec<Vec<f32>>> {
        let (count, diffusion) = (self.count(images)?, &self.network.info().diffusion);
        if timesteps.len() != count {
            let given = timesteps.len();
            return Err(Error::Config(format!("{given} timesteps of {count} images")));
        }
        let steps = diffusion.diffusion_steps;
        if let Some(t) = timesteps.iter().find(|t| **t >= steps) {
            return Err(Error::Config(format!("timestep {t} of a process of {steps}")));
        }
        let schedule = SpacedSchedule::new(diffusion, "")?;
        let t: Vec<f32> =
            timesteps.iter().map(|t| schedule.model_timestep(*t, diffusion)).collect();
        self.classify(images, &t).await
    }

    /// Values of one image.
    fn image_len(&self) -> usize {
        self.network.image_size().pow(2) * self.network.channels()
    }

    /// Number of images.
    fn count(&self, images: &[f32]) -> Result<usize> {
        let len = self.image_len();
        if images.is_empty() || !images.len().is_multiple_of(len) {
            return Err(Error::Config(format!(
                "{0} values are no images of {1}x{1}x{2}",
                images.len(),
                self.network.image_size(),
                self.network.channels()
            )));
        }
        Ok(images.len() / len)
    }

    async fn classify(&mut self, images: &[f32], t: &[f32]) -> Result<Vec<Vec<f32>>> {
        let len = self.image_len();
        let compiled = match self.compiled.take() {
            Some(compiled) if compiled.batch >= t.len().min(BATCH) => compiled,
            _ => self.compile(t.len().min(BATCH)).await?,
        };
        let (gpu, batch) = (self.device.gpu(), compiled.batch);
        let mut probabilities = Vec::new();
        for (images, t) in images.chunks(batch * len).zip(t.chunks(batch)) {
            let (mut x, mut timesteps) = (images.to_vec(), t.to_vec());
            // What fills the batch up is looked at by nobody.
            x.resize(batch * len, 0.0);
            timesteps.resize(batch, 0.0);
            compiled.program.write(gpu, compiled.x, &x)?;
            compiled.program.write(gpu, compiled.t, &timesteps)?;
            compiled.program.run(gpu)?;
            let logits = compiled.program.read_async(gpu, &[compiled.logits]).await?.remove(0);
            probabilities.extend(logits.chunks(logits.len() / batch).take(t.len()).map(softmax));
        }
        self.compiled = Some(compiled);
        Ok(probabilities)
    }

    /// Uploads the weights and compiles for `batch` images.
    async fn compile(&self, batch: usize) -> Result<Compiled> {
        let (gpu, ctx) = (self.device.gpu(), self.device.context());
        let model = self.network.encoder()?;
        self.network.info().model.check_batch(batch, gpu.caps.max_binding)?;
        let mut graph = Graph::new();
        let image = [batch, model.image_size, model.image_size, model.in_channels];
        let x = graph.input("x", &image, DType::F32);
        let t = graph.input("t", &[batch], DType::F32);
        let logits = build_encoder(model, &mut graph, x, t, None)?;
        let mut lower = Lower::new(&graph, &gpu.caps);
        lower.keep_prepared();
        lower.forward(&graph)?;
        let plan = Plan::new(&graph, lower, &[logits], PlanOptions::default())?;
        let weights = upload(&self.device, &self.network, &plan, &graph.params).await?;
        let options = CompileOptions::default();
        let program = Program::compile_async(ctx, plan, &weights, options).await?;
        Ok(Compiled { batch, program, x, t, logits, _weights: weights })
    }
}

/// Probabilities from logits.
fn softmax(logits: &[f32]) -> Vec<f32> {
    let most = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits.iter().map(|l| f64::from(l - most).exp()).collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| (p / sum) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::softmax;

    #[test]
    fn probabilities_add_up_to_one_and_large_logits_do_not_overflow() {
        let p = softmax(&[1000.0, 1000.0 + 3f32.ln(), -1e30]);
        assert!((p[0] - 0.25).abs() < 1e-4 && (p[1] - 0.75).abs() < 1e-4, "{p:?}");
        assert_eq!(p[2], 0.0);
    }
}
