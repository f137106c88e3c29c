//! The device side of training: forward, backward and update as three static
//! programs over shared memory.
//!
//! A step of `batch_size` images runs `micro_batches` times: noising, network,
//! losses and the backward walk. The first micro-batch assigns the parameter
//! gradients and the others add to them; the loss weights contain
//! 1 / batch_size, so the sum is the mean over the batch. One more program
//! clips, applies AdamW and moves the averages.

use super::wiring::{Inputs, Noise, Term, Wiring, vb_scale, wire};
use crate::caps::Caps;
use crate::diffusion::{DiffusionConfig, QSampleCoefs, SpacedSchedule, Tables, check_labels};
use crate::gpu::Ticket;
use crate::graph::{
    DType, FlatKind, Graph, Lower, ParamLayout, Plan, PlanOptions, PlanReport, TensorId,
};
use crate::model::ModelConfig;
use crate::ops::{self, AdamW, LossScale, OptimizerTensors};
use crate::recipe::TrainConfig;
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program};
use crate::{Error, Result, rng};

/// Quarters of the timesteps that losses are kept apart for.
pub const QUARTILES: usize = 4;

/// The images of one micro-batch.
pub struct MicroBatch<'a> {
    /// Clean images [n, h, w, c] in [-1, 1].
    pub images: &'a [f32],
    /// Class labels `[n]`; ignored by unconditional networks. One past the last
    /// class means "no class" to networks that know it.
    pub labels: &'a [u32],
    /// Timestep of each image.
    pub timesteps: &'a [usize],
    /// Importance weight of each image; empty for ones.
    pub importance: &'a [f64],
    /// Number of the first image in the stream of all images.
    pub first: u64,
    /// The noise, if it is [`Noise::Given`].
    pub noise: Option<&'a [f32]>,
}

/// Sums of a term over the images since the last look.
#[derive(Debug, Clone, PartialEq)]
pub struct TermSum {
    /// "mse", "vb", "cross_entropy", "acc@1", "acc@5".
    pub name: &'static str,
    /// Part of the loss.
    pub trained: bool,
    /// Over all images.
    pub total: f64,
    /// Over the images of each quarter of the timesteps.
    pub quartiles: [f64; QUARTILES],
}

/// Turns a micro-batch into the inputs of a program: all that depends on the
/// process rather than on the network.
pub(super) struct Feed {
    tables: Tables,
    schedule: SpacedSchedule,
    diffusion: DiffusionConfig,
    config: TrainConfig,
    /// Labels that may occur.
    labels: Option<usize>,
    /// A classifier of clean images sees timestep 0 and no noise.
    clean: bool,
}

impl Feed {
    pub fn new(
        model: &ModelConfig,
        diffusion: &DiffusionConfig,
        config: &TrainConfig,
    ) -> Result<Self> {
        let schedule = SpacedSchedule::new(diffusion, "")?;
        let labels = match model {
            ModelConfig::UNet(m) => m.num_classes.map(|n| n + usize::from(m.null_class)),
            ModelConfig::Encoder(m) => Some(m.out_channels),
        };
        Ok(Feed {
            tables: schedule.tables()?,
            schedule,
            diffusion: diffusion.clone(),
            config: config.clone(),
            labels,
            clean: matches!(model, ModelConfig::Encoder(_)) && !config.noised,
        })
    }

    pub fn steps(&self) -> usize {
        self.tables.num_steps()
    }

    /// Which quarter of the timesteps `t` is in.
    pub fn quartile(&self, t: usize) -> usize {
        QUARTILES * t / self.steps()
    }

    fn check(&self, inputs: &Inputs, batch: &MicroBatch) -> Result<()> {
        let steps = self.steps();
        if let Some(t) = batch.timesteps.iter().find(|t| **t >= steps) {
            return Err(Error::shape("train", format!("timestep {t} of a process of {steps}")));
        }
        if inputs.noise.is_some() != batch.noise.is_some() {
            let detail = "noise must be given exactly if it is not drawn on the device";
            return Err(Error::shape("train", detail));
        }
        if !batch.importance.is_empty() && batch.importance.len() != batch.timesteps.len() {
            let detail = format!(
                "{} importance weights for {} images",
                batch.importance.len(),
                batch.timesteps.len()
            );
            return Err(Error::shape("train", detail));
        }
        check_labels("train", batch.labels, self.labels)
    }

