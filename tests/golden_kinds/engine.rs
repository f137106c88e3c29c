//! Runs the engine on a rebuilt golden case and returns what it computed by
//! the file's names, in the reference's layouts.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use demist::diffusion::{
    DiffusionConfig, MeanType, NoiseSchedule, Sampler, SamplingGraph, SpacedSchedule,
};
use demist::gpu::Gpu;
use demist::graph::{DType, FlatKind, Graph, Lower, ParamInfo, Plan, PlanOptions};
use demist::model::{UNetConfig, UNetInputs, build};
use demist::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::train::{MicroBatch, Noise, TrainConfig, TrainStep};
use serde_json::Value;

use crate::common::{self, nchw_to_nhwc, nhwc_to_nchw};
use crate::{sample, train, unet};

/// Results by the file's names.
pub type Outputs = Result<BTreeMap<String, Vec<f32>>, String>;

/// The device of the whole test.
pub fn context() -> Context<'static> {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    let (gpu, pipelines) = DEVICE.get_or_init(|| {
        let gpu = Gpu::open(std::env::var("DEMIST_DEVICE").ok().as_deref()).expect("a GPU adapter");
        (gpu, Pipelines::new())
    });
    Context { gpu, pipelines }
}

/// An error as the checks report it.
pub fn text(e: demist::Error) -> String {
    e.to_string()
}

fn model_config(model: &Value) -> Result<UNetConfig, String> {
    serde_json::from_value(model.clone()).map_err(|e| format!("model: {e}"))
}

/// The reference's command-line flags as our options.
fn diffusion_config(flags: &Value) -> Result<DiffusionConfig, String> {
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
            // DDIM's steps use the predicted noise alone, whatever the variance.
            ("learn_sigma", Value::Bool(true)) => {}
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
    lower.forward().map_err(text)?;
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
        ema_rate: number("/ema")?,
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
    let step = TrainStep::new(ctx, &model, &diffusion, &config, Noise::Given).map_err(text)?;
    let params = &step.graph().params;
    for kind in [FlatKind::Weights, FlatKind::Ema] {
        step.flat().write(ctx.gpu, kind, params, &weights(params, case.salt)).map_err(text)?;
    }
    let mut outputs = BTreeMap::new();
    let mut collect = |prefix: &str, kind| {
        let values = step.flat().read(ctx.gpu, kind, params).map_err(text)?;
        for (p, v) in params.iter().zip(values) {
            outputs.insert(format!("{prefix}.{}", p.name), p.to_file(&v));
        }
        Ok::<(), String>(())
    };
    let mut losses = Vec::new();
    for (i, batch) in case.steps.iter().enumerate() {
        let labels: Vec<u32> = batch.y.iter().flatten().map(|y| *y as u32).collect();
        let timesteps: Vec<usize> = batch.t.iter().map(|t| *t as usize).collect();
        let micro = MicroBatch {
            images: &nhwc(case.shape, &batch.x0),
            labels: &labels,
            timesteps: &timesteps,
            first: 0,
            noise: Some(&nhwc(case.shape, &batch.noise)),
        };
        step.micro_step(ctx, i as u64, 0, &micro).map_err(text)?;
        losses.push(step.image_losses(ctx).map_err(text)?);
        collect(&format!("g{i}"), FlatKind::Grads)?;
        step.update(ctx, i as u64).map_err(text)?;
    }
    collect("wN", FlatKind::Weights)?;
    collect("ema", FlatKind::Ema)?;
    for (i, mse) in losses.into_iter().enumerate() {
        outputs.insert(format!("out.s{i}.mse"), mse.clone());
        outputs.insert(format!("out.s{i}.loss"), mse);
    }
    Ok(outputs)
}

/// The loops that fixed variances define: DDIM always, DDPM unless the
/// network's variance is learned.
pub fn run_sample(case: &sample::Case) -> Outputs {
    let ctx = context();
    let model = model_config(case.model)?;
    let diffusion = diffusion_config(&case.config["diffusion"])?;
    let respacing =
        case.config.pointer("/diffusion/timestep_respacing").and_then(Value::as_str).unwrap_or("");
    let schedule = SpacedSchedule::new(&diffusion, respacing).map_err(text)?;
    let map: Vec<i64> = schedule.timestep_map.iter().map(|t| *t as i64).collect();
    if map != case.timestep_map {
        return Err(format!("kept timesteps are {map:?}, the file has {:?}", case.timestep_map));
    }
    let tables = schedule.tables().map_err(text)?;
    let [n, c, h, w] = case.shape;
    let wiring = SamplingGraph::new(&model, n, true, true).map_err(text)?;
    let plan = wiring.plan(&ctx.gpu.caps).map_err(text)?;
    let params = &wiring.graph.params;
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &[FlatKind::Weights]).map_err(text)?;
    flat.write(ctx.gpu, FlatKind::Weights, params, &weights(params, case.salt)).map_err(text)?;
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).map_err(text)?;
    if let Some(id) = wiring.labels {
        let labels: Vec<u32> = case.y.iter().map(|y| *y as u32).collect();
        program.write(ctx.gpu, id, &labels).map_err(text)?;
    }
    let learned = case.config.pointer("/diffusion/learn_sigma") == Some(&Value::Bool(true));
    let keep: Vec<_> = std::iter::once(wiring.x).chain(wiring.x0).collect();
    let mut outputs = BTreeMap::new();
    for (name, sampler, clip) in [
        ("ddim", Sampler::Ddim { eta: 0.0 }, true),
        ("ddim_noclip", Sampler::Ddim { eta: 0.0 }, false),
        ("ddim_eta1", Sampler::Ddim { eta: 1.0 }, true),
        ("p", Sampler::Ddpm, true),
        ("p_noclip", Sampler::Ddpm, false),
    ] {
        if learned && name.starts_with('p') {
            continue;
        }
        program.write(ctx.gpu, wiring.x, &nhwc(case.shape, &case.x_t)).map_err(text)?;
        for (done, i) in (0..schedule.num_steps()).rev().enumerate() {
            let t = schedule.model_timestep(i, &diffusion);
            program.write(ctx.gpu, wiring.t, &vec![t; n]).map_err(text)?;
            let update = tables.update_for(i, sampler, &diffusion, clip);
            program
                .write(ctx.gpu, wiring.update, &demist::ops::denoise_coefs(&update))
                .map_err(text)?;
            if let Some(id) = wiring.noise {
                program.write(ctx.gpu, id, &nhwc(case.shape, &case.noise(done))).map_err(text)?;
            }
            program.run(ctx.gpu).map_err(text)?;
            let read = program.read(ctx.gpu, &keep).map_err(text)?;
            outputs
                .insert(format!("out.{name}.{done}.sample"), nhwc_to_nchw(&read[0], [n, c, h, w]));
            outputs.insert(format!("out.{name}.{done}.x0"), nhwc_to_nchw(&read[1], [n, c, h, w]));
        }
    }
    Ok(outputs)
}
