//! Drawing images: the compiled U-Net with the fused denoising update, run
//! once per kept timestep without any host round trip in between.

use super::{DiffusionConfig, Sampler, SpacedSchedule, Tables};
use crate::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use crate::model::{UNetConfig, UNetInputs, build};
use crate::ops;
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program, Ticket};
use crate::{Error, Result, rng};

/// Submitted steps that may wait in the queue.
const IN_FLIGHT: usize = 2;

/// How to draw.
#[derive(Debug, Clone)]
pub struct SampleOptions {
    /// Kept timesteps, in the reference's notation ("250", "ddim25", "" = all).
    pub respacing: String,
    /// The update rule.
    pub sampler: Sampler,
    /// Clamp the predicted image to [-1, 1] in every step.
    pub clip: bool,
    /// Seed; an image depends on it and on the image's number alone.
    pub seed: u64,
}

/// The graph of one denoising step.
pub struct SamplingGraph {
    /// The network and the update.
    pub graph: Graph,
    /// x_t, overwritten by x_{t-1}: [n, h, w, c].
    pub x: TensorId,
    /// Timestep fed to the network: `[n]`.
    pub t: TensorId,
    /// Class labels `[n]` of a conditional network.
    pub labels: Option<TensorId>,
    /// Number of its classes.
    pub classes: Option<usize>,
    /// Coefficients of the update.
    pub update: TensorId,
    /// Seed, step and number of the first image.
    pub rng: TensorId,
    /// Noise written by the host instead of drawn, if asked for.
    pub noise: Option<TensorId>,
    /// The predicted clean image, if it is kept.
    pub x0: Option<TensorId>,
}

impl SamplingGraph {
    /// Describes one step for `n` images; `given_noise` takes the noise from
    /// the host, `keep_x0` keeps the predicted clean image.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options.
    pub fn new(
        model: &UNetConfig,
        n: usize,
        given_noise: bool,
        keep_x0: bool,
    ) -> Result<SamplingGraph> {
        let mut g = Graph::new();
        let image = [n, model.image_size, model.image_size, model.in_channels];
        let x = g.input("x", &image, DType::F32);
        let t = g.input("t", &[n], DType::F32);
        let labels = model.num_classes.map(|_| g.input("labels", &[n], DType::U32));
        let update = g.input("update", &[ops::DENOISE_COEFS], DType::F32);
        let rng = g.input("random state", &[4], DType::U32);
        let noise = given_noise.then(|| g.input("noise", &image, DType::F32));
        let out = build(model, &mut g, UNetInputs { x, t, y: labels, low_res: None, rng: None })?;
        let step = ops::DenoiseInputs {
            x,
            out,
            coefs: update,
            rng,
            noise,
            guidance: None,
            unconditional: false,
        };
        let x0 = ops::denoise(&mut g, step, keep_x0)?;
        let classes = model.num_classes;
        Ok(SamplingGraph { graph: g, x, t, labels, classes, update, rng, noise, x0 })
    }

    /// Plans it.
    ///
    /// # Errors
    /// [`Error::Memory`] if a tensor exceeds the device's limits.
    pub fn plan(&self, caps: &crate::gpu::Caps) -> Result<Plan> {
        let mut lower = Lower::new(&self.graph, caps);
        lower.forward()?;
        let keep: Vec<TensorId> = std::iter::once(self.x).chain(self.x0).collect();
        Plan::new(&self.graph, lower, &keep, PlanOptions::default())
    }
}

/// A network compiled for sampling batches of a fixed size.
pub struct ImageSampler {
    wiring: SamplingGraph,
    program: Program,
    diffusion: DiffusionConfig,
    batch: usize,
}

