//! Drawing images: the compiled U-Net with the fused denoising update, run
//! once per kept timestep without any host round trip in between.

use super::guidance::Guide;
use super::{DiffusionConfig, Sampler, SpacedSchedule, Tables};
use crate::caps::Caps;
use crate::gpu::Ticket;
use crate::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use crate::model::{UNetConfig, UNetInputs, build};
use crate::ops::{self, DenoiseInputs};
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program};
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
    /// Scale of a classifier's gradient, where the loop has one.
    pub classifier_scale: f64,
    /// Show a network that knows "no class" none; a classifier may still guide.
    pub unconditional: bool,
    /// Weight w of classifier-free guidance where the loop was made for it:
    /// `uncond + w (cond - uncond)`, so 1 is the conditional prediction.
    pub guidance_weight: f64,
}

impl Default for SampleOptions {
    fn default() -> Self {
        SampleOptions {
            respacing: String::new(),
            sampler: Sampler::Ddim { eta: 0.0 },
            clip: true,
            seed: 0,
            classifier_scale: 1.0,
            unconditional: false,
            guidance_weight: 1.0,
        }
    }
}

/// What the graph of a denoising step is to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SamplingNeeds {
    /// Take the noise from the host instead of drawing it.
    pub given_noise: bool,
    /// Keep the predicted clean image.
    pub keep_x0: bool,
    /// Take a classifier's gradient.
    pub guided: bool,
    /// Evaluate the network with and without the class.
    pub classifier_free: bool,
    /// Store activations and convolution weights in half precision.
    pub half: bool,
}

/// The graph of one denoising step.
pub struct SamplingGraph {
    /// The network and the update.
    pub graph: Graph,
    /// x_t, overwritten by x_{t-1}: [n, h, w, c].
    pub x: TensorId,
    /// Timestep fed to the network: `[n]`, or `[2n]` if it is evaluated twice.
    pub t: TensorId,
    /// Class labels of a conditional network, as many as timesteps.
    pub labels: Option<TensorId>,
    /// Number of its classes.
    pub classes: Option<usize>,
    /// The label of "no class", if it knows that.
    pub no_class: Option<u32>,
    /// The small image [n, s, s, c] of a super-resolution network.
    pub low_res: Option<TensorId>,
    /// Coefficients of the update.
    pub update: TensorId,
    /// Seed, step and number of the first image.
    pub rng: TensorId,
    /// Noise written by the host instead of drawn, if asked for.
    pub noise: Option<TensorId>,
    /// A classifier's gradient [n, h, w, c], if asked for.
    pub guidance: Option<TensorId>,
    /// The predicted clean image, if it is kept.
    pub x0: Option<TensorId>,
}

impl SamplingGraph {
    /// Describes one step for `n` images.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options, and for classifier-free
    /// guidance of a network without a "no class".
    pub fn new(model: &UNetConfig, n: usize, needs: SamplingNeeds) -> Result<SamplingGraph> {
        if needs.classifier_free && !(model.null_class && model.num_classes.is_some()) {
            return Err(Error::Config(
                "classifier-free guidance needs a network that was trained with label dropout"
                    .into(),
            ));
        }
        let mut g = Graph::new();
        g.half = needs.half;
        let evaluations = if needs.classifier_free { 2 * n } else { n };
        let image = [n, model.image_size, model.image_size, model.in_channels];
        let x = g.input("x", &image, DType::F32);
        let t = g.input("t", &[evaluations], DType::F32);
        let labels = model.num_classes.map(|_| g.input("labels", &[evaluations], DType::U32));
        let low_res = model.small_size.map(|s| {
            let small = [n, s, s, model.in_channels];
            g.input("low_res", &small, DType::F32)
        });
        let update = g.input("update", &[ops::DENOISE_COEFS], DType::F32);
        let rng = g.input("random state", &[4], DType::U32);
        let noise = needs.given_noise.then(|| g.input("noise", &image, DType::F32));
        let guidance = needs.guided.then(|| g.input("guidance", &image, DType::F32));
        let mut inputs = UNetInputs { x, t, y: labels, low_res, rng: None };
        if needs.classifier_free {
            inputs.x = ops::repeat_batch(&mut g, x, 2)?;
            inputs.low_res = low_res.map(|l| ops::repeat_batch(&mut g, l, 2)).transpose()?;
        }
        let out = build(model, &mut g, inputs)?;
        let step = DenoiseInputs {
            x,
            out,
            coefs: update,
            rng,
            noise,
            guidance,
            unconditional: needs.classifier_free,
        };
        let x0 = ops::denoise(&mut g, step, needs.keep_x0)?;
        let classes = model.num_classes;
        let no_class = classes.filter(|_| model.null_class).map(|n| n as u32);
        Ok(SamplingGraph {
            graph: g,
            x,
            t,
            labels,
            classes,
            no_class,
            low_res,
            update,
            rng,
            noise,
            guidance,
            x0,
        })
    }

