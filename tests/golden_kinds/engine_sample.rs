//! Runs the engine's samplers on a rebuilt golden case: ancestral and implicit
//! loops, guided or not, inversion and the likelihood.

use std::collections::BTreeMap;

use demist::diffusion::{
    DiffusionConfig, GuideGraph, Likelihood, LikelihoodGraph, LikelihoodJob, Sampler,
    SamplingGraph, SamplingNeeds, SpacedSchedule,
};
use demist::engine::graph::{FlatKind, ParamInfo, Plan, TensorId};
use demist::engine::ops::denoise_coefs;
use demist::engine::runtime::{CompileOptions, FlatBuffers, Program};
use demist::model::EncoderConfig;
use serde_json::Value;

use crate::common::nhwc_to_nchw;
use crate::engine::{Outputs, context, diffusion_config, model_config, nhwc, text, weights};
use crate::sample::Case;

/// A loop of the file: its name and how it is run.
struct Chain {
    name: &'static str,
    sampler: Sampler,
    clip: bool,
    guided: bool,
}

const DDIM: Sampler = Sampler::Ddim { eta: 0.0 };

const fn chain(name: &'static str, sampler: Sampler, clip: bool, guided: bool) -> Chain {
    Chain { name, sampler, clip, guided }
}

const CHAINS: [Chain; 9] = [
    chain("ddim", DDIM, true, false),
    chain("ddim_noclip", DDIM, false, false),
    chain("ddim_eta1", Sampler::Ddim { eta: 1.0 }, true, false),
    chain("p", Sampler::Ddpm, true, false),
    chain("p_noclip", Sampler::Ddpm, false, false),
    chain("ddim_guided", DDIM, true, true),
    chain("ddim_guided_noclip", DDIM, false, true),
    chain("p_guided", Sampler::Ddpm, true, true),
    chain("p_guided_noclip", Sampler::Ddpm, false, true),
];

/// The process of a case.
struct Process {
    diffusion: DiffusionConfig,
    respacing: String,
    schedule: SpacedSchedule,
}

/// A compiled step with its network and, if guided, the classifier's gradient.
struct Stepper<'a> {
    case: &'a Case<'a>,
    process: &'a Process,
    wiring: SamplingGraph,
    program: Program,
    guide: Option<(GuideGraph, Program)>,
    _flat: Vec<FlatBuffers>,
}

fn upload(plan: &Plan, params: &[ParamInfo], salt: &str) -> Result<FlatBuffers, String> {
    let ctx = context();
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &[FlatKind::Weights]).map_err(text)?;
    flat.write(ctx.gpu, FlatKind::Weights, params, &weights(params, salt)).map_err(text)?;
    Ok(flat)
}

/// Every loop, the inversion and the likelihood.
pub fn run_sample(case: &Case) -> Outputs {
    let diffusion = diffusion_config(&case.config["diffusion"])?;
    let respacing =
        case.config.pointer("/diffusion/timestep_respacing").and_then(Value::as_str).unwrap_or("");
    let schedule = SpacedSchedule::new(&diffusion, respacing).map_err(text)?;
    let map: Vec<i64> = schedule.timestep_map.iter().map(|t| *t as i64).collect();
    if map != case.timestep_map {
        return Err(format!("kept timesteps are {map:?}, the file has {:?}", case.timestep_map));
    }
    let process = Process { diffusion, respacing: respacing.to_owned(), schedule };
    let plain = Stepper::new(case, &process, false)?;
    let guided = Stepper::new(case, &process, true)?;
    let mut outputs = BTreeMap::new();
    for c in &CHAINS {
        let stepper = if c.guided { &guided } else { &plain };
        stepper.run(c, &mut outputs)?;
    }
    outputs.insert("out.ddim_reverse".into(), plain.reverse()?);
    likelihood(case, &process, &mut outputs)?;
    Ok(outputs)
}

