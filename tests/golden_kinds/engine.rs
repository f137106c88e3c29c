//! Runs the engine on a rebuilt golden case and returns what it computed by
//! the file's names, in the reference's layouts.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use demist::diffusion::{DiffusionConfig, LossType, MeanType, NoiseSchedule, VarType};
use demist::engine::gpu::Gpu;
use demist::engine::graph::{DType, FlatKind, Graph, Lower, ParamInfo, Plan, PlanOptions};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::engine::tuning::Forced;
use demist::model::{ModelConfig, UNetConfig, UNetInputs, build};
use demist::recipe::TrainConfig;
use demist::train::{MicroBatch, Noise, TrainStep};
use serde_json::Value;

use crate::common::{self, nchw_to_nhwc, nhwc_to_nchw};
use crate::{train, unet};

/// Results by the file's names.
pub type Outputs = Result<BTreeMap<String, Vec<f32>>, String>;

/// The device of the whole test.
pub fn context() -> Context<'static> {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    let (gpu, pipelines) = DEVICE.get_or_init(|| {
        let name = std::env::var("DEMIST_DEVICE").ok();
        let mut gpu = Gpu::open(name.as_deref()).expect("a GPU adapter");
        gpu.caps.forced = Forced::from_env().expect("variants to force");
        gpu.caps.guarded = std::env::var_os("DEMIST_CHECKED").is_some_and(|v| v == "1");
        (gpu, Pipelines::new())
    });
    Context { gpu, pipelines }
}

/// An error as the checks report it.
pub fn text(e: demist::Error) -> String {
    e.to_string()
}

pub fn model_config(model: &Value) -> Result<UNetConfig, String> {
    serde_json::from_value(model.clone()).map_err(|e| format!("model: {e}"))
}

/// The reference's command-line flags as our options.
pub fn diffusion_config(flags: &Value) -> Result<DiffusionConfig, String> {
    let mut config = DiffusionConfig::default();
    for (key, value) in flags.as_object().into_iter().flatten() {
        match (key.as_str(), value) {
            ("noise_schedule", Value::String(s)) if s == "cosine" => {
                config.noise_schedule = NoiseSchedule::Cosine
            }
            ("noise_schedule", Value::String(s)) if s == "linear" => {}
            ("predict_xstart", Value::Bool(x0)) => {
                config.mean_type = if *x0 { MeanType::XStart } else { MeanType::Epsilon };
            }
            ("learn_sigma", Value::Bool(false)) | ("timestep_respacing", _) => {}
            ("learn_sigma", Value::Bool(true)) => config.var_type = VarType::LearnedRange,
            ("use_kl", Value::Bool(true)) => config.loss_type = LossType::RescaledKl,
            ("rescale_learned_sigmas", Value::Bool(true)) => {
                config.loss_type = LossType::RescaledMse;
            }
            ("rescale_timesteps", Value::Bool(on)) => config.rescale_timesteps = *on,
            ("diffusion_steps", Value::Number(n)) => {
                config.diffusion_steps = n.as_u64().ok_or("diffusion_steps")? as usize;
            }
            _ => return Err(format!("diffusion: {key} = {value} is not supported")),
        }
    }
    Ok(config)
}

/// The hash's parameters in device layout.
pub fn weights(params: &[ParamInfo], salt: &str) -> Vec<Vec<f32>> {
    params.iter().map(|p| p.to_device(&common::weight(salt, &p.name, &p.file_shape()))).collect()
}

/// To the device's layout.
pub fn nhwc([n, c, h, w]: [usize; 4], values: &[f32]) -> Vec<f32> {
    nchw_to_nhwc(values, [n, c, h, w])
}

