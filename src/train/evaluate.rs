//! Evaluation: the training losses of a fixed set of images under fixed noise
//! and timesteps, so that two evaluations can be compared.

use super::step::{Feed, MicroBatch, QUARTILES, TermSum, lower_sums, take_sums};
use super::wiring::{Noise, Wiring, wire};
use crate::caps::Caps;
use crate::data::{Augment, Dataset};
use crate::diffusion::DiffusionConfig;
use crate::graph::{FlatKind, Graph, Lower, ParamInfo, ParamLayout, Plan, PlanOptions, TensorId};
use crate::model::ModelConfig;
use crate::recipe::TrainConfig;
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program};
use crate::{Result, rng};

/// The word in the step's place of the random numbers: no training step gets
/// that far.
const STEP: u64 = u32::MAX as u64;

/// Means over the images of an evaluation.
#[derive(Debug, Clone, PartialEq)]
pub struct Evaluation {
    /// Images evaluated.
    pub images: usize,
    /// Images in each quarter of the timesteps.
    pub quartile_images: [usize; QUARTILES],
    /// Mean of each term (its sums divided by the images).
    pub terms: Vec<TermSum>,
}

impl Evaluation {
    /// Mean of the terms that are trained on.
    pub fn loss(&self) -> f64 {
        self.terms.iter().filter(|t| t.trained).map(|t| t.total).sum()
    }

    /// Mean of the term called `name`.
    pub fn term(&self, name: &str) -> Option<&TermSum> {
        self.terms.iter().find(|t| t.name == name)
    }
}

/// A network compiled for evaluation.
pub struct Evaluator {
    wiring: Wiring,
    sums: Vec<TensorId>,
    program: Program,
    feed: Feed,
    batch: usize,
    image_len: usize,
    seed: u64,
}

/// Fetches the images of an evaluation of `images` images from a data set that
/// may be sorted by class: spread over all of it.
pub fn spread(dataset: &Dataset, images: usize) -> impl Fn(usize, &mut [f32]) -> Result<u32> {
    move |i, out| {
        let at = (i as u64 * dataset.len() as u64 / images.max(1) as u64) as usize;
        dataset.write_floats(at, Augment::default(), out)?;
        Ok(dataset.label(at))
    }
}

impl Evaluator {
    /// Compiles for the weights in `flat`'s `weights` buffers.
    ///
    /// # Errors
    /// [`crate::Error::Memory`] if the device has no room.
    pub async fn new_async(
        ctx: Context<'_>,
        model: &ModelConfig,
        diffusion: &DiffusionConfig,
        config: &TrainConfig,
        flat: &FlatBuffers,
        weights: FlatKind,
    ) -> Result<Evaluator> {
        let (graph, wiring) = evaluation_graph(model, diffusion, config)?;
        let mut lower = Lower::new(&graph, &ctx.gpu.caps);
        lower.forward(&graph)?;
        let sums = lower_sums(&mut lower, &wiring)?;
        let plan = Plan::new(&graph, lower, &sums, PlanOptions::default())?;
        let options = CompileOptions { weights, ..Default::default() };
        let program = Program::compile_async(ctx, plan, flat, options).await?;
        let feed = Feed::new(model, diffusion, config)?;
        let (batch, seed) = (config.micro_batch, config.seed);
        let image_len = model.image_size().pow(2) * model.in_channels();
        Ok(Evaluator { wiring, sums, program, feed, batch, image_len, seed })
    }

    /// Evaluates `images` images; `fetch` writes image i, [h, w, c] in [-1, 1],
    /// and returns its label. Image i sees the same timestep and noise each time.
    /// `progress` is called with the images done and may stop by an error.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault, and what `fetch` raises.
    pub async fn run_async(
        &self,
        ctx: Context<'_>,
        images: usize,
        fetch: &dyn Fn(usize, &mut [f32]) -> Result<u32>,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Evaluation> {
        let mut quartile_images = [0; QUARTILES];
        let mut terms: Vec<TermSum> = Vec::new();
        for first in (0..images).step_by(self.batch) {
            let count = self.batch.min(images - first);
            let mut pixels = vec![0.0; self.batch * self.image_len];
            let mut labels = vec![0; self.batch];
            for (k, out) in pixels.chunks_mut(self.image_len).enumerate().take(count) {
                labels[k] = fetch(first + k, out)?;
            }
            let timesteps: Vec<usize> =
                (first..first + self.batch).map(|i| self.timestep(i)).collect();
            timesteps[..count].iter().for_each(|t| quartile_images[self.feed.quartile(*t)] += 1);
            // What fills the batch up counts nothing.
            let importance: Vec<f64> =
                (0..self.batch).map(|k| f64::from(u8::from(k < count))).collect();
            let micro = MicroBatch {
                images: &pixels,
                labels: &labels,
                timesteps: &timesteps,
                importance: &importance,
                first: first as u64,
                noise: None,
            };
            self.feed.write(ctx, &self.program, &self.wiring.inputs, &micro, STEP, 1)?;
            self.program.run(ctx.gpu)?;
            let part = take_sums(ctx, &self.program, &self.wiring, &self.sums, 1).await?;
            if terms.is_empty() {
                terms = part;
            } else {
                terms.iter_mut().zip(&part).for_each(|(sum, new)| sum.add(new));
            }
            progress(first + count)?;
        }
        for term in &mut terms {
            term.total /= images.max(1) as f64;
            for (sum, n) in term.quartiles.iter_mut().zip(quartile_images) {
                *sum /= n.max(1) as f64;
            }
        }
        Ok(Evaluation { images, quartile_images, terms })
    }

    fn timestep(&self, image: usize) -> usize {
        let n = self.feed.steps() as u32;
        let stream = rng::STREAM_TIMESTEP;
        rng::uniform_below(self.seed, STEP as u32, stream, image as u32, 0, n) as usize
    }
}

impl TermSum {
    fn add(&mut self, other: &TermSum) {
        self.total += other.total;
        self.quartiles.iter_mut().zip(other.quartiles).for_each(|(a, b)| *a += b);
    }
}

/// The parameters of an evaluation: what a file must hold, and where they lie.
///
/// # Errors
/// [`crate::Error::Config`] for impossible options.
pub fn evaluation_params(
    caps: &Caps,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &TrainConfig,
) -> Result<(Vec<ParamInfo>, ParamLayout)> {
    let (graph, _) = evaluation_graph(model, diffusion, config)?;
    let layout = ParamLayout::new(&graph.params, caps.max_binding.min(caps.max_buffer));
    Ok((graph.params, layout))
}

fn evaluation_graph(
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &TrainConfig,
) -> Result<(Graph, Wiring)> {
    let mut graph = Graph::new();
    let n = config.micro_batch;
    // In 32 bits also where training is not: the averages have no packed copy.
    let config = TrainConfig { half: false, ..config.clone() };
    let wiring = wire(model, diffusion, &config, n, Noise::Drawn, false, &mut graph)?;
    Ok((graph, wiring))
}
