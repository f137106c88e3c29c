//! Super-resolution from training to drawing: the small image is the mean of
//! areas of the clean one, and what is drawn depends on it.

mod common;
mod harness;
mod tiny;

use common::rel_err;
use demist::checkpoint::parameters;
use demist::checkpoint::read_network;
use demist::diffusion::{
    DiffusionConfig, SampleJob, SampleOptions, Sampler, SamplingGraph, SamplingLoop, SamplingNeeds,
    SpacedSchedule,
};
use demist::engine::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions};
use demist::engine::ops;
use demist::engine::runtime::{CompileOptions, Program};
use demist::model::{ModelConfig, UNetConfig, UNetInputs, build};
use demist::output::metrics::Metrics;
use demist::recipe::TrainConfig;
use demist::reference::resize::{ResizeShape, area};
use demist::train::{MicroBatch, Noise, RunOptions, StopFlag, TrainStep, train};
use harness::values;
use tiny::{
    LEN, SIDE, batch, bits, context, dense, halves, info, run_options, short, unet, upload,
};

const SMALL: usize = 4;
const SMALL_LEN: usize = SMALL * SMALL * 3;
const DDIM: Sampler = Sampler::Ddim { eta: 0.0 };

fn upsampler() -> UNetConfig {
    UNetConfig { small_size: Some(SMALL), null_class: true, ..unet() }
}

/// Means of areas, on the host.
fn shrink(images: &[f32], small: usize) -> Vec<f32> {
    let n = images.len() / LEN;
    area(&ResizeShape { n, from: [SIDE, SIDE], to: [small, small], c: 3 }, images)
}

/// The loss of training against a graph that is given the small images.
#[test]
fn training_shrinks_the_clean_images() {
    let ctx = context();
    const N: usize = 3;
    let (images, labels) = batch(N);
    let noise = values(5, N * LEN);
    let timesteps = [0, 400, 999];
    let diffusion = DiffusionConfig::default();
    // Halves, and areas that cut pixels.
    for small in [SMALL, 3, 1] {
        let model = UNetConfig { small_size: Some(small), ..upsampler() };
        let config = TrainConfig { batch_size: N, micro_batch: N, ..Default::default() };
        let wrapped = ModelConfig::UNet(model.clone());
        let step = TrainStep::new(ctx, &wrapped, &diffusion, &config, Noise::Given).unwrap();
        let params = &step.graph().params;
        step.flat().write(ctx.gpu, FlatKind::Weights, params, &dense(params, "sr.")).unwrap();
        let micro = MicroBatch {
            images: &images,
            labels: &labels,
            timesteps: &timesteps,
            importance: &[],
            first: 0,
            noise: Some(&noise),
        };
        step.micro_step(ctx, 0, 0, &micro).unwrap();
        let losses = step.image_losses(ctx).unwrap();

        let mut g = Graph::new();
        let shape = [N, SIDE, SIDE, 3];
        let x_t = g.input("x_t", &shape, DType::F32);
        let eps = g.input("eps", &shape, DType::F32);
        let low_res = g.input("low_res", &[N, small, small, 3], DType::F32);
        let t = g.input("t", &[N], DType::F32);
        let y = g.input("y", &[N], DType::U32);
        let inputs = UNetInputs { x: x_t, t, y: Some(y), low_res: Some(low_res), rng: None };
        let out = build(&model, &mut g, inputs).unwrap();
        let mse = ops::mse(&mut g, out, eps).unwrap();
        let mut lower = Lower::new(&g, &ctx.gpu.caps);
        lower.forward(&g).unwrap();
        let plan = Plan::new(&g, lower, &[mse], PlanOptions::default()).unwrap();
        let flat = upload(&plan, &g.params, &dense(&g.params, "sr."));
        let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).unwrap();
        let tables = SpacedSchedule::new(&diffusion, "").unwrap().tables().unwrap();
        let noised: Vec<f32> = images
            .iter()
            .zip(&noise)
            .enumerate()
            .map(|(i, (x0, z))| {
                let coefs = tables.q_sample_coefs(timesteps[i / LEN]);
                demist::diffusion::q_sample(coefs, *x0, *z)
            })
            .collect();
        program.write(ctx.gpu, x_t, &noised).unwrap();
        program.write(ctx.gpu, eps, &noise).unwrap();
        program.write(ctx.gpu, t, &timesteps.map(|t| t as f32)).unwrap();
        program.write(ctx.gpu, y, &labels).unwrap();
        let with = |small: &[f32]| {
            program.write(ctx.gpu, low_res, small).unwrap();
            program.run(ctx.gpu).unwrap();
            program.read(ctx.gpu, &[mse]).unwrap().remove(0)
        };
        let error = rel_err(&losses, &with(&shrink(&images, small)));
        assert!(error < 1e-5, "side {small}: {error:.1e}");
        // Of the noised images it would not be the same.
        let other = rel_err(&losses, &with(&shrink(&noised, small)));
        assert!(other > 1e-3, "side {small}: small images do not matter ({other:.1e})");
    }
}