/// One forward pass with all tapped activations.
pub fn run_unet(case: &unet::Case) -> Outputs {
    let ctx = context();
    let config = model_config(case.model)?;
    let [n, c, h, w] = case.shape;
    let mut g = Graph::new();
    let x = g.input("x", &[n, h, w, c], DType::F32);
    let t = g.input("t", &[n], DType::F32);
    let y = config.num_classes.map(|_| g.input("y", &[n], DType::U32));
    let low_res = config.small_size.map(|s| g.input("low_res", &[n, s, s, c], DType::F32));
    let out = build(&config, &mut g, UNetInputs { x, t, y, low_res, rng: None }).map_err(text)?;
    let mut names: Vec<String> = vec!["out.y".into()];
    let mut keep = vec![out];
    for (name, id) in &g.taps {
        names.push(format!("act.{name}"));
        keep.push(*id);
    }
    let mut lower = Lower::new(&g, &ctx.gpu.caps);
    lower.forward(&g).map_err(text)?;
    let plan = Plan::new(&g, lower, &keep, PlanOptions::default()).map_err(text)?;
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &[FlatKind::Weights]).map_err(text)?;
    flat.write(ctx.gpu, FlatKind::Weights, &g.params, &weights(&g.params, case.salt))
        .map_err(text)?;
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(ctx, plan, &flat, options).map_err(text)?;
    program.write(ctx.gpu, x, &nhwc(case.shape, &case.x)).map_err(text)?;
    program.write(ctx.gpu, t, &case.t).map_err(text)?;
    if let (Some(id), Some(labels)) = (y, &case.y) {
        let labels: Vec<u32> = labels.iter().map(|l| *l as u32).collect();
        program.write(ctx.gpu, id, &labels).map_err(text)?;
    }
    if let (Some(id), Some((side, small))) = (low_res, &case.low_res) {
        program.write(ctx.gpu, id, &nhwc([n, c, *side, *side], small)).map_err(text)?;
    }
    program.run(ctx.gpu).map_err(text)?;
    let values = program.read(ctx.gpu, &keep).map_err(text)?;
    let reordered = keep.iter().zip(values).map(|(id, v)| match *g.shape(*id) {
        [n, h, w, c] => nhwc_to_nchw(&v, [n, c, h, w]),
        _ => v,
    });
    Ok(names.into_iter().zip(reordered).collect())
}

fn train_config(optim: &Value, batch: usize) -> Result<TrainConfig, String> {
    let number = |pointer: &str| {
        optim.pointer(pointer).and_then(Value::as_f64).ok_or(format!("optim{pointer}"))
    };
    Ok(TrainConfig {
        batch_size: batch,
        micro_batch: batch,
        lr: number("/lr")?,
        weight_decay: number("/weight_decay")?,
        beta1: number("/betas/0")?,
        beta2: number("/betas/1")?,
        eps: number("/eps")?,
        ema_rates: vec![number("/ema")?],
        ema_warmup: false,
        max_grad_norm: 0.0,
        ..Default::default()
    })
}

/// A few optimizer steps: losses, every gradient, final weights and average.
pub fn run_train(case: &train::Case) -> Outputs {
    let ctx = context();
    let model = model_config(case.model)?;
    let diffusion = diffusion_config(case.diffusion)?;
    let config = train_config(case.optim, case.shape[0])?;
    let model = ModelConfig::UNet(model);
    let step = TrainStep::new(ctx, &model, &diffusion, &config, Noise::Given).map_err(text)?;
    let params = &step.graph().params;
    for kind in [FlatKind::Weights, FlatKind::Ema(0)] {
        step.flat().write(ctx.gpu, kind, params, &weights(params, case.salt)).map_err(text)?;
    }
    let mut outputs = BTreeMap::new();
    let collect = |outputs: &mut BTreeMap<String, Vec<f32>>, prefix: &str, kind| {
        let values = step.flat().read(ctx.gpu, kind, params).map_err(text)?;
        for (p, v) in params.iter().zip(values) {
            outputs.insert(format!("{prefix}.{}", p.name), p.to_file(&v));
        }
        Ok::<(), String>(())
    };
    for (i, batch) in case.steps.iter().enumerate() {
        let labels: Vec<u32> = batch.y.iter().flatten().map(|y| *y as u32).collect();
        let timesteps: Vec<usize> = batch.t.iter().map(|t| *t as usize).collect();
        let micro = MicroBatch {
            images: &nhwc(case.shape, &batch.x0),
            labels: &labels,
            timesteps: &timesteps,
            importance: &[],
            first: 0,
            noise: Some(&nhwc(case.shape, &batch.noise)),
        };
        step.micro_step(ctx, i as u64, 0, &micro).map_err(text)?;
        for (name, values) in step.image_terms(ctx).map_err(text)? {
            // The pure bound is stored as the loss alone.
            if !diffusion.loss_type.is_vb() {
                outputs.insert(format!("out.s{i}.{name}"), values);
            }
        }
        let losses = step.image_losses(ctx).map_err(text)?;
        outputs.insert(format!("out.s{i}.loss"), losses);
        collect(&mut outputs, &format!("g{i}"), FlatKind::Grads)?;
        step.update(ctx, i as u64).map_err(text)?;
    }
    collect(&mut outputs, "wN", FlatKind::Weights)?;
    collect(&mut outputs, "ema", FlatKind::Ema(0))?;
    Ok(outputs)
}