impl ImageSampler {
    /// Compiles for batches of `batch` images with the weights in `flat`'s
    /// `weights` buffers.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub fn new(
        ctx: Context,
        model: &UNetConfig,
        diffusion: &DiffusionConfig,
        batch: usize,
        flat: &FlatBuffers,
        weights: FlatKind,
    ) -> Result<ImageSampler> {
        let wiring = SamplingGraph::new(model, batch, false, false)?;
        let plan = wiring.plan(&ctx.gpu.caps)?;
        Self::compile(ctx, wiring, plan, diffusion, flat, weights)
    }

    /// As [`new`](Self::new), from a graph and its plan.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub fn compile(
        ctx: Context,
        wiring: SamplingGraph,
        plan: Plan,
        diffusion: &DiffusionConfig,
        flat: &FlatBuffers,
        weights: FlatKind,
    ) -> Result<ImageSampler> {
        let options = CompileOptions { weights, ..Default::default() };
        let program = Program::compile(ctx, plan, flat, options)?;
        let batch = wiring.graph.shape(wiring.t)[0];
        Ok(ImageSampler { wiring, program, diffusion: diffusion.clone(), batch })
    }

    /// Images drawn at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Draws images number `first` .. `first + count`, `count` at most the
    /// batch; `labels` gives the class of each for a conditional network.
    /// `progress` is called after every step with (done, steps) and may stop
    /// the loop by an error. Returns [count, h, w, c] in [-1, 1].
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible respacing, [`Error::Shape`] for more
    /// images than the batch holds or labels that do not fit, [`Error::Device`]
    /// on a fault.
    pub fn sample(
        &self,
        ctx: Context,
        options: &SampleOptions,
        first: u64,
        labels: &[u32],
        count: usize,
        progress: &mut dyn FnMut(usize, usize) -> Result<()>,
    ) -> Result<Vec<f32>> {
        options.sampler.validate()?;
        let schedule = SpacedSchedule::new(&self.diffusion, &options.respacing)?;
        let tables = schedule.tables()?;
        self.check(labels, count)?;
        let gpu = ctx.gpu;
        let w = &self.wiring;
        let elements: usize = w.graph.shape(w.x).iter().skip(1).product();
        let mut x = vec![0.0; self.batch * elements];
        for (i, image) in x.chunks_mut(elements).enumerate() {
            let number = first.wrapping_add(i as u64) as u32;
            rng::fill_normal(image, options.seed, 0, rng::STREAM_XT, number);
        }
        self.program.write(gpu, w.x, &x)?;
        if let Some(id) = w.labels {
            let mut padded = labels.to_vec();
            padded.resize(self.batch, labels.last().copied().unwrap_or(0));
            self.program.write(gpu, id, &padded)?;
        }
        let mut queue = std::collections::VecDeque::new();
        for (done, i) in (0..schedule.num_steps()).rev().enumerate() {
            queue.push_back(self.step(ctx, options, &schedule, &tables, i, first)?);
            if queue.len() > IN_FLIGHT
                && let Some(ticket) = queue.pop_front()
            {
                gpu.wait_for(&ticket)?;
            }
            progress(done + 1, schedule.num_steps())?;
        }
        let mut images = self.program.read(gpu, &[w.x])?.remove(0);
        images.truncate(count * elements);
        Ok(images)
    }

    fn check(&self, labels: &[u32], count: usize) -> Result<()> {
        if count > self.batch || (self.wiring.classes.is_some() && labels.len() != count) {
            let detail = format!(
                "{count} images with {} labels for a batch of {}",
                labels.len(),
                self.batch
            );
            return Err(Error::shape("sample", detail));
        }
        check_labels("sample", labels, self.wiring.classes)
    }

    fn step(
        &self,
        ctx: Context,
        options: &SampleOptions,
        schedule: &SpacedSchedule,
        tables: &Tables,
        i: usize,
        first: u64,
    ) -> Result<Ticket> {
        let (gpu, w) = (ctx.gpu, &self.wiring);
        let t = schedule.model_timestep(i, &self.diffusion);
        let update = tables.update_for(i, options.sampler, &self.diffusion, options.clip);
        let [lo, hi] = rng::key(options.seed);
        self.program.write(gpu, w.t, &vec![t; self.batch])?;
        self.program.write(gpu, w.update, &ops::denoise_coefs(&update))?;
        self.program.write(gpu, w.rng, &[lo, hi, i as u32, first as u32])?;
        self.program.run(gpu)
    }
}

/// The kernels take a label past the end for the last class, so it must not
/// get that far.
pub(crate) fn check_labels(op: &'static str, labels: &[u32], classes: Option<usize>) -> Result<()> {
    let Some(classes) = classes else { return Ok(()) };
    match labels.iter().find(|label| **label as usize >= classes) {
        Some(label) => {
            Err(Error::shape(op, format!("label {label} for a network of {classes} classes")))
        }
        None => Ok(()),
    }
}
