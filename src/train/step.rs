//! The device side of training: forward, backward and update as three static
//! programs over shared memory.
//!
//! A step of `batch_size` images runs `micro_batches` times: q_sample, U-Net,
//! weighted mean squared error and the backward walk. The first micro-batch
//! assigns the parameter gradients and the others add to them; the loss
//! weights contain 1 / batch_size, so the sum is the mean over the batch.
//! One more program clips, applies AdamW and moves the average.

use super::TrainConfig;
use crate::diffusion::{DiffusionConfig, MeanType, SpacedSchedule, Tables, check_labels};
use crate::gpu::Caps;
use crate::graph::{
    DType, FlatKind, Graph, Lower, ParamLayout, Plan, PlanOptions, PlanReport, TensorId,
};
use crate::model::{UNetConfig, UNetInputs, build};
use crate::ops::{self, AdamW, OptimizerTensors};
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program, Ticket};
use crate::{Error, Result, rng};

/// Where the noise of a training image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Drawn on the device from seed, step and image number.
    Drawn,
    /// Written by the host with every micro-batch (to compare with references).
    Given,
}

/// The images of one micro-batch.
pub struct MicroBatch<'a> {
    /// Clean images [n, h, w, c] in [-1, 1].
    pub images: &'a [f32],
    /// Class labels `[n]`; ignored by unconditional networks.
    pub labels: &'a [u32],
    /// Timestep of each image.
    pub timesteps: &'a [usize],
    /// Number of the first image in the stream of all images.
    pub first: u64,
    /// The noise, if it is [`Noise::Given`].
    pub noise: Option<&'a [f32]>,
}

/// Tensors that the host writes before each micro-batch.
struct Inputs {
    x0: TensorId,
    labels: Option<TensorId>,
    t: TensorId,
    coefs: TensorId,
    rng: TensorId,
    weights: TensorId,
    noise: Option<TensorId>,
}

/// The tensors of a training graph.
struct Wiring {
    inputs: Inputs,
    mse: TensorId,
    loss: TensorId,
}

/// The compiled training step of one network.
pub struct TrainStep {
    graph: Graph,
    wiring: Wiring,
    loss_sum: TensorId,
    first: Program,
    rest: Option<Program>,
    optimizer: Program,
    optimizer_tensors: OptimizerTensors,
    flat: FlatBuffers,
    tables: Tables,
    schedule: SpacedSchedule,
    diffusion: DiffusionConfig,
    config: TrainConfig,
    classes: Option<usize>,
}

/// Appends noising, network and loss.
fn wire(
    model: &UNetConfig,
    diffusion: &DiffusionConfig,
    n: usize,
    noise: Noise,
    g: &mut Graph,
) -> Result<Wiring> {
    let (size, channels) = (model.image_size, model.in_channels);
    let image = [n, size, size, channels];
    let inputs = Inputs {
        x0: g.input("x0", &image, DType::F32),
        labels: model.num_classes.map(|_| g.input("labels", &[n], DType::U32)),
        t: g.input("t", &[n], DType::F32),
        coefs: g.input("q_sample coefficients", &[n, 2], DType::F32),
        rng: g.input("random state", &[4], DType::U32),
        weights: g.input("loss weights", &[n], DType::F32),
        noise: (noise == Noise::Given).then(|| g.input("noise", &image, DType::F32)),
    };
    let (x_t, eps) = match inputs.noise {
        Some(eps) => (ops::q_sample_with(g, inputs.x0, inputs.coefs, eps)?, eps),
        None => ops::q_sample(g, inputs.x0, inputs.coefs, inputs.rng)?,
    };
    let out = build(
        model,
        g,
        UNetInputs { x: x_t, t: inputs.t, y: inputs.labels, low_res: None, rng: Some(inputs.rng) },
    )?;
    let target = match diffusion.mean_type {
        MeanType::Epsilon => eps,
        MeanType::XStart => inputs.x0,
    };
    let mse = ops::mse(g, out, target)?;
    let loss = ops::weighted_sum(g, mse, inputs.weights)?;
    Ok(Wiring { inputs, mse, loss })
}