    /// Writes everything that `program` reads for step `step`; the term weights
    /// are divided by `images`.
    pub fn write(
        &self,
        ctx: Context,
        program: &Program,
        i: &Inputs,
        batch: &MicroBatch,
        step: u64,
        images: usize,
    ) -> Result<()> {
        self.check(i, batch)?;
        let gpu = ctx.gpu;
        let timesteps = batch.timesteps.iter();
        let clean = QSampleCoefs { sqrt_abar: 1.0, sqrt_one_minus_abar: 0.0 };
        let t: Vec<f32> = if self.clean {
            vec![0.0; batch.timesteps.len()]
        } else {
            timesteps.clone().map(|t| self.schedule.model_timestep(*t, &self.diffusion)).collect()
        };
        let coefs: Vec<_> = timesteps
            .clone()
            .map(|t| if self.clean { clean } else { self.tables.q_sample_coefs(*t) })
            .collect();
        let quartiles: Vec<u32> = timesteps.clone().map(|t| self.quartile(*t) as u32).collect();
        let weights = |scale: f64| -> Vec<f32> {
            let scale = scale / images as f64;
            let importance = |n| batch.importance.get(n).copied().unwrap_or(1.0);
            (0..batch.timesteps.len()).map(|n| (scale * importance(n)) as f32).collect()
        };
        let [lo, hi] = rng::key(self.config.seed);
        program.write(gpu, i.x0, batch.images)?;
        if let Some(labels) = i.labels {
            program.write(gpu, labels, batch.labels)?;
        }
        program.write(gpu, i.t, &t)?;
        program.write(gpu, i.coefs, &coefs)?;
        program.write(gpu, i.rng, &[lo, hi, step as u32, batch.first as u32])?;
        program.write(gpu, i.quartile, &quartiles)?;
        program.write(gpu, i.weights, &weights(1.0))?;
        if let (Some(vlb), Some(vb_weights)) = (i.vlb, i.vb_weights) {
            let of = |t: &usize| self.tables.vlb_coefs(*t, self.diffusion.var_type);
            let bound: Vec<_> = timesteps.flat_map(of).collect();
            program.write(gpu, vlb, &bound)?;
            program.write(gpu, vb_weights, &weights(vb_scale(&self.diffusion)))?;
        }
        if let (Some(id), Some(noise)) = (i.noise, batch.noise) {
            program.write(gpu, id, noise)?;
        }
        Ok(())
    }
}

/// Emits the sums of all terms; the returned tensors hold total and quartiles.
pub(super) fn lower_sums(lower: &mut Lower, wiring: &Wiring) -> Result<Vec<TensorId>> {
    let quartile = wiring.inputs.quartile;
    let one = |term: &Term| {
        let sums = lower.pinned("term sums", &[1 + QUARTILES], DType::F32);
        ops::loss_stats(lower, term.values, Some(term.weights), quartile, sums)?;
        Ok(sums)
    };
    wiring.terms.iter().map(one).collect()
}

/// Reads the sums and sets them back to zero.
pub(super) async fn take_sums(
    ctx: Context<'_>,
    program: &Program,
    wiring: &Wiring,
    sums: &[TensorId],
    images: usize,
) -> Result<Vec<TermSum>> {
    let values = program.read_async(ctx.gpu, sums).await?;
    for id in sums {
        program.write(ctx.gpu, *id, &[0.0f32; 1 + QUARTILES])?;
    }
    let scale = |v: f32| f64::from(v) * images as f64;
    let named = wiring.terms.iter().zip(values).map(|(term, v)| TermSum {
        name: term.name,
        trained: term.trained,
        total: scale(v[0]),
        quartiles: std::array::from_fn(|q| scale(v[1 + q])),
    });
    Ok(named.collect())
}

/// Lowers one micro-batch.
fn lower_micro(
    caps: &Caps,
    graph: &Graph,
    wiring: &Wiring,
    half: bool,
    accumulate: bool,
) -> Result<(Plan, Vec<TensorId>)> {
    let mut lower = Lower::new(graph, caps);
    lower.accumulate_params(accumulate);
    lower.forward(graph)?;
    let sums = lower_sums(&mut lower, wiring)?;
    let mut seeds = wiring.seeds();
    if half {
        for (_, seed) in &mut seeds {
            *seed = ops::loss_scale(&mut lower, *seed)?;
        }
    }
    lower.backward(graph, &seeds, &[])?;
    let keep: Vec<TensorId> =
        sums.iter().copied().chain(wiring.terms.iter().map(|t| t.values)).collect();
    Ok((Plan::new(graph, lower, &keep, PlanOptions::default())?, sums))
}

/// Memory and work of [`plan_step`], for `info` and to choose what is recomputed.
///
/// # Errors
/// As [`TrainStep::new`].
pub fn plan_report(
    caps: &Caps,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &TrainConfig,
) -> Result<PlanReport> {
    Ok(plan_step(caps, model, diffusion, config)?.report())
}

