//! Classifier guidance (Dhariwal and Nichol 2021, section 4): the gradient of
//! `scale * log p(y | x_t)` with respect to x_t, from the classifier's own
//! forward and backward plan.
//!
//! As in the reference the gradient is taken at x_t rather than at the mean of
//! the step, and the classifier sees the original timestep.

use super::DiffusionConfig;
use crate::caps::Caps;
use crate::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use crate::model::{EncoderConfig, build_encoder};
use crate::ops;
use crate::runtime::{CompileOptions, Context, FlatBuffers, PinnedTensor, Program};
use crate::{Error, Result};

/// The graph of a classifier with its cross-entropy.
pub struct GuideGraph {
    /// Classifier and loss.
    pub graph: Graph,
    /// x_t: [n, h, w, c].
    pub x: TensorId,
    /// Timestep fed to the classifier: `[n]`.
    pub t: TensorId,
    /// Wanted classes `[n]`.
    pub labels: TensorId,
    /// -log p(y | x_t): `[n]`.
    pub loss: TensorId,
    /// Minus the scale of each image: `[n]`.
    pub seed: TensorId,
}

impl GuideGraph {
    /// Describes it for `n` images.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options.
    pub fn new(model: &EncoderConfig, n: usize) -> Result<GuideGraph> {
        let mut g = Graph::new();
        let image = [n, model.image_size, model.image_size, model.in_channels];
        let x = g.input("x", &image, DType::F32);
        let t = g.input("t", &[n], DType::F32);
        let labels = g.input("labels", &[n], DType::U32);
        let seed = g.input("guidance scale", &[n], DType::F32);
        let logits = build_encoder(model, &mut g, x, t, None)?;
        let loss = ops::cross_entropy(&mut g, logits, labels)?.loss;
        Ok(GuideGraph { graph: g, x, t, labels, loss, seed })
    }

    /// Plans forward and backward to x alone; returns the gradient's tensor.
    ///
    /// # Errors
    /// [`Error::Memory`] if a tensor exceeds the device's limits.
    pub fn plan(&self, caps: &Caps) -> Result<(Plan, TensorId)> {
        let mut lower = Lower::new(&self.graph, caps);
        lower.keep_prepared();
        lower.forward(&self.graph)?;
        lower.freeze_params();
        lower.backward(&self.graph, &[(self.loss, self.seed)], &[self.x])?;
        let gradient = lower.grad(self.x).ok_or_else(|| {
            Error::Config("the classifier's output does not depend on the image".into())
        })?;
        let keep = [gradient, self.loss];
        Ok((Plan::new(&self.graph, lower, &keep, PlanOptions::default())?, gradient))
    }
}

/// A classifier compiled to guide batches of a fixed size.
pub struct Guide {
    wiring: GuideGraph,
    program: Program,
    gradient: TensorId,
    model: EncoderConfig,
    diffusion: DiffusionConfig,
}

impl Guide {
    /// Compiles a graph and its plan with the weights in `flat`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub async fn compile_async(
        ctx: Context<'_>,
        wiring: GuideGraph,
        (plan, gradient): (Plan, TensorId),
        model: &EncoderConfig,
        diffusion: &DiffusionConfig,
        flat: &FlatBuffers,
    ) -> Result<Guide> {
        let options = CompileOptions { weights: FlatKind::Weights, ..Default::default() };
        let program = Program::compile_async(ctx, plan, flat, options).await?;
        let (model, diffusion) = (model.clone(), diffusion.clone());
        Ok(Guide { wiring, program, gradient, model, diffusion })
    }

    /// The classifier's options.
    pub fn model(&self) -> &EncoderConfig {
        &self.model
    }

    /// Checks that the classifier knows the noise and the images of a network.
    ///
    /// # Errors
    /// [`Error::Config`] naming what differs.
    pub fn check(
        &self,
        image_size: usize,
        channels: usize,
        diffusion: &DiffusionConfig,
    ) -> Result<()> {
        let fail = |what: &str, ours: String, theirs: String| {
            Err(Error::Config(format!(
                "the classifier does not fit the network: its {what} is {ours}, the network's {theirs}"
            )))
        };
        let (m, d) = (&self.model, &self.diffusion);
        if m.image_size != image_size {
            return fail("image size", m.image_size.to_string(), image_size.to_string());
        }
        if m.in_channels != channels {
            return fail("channel count", m.in_channels.to_string(), channels.to_string());
        }
        if d.diffusion_steps != diffusion.diffusion_steps {
            let [ours, theirs] = [d, diffusion].map(|d| d.diffusion_steps.to_string());
            return fail("number of timesteps", ours, theirs);
        }
        if d.noise_schedule != diffusion.noise_schedule {
            let [ours, theirs] = [d, diffusion].map(|d| format!("{:?}", d.noise_schedule));
            return fail("noise schedule", ours, theirs);
        }
        if d.rescale_timesteps != diffusion.rescale_timesteps {
            let [ours, theirs] = [d, diffusion].map(|d| d.rescale_timesteps.to_string());
            return fail("rescaling of timesteps", ours, theirs);
        }
        Ok(())
    }

    /// The image and the gradient, to be read and written by a sampling loop.
    pub(super) fn shared(&self) -> Result<[PinnedTensor; 2]> {
        Ok([self.program.pinned(self.wiring.x)?, self.program.pinned(self.gradient)?])
    }

    /// Sets the wanted classes and the scale of a batch.
    pub(super) fn prepare(&self, ctx: Context, labels: &[u32], scale: f64) -> Result<()> {
        let n = labels.len();
        self.program.write(ctx.gpu, self.wiring.labels, labels)?;
        self.program.write(ctx.gpu, self.wiring.seed, &vec![-scale as f32; n])
    }

    /// Submits the gradient at the image in the shared buffer.
    pub(super) fn run(&self, ctx: Context, t: &[f32]) -> Result<()> {
        self.program.write(ctx.gpu, self.wiring.t, t)?;
        self.program.run(ctx.gpu).map(|_| ())
    }
}