/// Lowers one micro-batch; the loss is added to the returned tensor.
fn lower_micro(
    caps: &Caps,
    graph: &Graph,
    wiring: &Wiring,
    accumulate: bool,
) -> Result<(Plan, TensorId)> {
    let mut lower = Lower::new(graph, caps);
    lower.accumulate_params(accumulate);
    lower.forward()?;
    let loss_sum = lower.pinned("loss sum", &[1], DType::F32);
    ops::add_into(&mut lower, wiring.loss, loss_sum)?;
    // d loss / d mse_i is the weight itself.
    lower.backward(&[(wiring.mse, wiring.inputs.weights)], &[])?;
    Ok((Plan::new(graph, lower, &[loss_sum, wiring.mse], PlanOptions::default())?, loss_sum))
}

/// Plans a training step without a device's memory, for `info`.
///
/// # Errors
/// As [`TrainStep::new`].
pub fn plan_report(
    caps: &Caps,
    model: &UNetConfig,
    diffusion: &DiffusionConfig,
    n: usize,
) -> Result<PlanReport> {
    let mut graph = Graph::new();
    let wiring = wire(model, diffusion, n, Noise::Drawn, &mut graph)?;
    Ok(lower_micro(caps, &graph, &wiring, false)?.0.report())
}

impl TrainStep {
    /// Plans and compiles; the weights are zero until they are written.
    ///
    /// # Errors
    /// [`crate::Error::Config`] for impossible options, [`crate::Error::Memory`] if the
    /// device has no room.
    pub fn new(
        ctx: Context,
        model: &UNetConfig,
        diffusion: &DiffusionConfig,
        config: &TrainConfig,
        noise: Noise,
    ) -> Result<TrainStep> {
        config.validate()?;
        let mut graph = Graph::new();
        let wiring = wire(model, diffusion, config.micro_batch, noise, &mut graph)?;
        let (plan, loss_sum) = lower_micro(&ctx.gpu.caps, &graph, &wiring, false)?;
        let layout = plan.params.clone();
        let kinds = [
            FlatKind::Weights,
            FlatKind::Grads,
            FlatKind::ExpAvg,
            FlatKind::ExpAvgSq,
            FlatKind::Ema,
        ];
        let flat = FlatBuffers::new(ctx.gpu, &layout, &kinds)?;
        let first = Program::compile(ctx, plan, &flat, CompileOptions::default())?;
        let rest = if config.micro_batches() > 1 {
            let (plan, _) = lower_micro(&ctx.gpu.caps, &graph, &wiring, true)?;
            let options = CompileOptions { share: Some(&first), ..Default::default() };
            Some(Program::compile(ctx, plan, &flat, options)?)
        } else {
            None
        };
        let (optimizer, optimizer_tensors) = compile_optimizer(ctx, &layout, &flat)?;
        let schedule = SpacedSchedule::new(diffusion, "")?;
        let tables = schedule.tables()?;
        Ok(TrainStep {
            graph,
            wiring,
            loss_sum,
            first,
            rest,
            optimizer,
            optimizer_tensors,
            flat,
            tables,
            schedule,
            diffusion: diffusion.clone(),
            config: config.clone(),
            classes: model.num_classes,
        })
    }

    /// The network's graph (its parameters, in order).
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// The flat buffers, to read and write parameters and to sample from.
    pub fn flat(&self) -> &FlatBuffers {
        &self.flat
    }

    /// The plan of one micro-batch.
    pub fn plan(&self) -> &Plan {
        self.first.plan()
    }

