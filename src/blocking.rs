//! The blocking forms of what is asynchronous, for native programs: each function here
//! waits for its namesake that ends in `_async`, which says what it does and when it fails.
//!
//! A native device needs no executor: its futures wait within the call.

use crate::Result;
use crate::diffusion::{
    DiffusionConfig, GivenNoise, Guide, GuideGraph, ImageLikelihood, Likelihood, LikelihoodGraph,
    LikelihoodJob, SampleJob, SampleOptions, SampleProgress, SamplingGraph, SamplingLoop,
};
use crate::gpu::{self, AdapterSummary, Gpu, Ticket};
use crate::graph::{Dispatch, FlatKind, ParamInfo, ParamLayout, Plan, TensorId};
use crate::model::{EncoderConfig, ModelConfig, UNetConfig};
use crate::ops::LossScale;
use crate::recipe::TrainConfig;
use crate::runtime::{Clock, CompileOptions, Context, FlatBuffers, Pipelines, Program, Span};
use crate::train::{Evaluation, Evaluator, Noise, TermSum, TrainStep};
use pollster::block_on;

/// Blocking form of [`gpu::list_adapters_async`].
pub fn list_adapters() -> Result<Vec<AdapterSummary>> {
    block_on(gpu::list_adapters_async())
}

impl Gpu {
    /// Blocking form of [`Gpu::open_async`].
    pub fn open(selector: Option<&str>) -> Result<Gpu> {
        block_on(Gpu::open_async(selector))
    }

    /// Blocking form of [`Gpu::open_for_measuring_async`].
    pub fn open_for_measuring(selector: Option<&str>) -> Result<Gpu> {
        block_on(Gpu::open_for_measuring_async(selector))
    }

    /// Blocking form of [`Gpu::another_async`].
    pub fn another(&self) -> Result<Gpu> {
        block_on(self.another_async())
    }

    /// Blocking form of [`Gpu::wait_async`].
    pub fn wait(&self) -> Result<()> {
        block_on(self.wait_async())
    }

    /// Blocking form of [`Gpu::wait_for_async`].
    pub fn wait_for(&self, ticket: &Ticket) -> Result<()> {
        block_on(self.wait_for_async(ticket))
    }
}

impl Pipelines {
    /// Blocking form of [`Pipelines::kept_in_async`].
    #[cfg(feature = "files")]
    pub fn kept_in(gpu: &Gpu, path: &std::path::Path) -> Pipelines {
        block_on(Pipelines::kept_in_async(gpu, path))
    }

    /// Blocking form of [`Pipelines::make_ready_async`].
    pub fn make_ready(&self, gpu: &Gpu, dispatches: &[Dispatch]) -> Result<()> {
        block_on(self.make_ready_async(gpu, dispatches))
    }
}

impl FlatBuffers {
    /// Blocking form of [`FlatBuffers::new_async`].
    pub fn new(gpu: &Gpu, layout: &ParamLayout, kinds: &[FlatKind]) -> Result<FlatBuffers> {
        block_on(FlatBuffers::new_async(gpu, layout, kinds))
    }

    /// Blocking form of [`FlatBuffers::inference_async`].
    pub fn inference(gpu: &Gpu, layout: &ParamLayout) -> Result<FlatBuffers> {
        block_on(FlatBuffers::inference_async(gpu, layout))
    }

    /// Blocking form of [`FlatBuffers::read_async`].
    pub fn read(&self, gpu: &Gpu, kind: FlatKind, params: &[ParamInfo]) -> Result<Vec<Vec<f32>>> {
        block_on(self.read_async(gpu, kind, params))
    }

    /// Blocking form of [`FlatBuffers::read_loss_scale_async`].
    pub fn read_loss_scale(&self, gpu: &Gpu) -> Result<[f32; 4]> {
        block_on(self.read_loss_scale_async(gpu))
    }
}

impl Program {
    /// Blocking form of [`Program::compile_async`].
    pub fn compile(
        ctx: Context,
        plan: Plan,
        flat: &FlatBuffers,
        options: CompileOptions,
    ) -> Result<Program> {
        block_on(Program::compile_async(ctx, plan, flat, options))
    }

    /// Blocking form of [`Program::read_async`].
    pub fn read(&self, gpu: &Gpu, ids: &[TensorId]) -> Result<Vec<Vec<f32>>> {
        block_on(self.read_async(gpu, ids))
    }

    /// Blocking form of [`Program::run_timed_async`].
    pub fn run_timed(&self, gpu: &Gpu, clock: Clock) -> Result<Vec<Span>> {
        block_on(self.run_timed_async(gpu, clock))
    }
}