    /// Plans it.
    ///
    /// # Errors
    /// [`Error::Memory`] if a tensor exceeds the device's limits.
    pub fn plan(&self, caps: &Caps) -> Result<Plan> {
        let mut lower = Lower::new(&self.graph, caps);
        lower.keep_prepared();
        lower.forward(&self.graph)?;
        let keep: Vec<TensorId> = std::iter::once(self.x).chain(self.x0).collect();
        Plan::new(&self.graph, lower, &keep, PlanOptions::default())
    }
}

/// One batch to be drawn.
#[derive(Debug, Clone, Copy, Default)]
pub struct SampleJob<'a> {
    /// Number of the first image.
    pub first: u64,
    /// Images, at most the batch that the loop was compiled for.
    pub count: usize,
    /// The class of each for a conditional or classifier-guided network.
    pub labels: &'a [u32],
    /// Small images [count, s, s, c] in [-1, 1] for a super-resolution network.
    pub low_res: Option<&'a [f32]>,
    /// Start from these [count, h, w, c] instead of noise: latents, or images
    /// where the sampler is [`Sampler::DdimReverse`].
    pub start: Option<&'a [f32]>,
    /// Steps after which the predicted clean images are wanted, if kept.
    pub show_x0: &'a [usize],
}

/// How far a loop has come.
#[derive(Debug)]
pub struct SampleProgress {
    /// Steps done.
    pub done: usize,
    /// Steps in all.
    pub steps: usize,
    /// The predicted clean images [count, h, w, c] after this step, if wanted.
    pub x0: Option<Vec<f32>>,
}

/// A network compiled for sampling batches of a fixed size.
pub struct SamplingLoop {
    wiring: SamplingGraph,
    program: Program,
    diffusion: DiffusionConfig,
    batch: usize,
    guide: Option<Guide>,
}