impl<'a> Stepper<'a> {
    fn new(case: &'a Case, process: &'a Process, guided: bool) -> Result<Stepper<'a>, String> {
        let ctx = context();
        let model = model_config(case.model)?;
        let n = case.shape[0];
        let needs =
            SamplingNeeds { given_noise: true, keep_x0: true, guided, ..Default::default() };
        let wiring = SamplingGraph::new(&model, n, needs).map_err(text)?;
        let plan = wiring.plan(&ctx.gpu.caps).map_err(text)?;
        let mut flats = vec![upload(&plan, &wiring.graph.params, case.salt)?];
        let labels: Vec<u32> = case.y.iter().map(|y| *y as u32).collect();
        let mut bound = Vec::new();
        let mut guide = None;
        if let Some(guidance) = wiring.guidance {
            let (graph, program, gradient, flat) = classifier(case, &labels)?;
            bound.push((wiring.x, program.pinned(graph.x).map_err(text)?));
            bound.push((guidance, program.pinned(gradient).map_err(text)?));
            flats.push(flat);
            guide = Some((graph, program));
        }
        let options = CompileOptions { bound: &bound, ..Default::default() };
        let program = Program::compile(ctx, plan, &flats[0], options).map_err(text)?;
        if let Some(id) = wiring.labels {
            program.write(ctx.gpu, id, &labels).map_err(text)?;
        }
        Ok(Stepper { case, process, wiring, program, guide, _flat: flats })
    }

    /// One step at kept timestep `i`, loop step `done`.
    fn step(&self, c: &Chain, i: usize, done: usize) -> Result<(), String> {
        let (ctx, w) = (context(), &self.wiring);
        let Process { diffusion, schedule, .. } = self.process;
        let n = self.case.shape[0];
        let t = vec![schedule.model_timestep(i, diffusion); n];
        if let Some((graph, program)) = &self.guide {
            program.write(ctx.gpu, graph.t, &t).map_err(text)?;
            program.run(ctx.gpu).map_err(text)?;
        }
        let tables = schedule.tables().map_err(text)?;
        let update = tables.update_for(i, c.sampler, diffusion, c.clip);
        self.program.write(ctx.gpu, w.t, &t).map_err(text)?;
        self.program.write(ctx.gpu, w.update, &denoise_coefs(&update)).map_err(text)?;
        if let Some(id) = w.noise {
            let noise = nhwc(self.case.shape, &self.case.noise(done));
            self.program.write(ctx.gpu, id, &noise).map_err(text)?;
        }
        self.program.run(ctx.gpu).map_err(text).map(|_| ())
    }

    fn read(&self, id: TensorId) -> Result<Vec<f32>, String> {
        let values = self.program.read(context().gpu, &[id]).map_err(text)?.remove(0);
        let [n, c, h, w] = self.case.shape;
        Ok(nhwc_to_nchw(&values, [n, c, h, w]))
    }

    fn run(&self, c: &Chain, outputs: &mut BTreeMap<String, Vec<f32>>) -> Result<(), String> {
        let start = nhwc(self.case.shape, &self.case.x_t);
        self.program.write(context().gpu, self.wiring.x, &start).map_err(text)?;
        for (done, i) in (0..self.process.schedule.num_steps()).rev().enumerate() {
            self.step(c, i, done)?;
            let prefix = format!("out.{}.{done}", c.name);
            outputs.insert(format!("{prefix}.sample"), self.read(self.wiring.x)?);
            if let Some(x0) = self.wiring.x0 {
                outputs.insert(format!("{prefix}.x0"), self.read(x0)?);
            }
        }
        Ok(())
    }

    /// The clean image, encoded.
    fn reverse(&self) -> Result<Vec<f32>, String> {
        let c = chain("", Sampler::DdimReverse, true, false);
        let start = nhwc(self.case.shape, &self.case.x0);
        self.program.write(context().gpu, self.wiring.x, &start).map_err(text)?;
        for i in 0..self.process.schedule.num_steps() {
            self.step(&c, i, 0)?;
        }
        self.read(self.wiring.x)
    }
}

/// The case's classifier, its labels and scale already written.
fn classifier(
    case: &Case,
    labels: &[u32],
) -> Result<(GuideGraph, Program, TensorId, FlatBuffers), String> {
    let ctx = context();
    let model: EncoderConfig = serde_json::from_value(case.config["classifier"].clone())
        .map_err(|e| format!("classifier: {e}"))?;
    let salt = case.config["classifier_salt"].as_str().ok_or("no classifier_salt")?;
    let scale = case.config["classifier_scale"].as_f64().ok_or("no classifier_scale")?;
    let graph = GuideGraph::new(&model, labels.len()).map_err(text)?;
    let (plan, gradient) = graph.plan(&ctx.gpu.caps).map_err(text)?;
    let flat = upload(&plan, &graph.graph.params, salt)?;
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(ctx, plan, &flat, options).map_err(text)?;
    program.write(ctx.gpu, graph.labels, labels).map_err(text)?;
    program.write(ctx.gpu, graph.seed, &vec![-scale as f32; labels.len()]).map_err(text)?;
    Ok((graph, program, gradient, flat))
}

fn likelihood(
    case: &Case,
    process: &Process,
    outputs: &mut BTreeMap<String, Vec<f32>>,
) -> Result<(), String> {
    let ctx = context();
    let model = model_config(case.model)?;
    let n = case.shape[0];
    let wiring = LikelihoodGraph::new(&model, &process.diffusion, n, true, true).map_err(text)?;
    let plan = wiring.plan(&ctx.gpu.caps).map_err(text)?;
    let flat = upload(&plan, &wiring.graph.params, case.salt)?;
    let scorer =
        Likelihood::compile(ctx, wiring, plan, &process.diffusion, &process.respacing, &flat)
            .map_err(text)?;
    let labels: Vec<u32> = case.y.iter().map(|y| *y as u32).collect();
    let job = LikelihoodJob {
        first: 0,
        images: &nhwc(case.shape, &case.x0),
        labels: if model.num_classes.is_some() { &labels } else { &[] },
        seed: 0,
    };
    let noise = |done: usize| nhwc(case.shape, &case.noise(done));
    let scores = scorer.evaluate(ctx, &job, Some(&noise), &mut || Ok(())).map_err(text)?;
    let narrow = |v: &[f64]| v.iter().map(|x| *x as f32).collect::<Vec<f32>>();
    let mut collect = |name: &str, of: &dyn Fn(&demist::diffusion::ImageLikelihood) -> Vec<f32>| {
        outputs.insert(format!("out.bpd.{name}"), scores.iter().flat_map(of).collect());
    };
    collect("vb", &|s| narrow(&s.vb));
    collect("mse", &|s| narrow(&s.mse));
    collect("xstart_mse", &|s| narrow(&s.xstart_mse));
    collect("prior_bpd", &|s| vec![s.prior_bpd as f32]);
    collect("total_bpd", &|s| vec![s.total_bpd() as f32]);
    Ok(())
}