impl Guide {
    /// Blocking form of [`Guide::compile_async`].
    pub fn compile(
        ctx: Context,
        wiring: GuideGraph,
        plan: (Plan, TensorId),
        model: &EncoderConfig,
        diffusion: &DiffusionConfig,
        flat: &FlatBuffers,
    ) -> Result<Guide> {
        block_on(Guide::compile_async(ctx, wiring, plan, model, diffusion, flat))
    }
}

impl SamplingLoop {
    /// Blocking form of [`SamplingLoop::new_async`].
    pub fn new(
        ctx: Context,
        model: &UNetConfig,
        diffusion: &DiffusionConfig,
        batch: usize,
        flat: &FlatBuffers,
        weights: FlatKind,
    ) -> Result<SamplingLoop> {
        block_on(SamplingLoop::new_async(ctx, model, diffusion, batch, flat, weights))
    }

    /// Blocking form of [`SamplingLoop::compile_async`].
    pub fn compile(
        ctx: Context,
        wiring: SamplingGraph,
        plan: Plan,
        diffusion: &DiffusionConfig,
        weights: (&FlatBuffers, FlatKind),
        guide: Option<Guide>,
    ) -> Result<SamplingLoop> {
        block_on(SamplingLoop::compile_async(ctx, wiring, plan, diffusion, weights, guide))
    }

    /// Blocking form of [`SamplingLoop::sample_async`].
    pub fn sample(
        &self,
        ctx: Context,
        options: &SampleOptions,
        job: &SampleJob,
        progress: &mut dyn FnMut(SampleProgress) -> Result<()>,
    ) -> Result<Vec<f32>> {
        block_on(self.sample_async(ctx, options, job, progress))
    }
}

impl Likelihood {
    /// Blocking form of [`Likelihood::compile_async`].
    pub fn compile(
        ctx: Context,
        wiring: LikelihoodGraph,
        plan: Plan,
        diffusion: &DiffusionConfig,
        respacing: &str,
        flat: &FlatBuffers,
    ) -> Result<Likelihood> {
        block_on(Likelihood::compile_async(ctx, wiring, plan, diffusion, respacing, flat))
    }

    /// Blocking form of [`Likelihood::evaluate_async`].
    pub fn evaluate(
        &self,
        ctx: Context,
        job: &LikelihoodJob,
        noise: Option<GivenNoise>,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<ImageLikelihood>> {
        block_on(self.evaluate_async(ctx, job, noise, progress))
    }
}

impl TrainStep {
    /// Blocking form of [`TrainStep::new_async`].
    pub fn new(
        ctx: Context,
        model: &ModelConfig,
        diffusion: &DiffusionConfig,
        config: &TrainConfig,
        noise: Noise,
    ) -> Result<TrainStep> {
        block_on(TrainStep::new_async(ctx, model, diffusion, config, noise))
    }

    /// Blocking form of [`TrainStep::loss_scale_async`].
    pub fn loss_scale(&self, ctx: Context) -> Result<Option<LossScale>> {
        block_on(self.loss_scale_async(ctx))
    }

    /// Blocking form of [`TrainStep::take_terms_async`].
    pub fn take_terms(&self, ctx: Context) -> Result<(Vec<TermSum>, f64)> {
        block_on(self.take_terms_async(ctx))
    }

    /// Blocking form of [`TrainStep::image_terms_async`].
    pub fn image_terms(&self, ctx: Context) -> Result<Vec<(&'static str, Vec<f32>)>> {
        block_on(self.image_terms_async(ctx))
    }

    /// Blocking form of [`TrainStep::image_losses_async`].
    pub fn image_losses(&self, ctx: Context) -> Result<Vec<f32>> {
        block_on(self.image_losses_async(ctx))
    }
}

impl Evaluator {
    /// Blocking form of [`Evaluator::new_async`].
    pub fn new(
        ctx: Context,
        model: &ModelConfig,
        diffusion: &DiffusionConfig,
        config: &TrainConfig,
        flat: &FlatBuffers,
        weights: FlatKind,
    ) -> Result<Evaluator> {
        block_on(Evaluator::new_async(ctx, model, diffusion, config, flat, weights))
    }

    /// Blocking form of [`Evaluator::run_async`].
    pub fn run(
        &self,
        ctx: Context,
        images: usize,
        fetch: &dyn Fn(usize, &mut [f32]) -> Result<u32>,
        progress: &mut dyn FnMut(usize) -> Result<()>,
    ) -> Result<Evaluation> {
        block_on(self.run_async(ctx, images, fetch, progress))
    }
}