impl SamplingLoop {
    /// Compiles for batches of `batch` images with the weights in `flat`'s
    /// `weights` buffers.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub async fn new_async(
        ctx: Context<'_>,
        model: &UNetConfig,
        diffusion: &DiffusionConfig,
        batch: usize,
        flat: &FlatBuffers,
        weights: FlatKind,
    ) -> Result<SamplingLoop> {
        let wiring = SamplingGraph::new(model, batch, SamplingNeeds::default())?;
        let plan = wiring.plan(&ctx.gpu.caps)?;
        Self::compile_async(ctx, wiring, plan, diffusion, (flat, weights), None).await
    }

    /// As [`new_async`](Self::new_async), from a graph and its plan, and a classifier if
    /// the graph takes its gradient.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room, [`Error::Config`] if the
    /// classifier does not fit the network.
    pub async fn compile_async(
        ctx: Context<'_>,
        wiring: SamplingGraph,
        plan: Plan,
        diffusion: &DiffusionConfig,
        (flat, weights): (&FlatBuffers, FlatKind),
        guide: Option<Guide>,
    ) -> Result<SamplingLoop> {
        let [batch, size, _, channels] = wiring.graph.dims::<4>("sample", wiring.x)?;
        let mut bound = Vec::new();
        match (&guide, wiring.guidance) {
            (Some(guide), Some(guidance)) => {
                guide.check(size, channels, diffusion)?;
                let [x, gradient] = guide.shared()?;
                bound = vec![(wiring.x, x), (guidance, gradient)];
            }
            (None, None) => {}
            _ => return Err(Error::Config("guidance needs a graph and a classifier".into())),
        }
        let options = CompileOptions { weights, bound: &bound, ..Default::default() };
        let program = Program::compile_async(ctx, plan, flat, options).await?;
        Ok(SamplingLoop { wiring, program, diffusion: diffusion.clone(), batch, guide })
    }

    /// Images drawn at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// The process that is sampled.
    pub fn diffusion(&self) -> &DiffusionConfig {
        &self.diffusion
    }

    /// Classes that labels are taken from: the network's, or the classifier's
    /// that guides a network without any.
    pub fn classes(&self) -> Option<usize> {
        self.wiring.classes.or(self.guide.as_ref().map(|g| g.model().out_channels))
    }

    /// Draws a batch. `progress` is called after every step and may stop the
    /// loop by an error. Returns [count, h, w, c], clean images in [-1, 1] or,
    /// from [`Sampler::DdimReverse`], latents.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible respacing, [`Error::Shape`] for more
    /// images than the batch holds or operands that do not fit,
    /// [`Error::Device`] on a fault.
    pub async fn sample_async(
        &self,
        ctx: Context<'_>,
        options: &SampleOptions,
        job: &SampleJob<'_>,
        progress: &mut dyn FnMut(SampleProgress) -> Result<()>,
    ) -> Result<Vec<f32>> {
        options.sampler.validate()?;
        let schedule = SpacedSchedule::new(&self.diffusion, &options.respacing)?;
        let tables = schedule.tables()?;
        self.check(job)?;
        self.prepare(ctx, options, job)?;
        let gpu = ctx.gpu;
        let steps = schedule.num_steps();
        let reverse = options.sampler == Sampler::DdimReverse;
        let mut queue = std::collections::VecDeque::new();
        for done in 0..steps {
            let i = if reverse { done } else { steps - 1 - done };
            queue.push_back(self.step(ctx, options, &schedule, &tables, i, job.first)?);
            if queue.len() > IN_FLIGHT
                && let Some(ticket) = queue.pop_front()
            {
                gpu.wait_for_async(&ticket).await?;
            }
            let done = done + 1;
            let x0 = match self.wiring.x0 {
                Some(x0) if job.show_x0.contains(&done) => {
                    Some(self.read(ctx, x0, job.count).await?)
                }
                _ => None,
            };
            progress(SampleProgress { done, steps, x0 })?;
        }
        self.read(ctx, self.wiring.x, job.count).await
    }

    async fn read(&self, ctx: Context<'_>, id: TensorId, count: usize) -> Result<Vec<f32>> {
        let mut values = self.program.read_async(ctx.gpu, &[id]).await?.remove(0);
        values.truncate(values.len() / self.batch * count);
        Ok(values)
    }

    fn check(&self, job: &SampleJob) -> Result<()> {
        let wanted = if self.classes().is_some() { job.count } else { job.labels.len() };
        if job.count > self.batch || job.labels.len() != wanted {
            let detail = format!(
                "{} images with {} labels for a batch of {}",
                job.count,
                job.labels.len(),
                self.batch
            );
            return Err(Error::shape("sample", detail));
        }
        if self.wiring.low_res.is_some() != job.low_res.is_some() {
            let detail = "small images must be given to a super-resolution network and to no other";
            return Err(Error::shape("sample", detail));
        }
        check_labels("sample", job.labels, self.wiring.classes)?;
        check_labels("sample", job.labels, self.guide.as_ref().map(|g| g.model().out_channels))
    }

    /// Writes what stays the same over the loop, padded to the batch.
    fn prepare(&self, ctx: Context, options: &SampleOptions, job: &SampleJob) -> Result<()> {
        let (gpu, w) = (ctx.gpu, &self.wiring);
        let elements: usize = w.graph.shape(w.x).iter().skip(1).product();
        let x = match job.start {
            Some(start) => self.padded("start", start, job.count, elements)?,
            None => {
                let mut x = vec![0.0; self.batch * elements];
                for (i, image) in x.chunks_mut(elements).enumerate() {
                    let number = (job.first + i as u64) as u32;
                    rng::fill_normal(image, options.seed, 0, rng::STREAM_XT, number);
                }
                x
            }
        };
        self.program.write(gpu, w.x, &x)?;
        if let (Some(id), Some(small)) = (w.low_res, job.low_res) {
            let elements = w.graph.shape(id).iter().skip(1).product();
            let small = self.padded("low_res", small, job.count, elements)?;
            self.program.write(gpu, id, &small)?;
        }
        let mut labels = job.labels.to_vec();
        labels.resize(self.batch, job.labels.last().copied().unwrap_or(0));
        if let Some(guide) = &self.guide {
            guide.prepare(ctx, &labels, options.classifier_scale)?;
        }
        if let Some(id) = w.labels {
            if options.unconditional {
                labels.fill(self.no_class()?);
            }
            // The second half, if there is one, is evaluated without a class.
            labels.resize(w.graph.shape(id)[0], w.no_class.unwrap_or(0));
            self.program.write(gpu, id, &labels)?;
        }
        Ok(())
    }

    fn no_class(&self) -> Result<u32> {
        self.wiring.no_class.ok_or_else(|| {
            Error::Config(
                "the network knows no images without a class: train it with label dropout".into(),
            )
        })
    }

    fn padded(
        &self,
        what: &str,
        values: &[f32],
        count: usize,
        elements: usize,
    ) -> Result<Vec<f32>> {
        if values.len() != count * elements {
            let detail = format!(
                "{what} holds {} values, {count} images of {elements} are needed",
                values.len()
            );
            return Err(Error::shape("sample", detail));
        }
        let mut padded = values.to_vec();
        padded.resize(self.batch * elements, 0.0);
        Ok(padded)
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
        let mut update = tables.update_for(i, options.sampler, &self.diffusion, options.clip);
        update.guidance_free = options.guidance_weight as f32;
        let [lo, hi] = rng::key(options.seed);
        if let Some(guide) = &self.guide {
            guide.run(ctx, &vec![t; self.batch])?;
        }
        self.program.write(gpu, w.t, &vec![t; w.graph.shape(w.t)[0]])?;
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