/// Plans a micro-batch, noising to gradients, without a device's memory.
///
/// # Errors
/// As [`TrainStep::new`].
pub fn plan_step(
    caps: &Caps,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &TrainConfig,
) -> Result<Plan> {
    let mut graph = Graph::new();
    let n = config.micro_batch;
    let wiring = wire(model, diffusion, config, n, Noise::Drawn, true, &mut graph)?;
    Ok(lower_micro(caps, &graph, &wiring, config.half, false)?.0)
}

/// The flat buffers of a training run.
pub(super) fn state_kinds(averages: usize) -> Vec<FlatKind> {
    [FlatKind::Weights, FlatKind::ExpAvg, FlatKind::ExpAvgSq]
        .into_iter()
        .chain((0..averages).map(|i| FlatKind::Ema(i as u8)))
        .collect()
}

/// The compiled training step of one network.
pub struct TrainStep {
    graph: Graph,
    wiring: Wiring,
    sums: Vec<TensorId>,
    first: Program,
    rest: Option<Program>,
    optimizer: Optimizer,
    flat: FlatBuffers,
    feed: Feed,
    config: TrainConfig,
}

impl TrainStep {
    /// Plans and compiles; the weights are zero until they are written.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for impossible options, [`crate::Error::Memory`] if the
    /// device has no room.
    pub async fn new_async(
        ctx: Context<'_>,
        model: &ModelConfig,
        diffusion: &DiffusionConfig,
        config: &TrainConfig,
        noise: Noise,
    ) -> Result<TrainStep> {
        config.validate()?;
        let mut graph = Graph::new();
        let n = config.micro_batch;
        let wiring = wire(model, diffusion, config, n, noise, true, &mut graph)?;
        let (plan, sums) = lower_micro(&ctx.gpu.caps, &graph, &wiring, config.half, false)?;
        let layout = plan.params.clone();
        let mut kinds = state_kinds(config.ema_rates.len());
        kinds.push(FlatKind::Grads);
        if config.half {
            kinds.extend([FlatKind::Half, FlatKind::LossScale]);
        }
        let flat = FlatBuffers::new_async(ctx.gpu, &layout, &kinds).await?;
        let options = CompileOptions::default();
        let first = Program::compile_async(ctx, plan, &flat, options).await?;
        let rest = if config.micro_batches() > 1 {
            let (plan, _) = lower_micro(&ctx.gpu.caps, &graph, &wiring, config.half, true)?;
            let options = CompileOptions { share: Some(&first), ..Default::default() };
            Some(Program::compile_async(ctx, plan, &flat, options).await?)
        } else {
            None
        };
        if config.half {
            let lg = if matches!(model, ModelConfig::Encoder(_)) { 16.0 } else { 20.0 };
            flat.write_loss_scale(ctx.gpu, LossScale { lg, ..Default::default() }.state())?;
        }
        let optimizer = Optimizer::compile(ctx, &layout, &flat, config).await?;
        let feed = Feed::new(model, diffusion, config)?;
        let config = config.clone();
        Ok(TrainStep { graph, wiring, sums, first, rest, optimizer, flat, feed, config })
    }

    /// The network's graph (its parameters, in order).
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The flat buffers, to read and write parameters and to sample from.
    pub fn flat(&self) -> &FlatBuffers {
        &self.flat
    }