#[test]
fn a_run_trains_evaluates_and_draws() {
    let root = tempfile::tempdir().unwrap();
    let training = TrainConfig {
        batch_size: 4,
        micro_batch: 2,
        lr: 3e-3,
        ema_rates: vec![0.7],
        label_dropout: 0.2,
        steps: 2,
        ..Default::default()
    };
    let mut info = info(ModelConfig::UNet(upsampler()), short(6), training);
    let stop = StopFlag::default();
    let mut options =
        RunOptions { validation: Some(halves()), sample_every: 100, ..run_options(root.path()) };
    let mut go = |steps: u64, resume: bool| {
        info.training.steps = steps;
        options.resume = resume;
        let run = train(context(), halves(), info.clone(), &options, &stop, &mut |_| Ok(()));
        run.unwrap().evaluation.unwrap().loss()
    };
    let (first, last) = (go(2, false), go(30, true));
    assert!(last < 0.6 * first, "the loss went from {first} to {last}");
    let log = Metrics::read(&root.path().join("metrics.csv")).unwrap();
    assert!(log.column("loss").unwrap().iter().all(|l| l.is_finite()));
    for step in ["0000002", "0000030"] {
        let grid = root.path().join(format!("samples/step_{step}.png"));
        assert!(grid.metadata().unwrap().len() > 1000, "{}", grid.display());
    }

    // What was saved draws from small images, alone and in a part of a batch.
    let (info, file) = read_network(&root.path().join("network.safetensors")).unwrap();
    let model = info.model.unet().unwrap();
    let wiring = SamplingGraph::new(model, 3, SamplingNeeds::default()).unwrap();
    let plan = wiring.plan(&context().gpu.caps).unwrap();
    let params = &wiring.graph.params;
    let flat = upload(&plan, params, &parameters(params, &file, "").unwrap());
    let sampler =
        SamplingLoop::new(context(), model, &info.diffusion, 3, &flat, FlatKind::Weights).unwrap();
    let (images, labels) = batch(3);
    let low_res = shrink(&images, SMALL);
    let job =
        SampleJob { count: 3, labels: &labels, low_res: Some(&low_res), ..Default::default() };
    let options = SampleOptions { sampler: DDIM, ..Default::default() };
    let drawn = sampler.sample(context(), &options, &job, &mut |_| Ok(())).unwrap();
    assert!(drawn.len() == 3 * LEN && drawn.iter().all(|v| (-1.0..=1.0).contains(v)));
    let one =
        SampleJob { count: 1, labels: &labels[..1], low_res: Some(&low_res[..SMALL_LEN]), ..job };
    let alone = sampler.sample(context(), &options, &one, &mut |_| Ok(())).unwrap();
    assert!(bits(&alone) == bits(&drawn[..LEN]), "a padded batch changes an image");
}

fn sampler(needs: SamplingNeeds) -> SamplingLoop {
    let wiring = SamplingGraph::new(&upsampler(), 3, needs).unwrap();
    let plan = wiring.plan(&context().gpu.caps).unwrap();
    let params = &wiring.graph.params;
    let flat = upload(&plan, params, &dense(params, "sr."));
    let weights = (&flat, FlatKind::Weights);
    SamplingLoop::compile(context(), wiring, plan, &short(6), weights, None).unwrap()
}

#[test]
fn an_image_follows_its_own_small_image() {
    let plain = sampler(SamplingNeeds::default());
    let needs = SamplingNeeds { classifier_free: true, ..Default::default() };
    let free = sampler(needs);
    let low_res = values(8, 3 * SMALL_LEN);
    let mut changed = low_res.clone();
    changed[SMALL_LEN..2 * SMALL_LEN].iter_mut().for_each(|v| *v = -*v);
    let draw = |sampler: &SamplingLoop, kind, guidance_weight, low_res: &[f32]| {
        let options = SampleOptions { sampler: kind, guidance_weight, ..Default::default() };
        let job = SampleJob {
            count: 3,
            labels: &[1, 0, 1],
            low_res: Some(low_res),
            ..Default::default()
        };
        sampler.sample(context(), &options, &job, &mut |_| Ok(())).unwrap()
    };
    for kind in [DDIM, Sampler::Ddpm] {
        let want = draw(&plain, kind, 1.0, &low_res);
        for (sampler, weight) in [(&plain, 1.0), (&free, 2.0)] {
            let (a, b) =
                (draw(sampler, kind, weight, &low_res), draw(sampler, kind, weight, &changed));
            for i in 0..3 {
                let same = a[i * LEN..][..LEN] == b[i * LEN..][..LEN];
                assert_eq!(same, i != 1, "{kind:?}, weight {weight}: image {i}");
            }
        }
        // Both evaluations of guidance without a classifier see it.
        let error = rel_err(&draw(&free, kind, 1.0, &low_res), &want);
        assert!(error < 1e-4, "{kind:?}: {error:.1e}");
        assert!(rel_err(&draw(&free, kind, 2.0, &low_res), &want) > 1e-2);
    }
}