    /// Timestep of image number `image` of the stream at step `step`, uniform.
    pub fn draw_timestep(&self, step: u64, image: u64) -> usize {
        let n = self.tables.num_steps() as u32;
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
        self.check(batch)?;
        let program = match (&self.rest, part) {
            (Some(rest), 1..) => rest,
            _ => &self.first,
        };
        let gpu = ctx.gpu;
        let i = &self.wiring.inputs;
        let t: Vec<f32> = batch
            .timesteps
            .iter()
            .map(|t| self.schedule.model_timestep(*t, &self.diffusion))
            .collect();
        let coefs: Vec<_> =
            batch.timesteps.iter().map(|t| self.tables.q_sample_coefs(*t)).collect();
        let [lo, hi] = rng::key(self.config.seed);
        let weight = 1.0 / self.config.batch_size as f32;
        program.write(gpu, i.x0, batch.images)?;
        if let Some(labels) = i.labels {
            program.write(gpu, labels, batch.labels)?;
        }
        program.write(gpu, i.t, &t)?;
        program.write(gpu, i.coefs, &coefs)?;
        program.write(gpu, i.rng, &[lo, hi, step as u32, batch.first as u32])?;
        program.write(gpu, i.weights, &vec![weight; batch.timesteps.len()])?;
        if let (Some(id), Some(noise)) = (i.noise, batch.noise) {
            program.write(gpu, id, noise)?;
        }
        program.run(gpu)
    }

    fn check(&self, batch: &MicroBatch) -> Result<()> {
        let steps = self.tables.num_steps();
        if let Some(t) = batch.timesteps.iter().find(|t| **t >= steps) {
            return Err(Error::shape("train", format!("timestep {t} of a process of {steps}")));
        }
        if self.wiring.inputs.noise.is_some() != batch.noise.is_some() {
            let detail = "noise must be given exactly if it is not drawn on the device";
            return Err(Error::shape("train", detail));
        }
        check_labels("train", batch.labels, self.classes)
    }

    /// Applies the gradients of step `step` (from 0).
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub fn update(&self, ctx: Context, step: u64) -> Result<Ticket> {
        let c = &self.config;
        let settings = AdamW {
            lr: c.lr_at(step),
            beta1: c.beta1,
            beta2: c.beta2,
            eps: c.eps,
            weight_decay: c.weight_decay,
            ema_rate: c.ema_at(step),
            max_norm: c.max_grad_norm,
        };
        let hyper = settings.hyper(step + 1);
        self.optimizer.write(ctx.gpu, self.optimizer_tensors.hyper, &hyper)?;
        self.optimizer.run(ctx.gpu)
    }

    /// The sum of the losses since the last call, and the last gradient norm.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub fn take_loss(&self, ctx: Context) -> Result<(f64, f64)> {
        let loss = self.first.read(ctx.gpu, &[self.loss_sum])?[0][0];
        self.first.write(ctx.gpu, self.loss_sum, &[0.0f32])?;
        let norm = self.optimizer.read(ctx.gpu, &[self.optimizer_tensors.norm])?[0][0];
        Ok((loss.into(), norm.into()))
    }

    /// The loss of each image of the last micro-batch.
    ///
    /// # Errors
    /// [`crate::Error::Device`] on a fault.
    pub fn image_losses(&self, ctx: Context) -> Result<Vec<f32>> {
        Ok(self.first.read(ctx.gpu, &[self.wiring.mse])?.remove(0))
    }
}

fn compile_optimizer(
    ctx: Context,
    layout: &ParamLayout,
    flat: &FlatBuffers,
) -> Result<(Program, OptimizerTensors)> {
    let graph = Graph::new();
    let mut lower = Lower::new(&graph, &ctx.gpu.caps);
    let tensors = ops::optimizer_step(&mut lower, layout, false)?;
    let plan = Plan::new(&graph, lower, &[tensors.norm], PlanOptions::default())?;
    Ok((Program::compile(ctx, plan, flat, CompileOptions::default())?, tensors))
}