    /// The state of the loss scale, in half precision.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub async fn loss_scale_async(&self, ctx: Context<'_>) -> Result<Option<LossScale>> {
        if !self.config.half {
            return Ok(None);
        }
        Ok(Some(LossScale::from_state(self.flat.read_loss_scale_async(ctx.gpu).await?)))
    }

    /// Sets the state of the loss scale, as a resumed run does.
    ///
    /// # Errors
    /// [`crate::Error::Device`] if the step is not in half precision.
    pub fn set_loss_scale(&self, ctx: Context, state: LossScale) -> Result<()> {
        self.flat.write_loss_scale(ctx.gpu, state.state())
    }

    /// Names of the terms, in order.
    pub fn term_names(&self) -> Vec<&'static str> {
        self.wiring.terms.iter().map(|t| t.name).collect()
    }

    /// The plan of one micro-batch.
    pub fn plan(&self) -> &Plan {
        self.first.plan()
    }

    /// What a step of one micro-batch runs, to be looked at: noising to gradients,
    /// and the update.
    pub fn programs(&self) -> [&Program; 2] {
        [&self.first, &self.optimizer.program]
    }

    /// Which quarter of the timesteps `t` is in.
    pub fn quartile(&self, t: usize) -> usize {
        self.feed.quartile(t)
    }

    /// Timestep of image number `image` of the stream at step `step`, uniform.
    pub fn draw_timestep(&self, step: u64, image: u64) -> usize {
        let n = self.feed.steps() as u32;
        rng::uniform_below(self.config.seed, step as u32, rng::STREAM_TIMESTEP, image as u32, 0, n)
            as usize
    }

    /// Runs micro-batch number `part` of step `step`.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for arrays of the wrong length, labels or timesteps
    /// out of range and missing noise, [`crate::Error::Device`] on a fault.
    pub fn micro_step(
        &self,
        ctx: Context,
        step: u64,
        part: usize,
        batch: &MicroBatch,
    ) -> Result<Ticket> {
        let program = match (&self.rest, part) {
            (Some(rest), 1..) => rest,
            _ => &self.first,
        };
        let inputs = &self.wiring.inputs;
        self.feed.write(ctx, program, inputs, batch, step, self.config.batch_size)?;
        program.run(ctx.gpu)
    }

    /// Applies the gradients of step `step` (from 0).
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub fn update(&self, ctx: Context, step: u64) -> Result<Ticket> {
        self.optimizer.run(ctx, &self.config, step)
    }

    /// The terms summed over the images since the last call, and the last
    /// gradient norm.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub async fn take_terms_async(&self, ctx: Context<'_>) -> Result<(Vec<TermSum>, f64)> {
        let images = self.config.batch_size;
        let sums = take_sums(ctx, &self.first, &self.wiring, &self.sums, images).await?;
        Ok((sums, self.optimizer.norm(ctx).await?))
    }

    /// The terms of each image of the last micro-batch, the variational bound
    /// scaled as the loss takes it.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub async fn image_terms_async(
        &self,
        ctx: Context<'_>,
    ) -> Result<Vec<(&'static str, Vec<f32>)>> {
        let ids: Vec<TensorId> = self.wiring.terms.iter().map(|t| t.values).collect();
        let scale = vb_scale(&self.feed.diffusion) as f32;
        let mut named = Vec::new();
        let read = self.first.read_async(ctx.gpu, &ids).await?;
        for (term, mut values) in self.wiring.terms.iter().zip(read) {
            if term.name == "vb" {
                values.iter_mut().for_each(|v| *v *= scale);
            }
            named.push((term.name, values));
        }
        Ok(named)
    }

    /// The loss of each image of the last micro-batch, without its importance
    /// weight.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub async fn image_losses_async(&self, ctx: Context<'_>) -> Result<Vec<f32>> {
        let mut losses = vec![0.0; self.config.micro_batch];
        let terms = self.image_terms_async(ctx).await?;
        for (term, (_, values)) in self.wiring.terms.iter().zip(terms) {
            if term.trained {
                losses.iter_mut().zip(values).for_each(|(l, v)| *l += v);
            }
        }
        Ok(losses)
    }
}

/// The update as a program.
struct Optimizer {
    program: Program,
    tensors: OptimizerTensors,
    /// Rates of the averages after the first.
    averages: Vec<TensorId>,
}

impl Optimizer {
    async fn compile(
        ctx: Context<'_>,
        layout: &ParamLayout,
        flat: &FlatBuffers,
        config: &TrainConfig,
    ) -> Result<Optimizer> {
        let graph = Graph::new();
        let mut lower = Lower::new(&graph, &ctx.gpu.caps);
        let tensors = ops::optimizer_step(&mut lower, layout, config.half)?;
        let averages = (1..config.ema_rates.len() as u8)
            .map(|i| ops::ema(&mut lower, layout, i, tensors.norm))
            .collect::<Result<_>>()?;
        let plan = Plan::new(&graph, lower, &[tensors.norm], PlanOptions::default())?;
        let options = CompileOptions::default();
        let program = Program::compile_async(ctx, plan, flat, options).await?;
        Ok(Optimizer { program, tensors, averages })
    }

    fn run(&self, ctx: Context, c: &TrainConfig, step: u64) -> Result<Ticket> {
        let mut rates = c.ema_rates.iter().map(|rate| c.ema_at(*rate, step));
        let settings = AdamW {
            lr: c.lr_at(step),
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: c.weight_decay,
            ema_rate: rates.next().unwrap_or(0.0),
            max_norm: c.max_grad_norm,
        };
        self.program.write(ctx.gpu, self.tensors.hyper, &settings.hyper(step + 1))?;
        for (id, rate) in self.averages.iter().zip(rates) {
            self.program.write(ctx.gpu, *id, &[(1.0 - rate) as f32])?;
        }
        self.program.run(ctx.gpu)
    }

    async fn norm(&self, ctx: Context<'_>) -> Result<f64> {
        let read = self.program.read_async(ctx.gpu, &[self.tensors.norm]).await?;
        Ok(read[0][0].into())
    }
}
