//! Training and evaluation of classifiers on two classes that are easily told
//! apart, and the evaluator's own rules.

mod common;
mod harness;
mod tiny;

use common::rel_err;
use demist::Error;
use demist::diffusion::{DiffusionConfig, GuideGraph};
use demist::engine::graph::FlatKind;
use demist::engine::runtime::{CompileOptions, FlatBuffers, Program};
use demist::model::ModelConfig;
use demist::output::metrics::Metrics;
use demist::recipe::TrainConfig;
use demist::train::{
    Evaluation, Evaluator, MicroBatch, Noise, RunOptions, StopFlag, TrainStep, evaluation_params,
    spread, train,
};
use tiny::{LEN, batch, bits, context, dense, encoder, halves, info, run_options, short, unet};

fn classifier() -> ModelConfig {
    ModelConfig::Encoder(encoder())
}

fn config(batch: usize) -> TrainConfig {
    TrainConfig { batch_size: batch, micro_batch: batch, ..Default::default() }
}

#[test]
fn a_classifier_learns_to_tell_the_classes() {
    for noised in [true, false] {
        let root = tempfile::tempdir().unwrap();
        let training =
            TrainConfig { lr: 2e-3, ema_rates: vec![0.7], noised, steps: 1, ..config(8) };
        let mut info = info(classifier(), short(20), training);
        let stop = StopFlag::default();
        let mut options = RunOptions { validation: Some(halves()), ..run_options(root.path()) };
        let mut go = |steps: u64, resume: bool| {
            info.training.steps = steps;
            options.resume = resume;
            let run = train(context(), halves(), info.clone(), &options, &stop, &mut |_| Ok(()));
            run.unwrap().evaluation.unwrap()
        };
        let (before, after) = (go(1, false), go(40, true));
        let of = |e: &Evaluation, name: &str| e.term(name).unwrap().total;
        let (first, last) = (before.loss(), after.loss());
        let accuracy = of(&after, "acc@1");
        // Of noise alone nobody can tell the class.
        let (most, least) = if noised { (0.8, 0.75) } else { (0.2, 0.97) };
        assert!(last < most * first, "noised {noised}: loss {first} to {last}");
        assert!(accuracy >= least && accuracy > of(&before, "acc@1"), "{accuracy}");
        assert_eq!(of(&after, "acc@5"), 1.0, "there are but two classes");
        assert!(of(&after, "cross_entropy") == last, "accuracies are no loss");
        if noised {
            // Little noise is easier.
            let q = after.term("cross_entropy").unwrap().quartiles;
            assert!(q[0] < 0.5 * q[3], "{q:?}");
        }
        let log = Metrics::read(&root.path().join("metrics.csv")).unwrap();
        for name in ["cross_entropy", "cross_entropy_q0", "acc@1", "acc@1_q3", "acc@5_q2"] {
            assert!(log.columns.iter().any(|c| c == name), "{name} is not in {:?}", log.columns);
        }
        let names = ["loss", "cross_entropy"].map(|name| log.column(name).unwrap());
        assert_eq!(names[0], names[1]);
        let accuracy = log.column("acc@1").unwrap();
        assert!(accuracy.iter().all(|a| (0.0..=1.0).contains(a)), "{accuracy:?}");
        // It is no diffusion network: no grid is drawn.
        assert!(!root.path().join("samples").exists());
    }
}

/// The terms of each image of a step.
fn terms(step: &TrainStep, number: u64, timesteps: &[usize]) -> Vec<Vec<f32>> {
    let (images, labels) = batch(4);
    let micro = MicroBatch {
        images: &images,
        labels: &labels,
        timesteps,
        importance: &[],
        first: 4 * number,
        noise: None,
    };
    step.micro_step(context(), number, 0, &micro).unwrap();
    step.image_terms(context()).unwrap().into_iter().map(|(_, v)| v).collect()
}

#[test]
fn clean_training_sees_timestep_0_and_no_noise() {
    let ctx = context();
    let step = |noised: bool| {
        let config = TrainConfig { noised, ..config(4) };
        let diffusion = DiffusionConfig::default();
        let step = TrainStep::new(ctx, &classifier(), &diffusion, &config, Noise::Drawn).unwrap();
        let params = &step.graph().params;
        step.flat().write(ctx.gpu, FlatKind::Weights, params, &dense(params, "clean.")).unwrap();
        step
    };
    let clean = step(false);
    let first = terms(&clean, 0, &[0, 100, 500, 999]);
    let other = terms(&clean, 7, &[999, 3, 3, 3]);
    assert!(first == other, "timestep or noise matter: {first:?}, {other:?}");
    let noised = step(true);
    let early = terms(&noised, 0, &[999; 4]);
    assert!(early != terms(&noised, 0, &[500; 4]), "the timestep does not matter");
    assert!(early != terms(&noised, 1, &[999; 4]), "the noise does not matter");
    assert!(early != first);

    // The clean images at t = 0, through the graph of a guide.
    let (images, labels) = batch(4);
    let graph = GuideGraph::new(&encoder(), 4).unwrap();
    let (plan, _) = graph.plan(&ctx.gpu.caps).unwrap();
    let params = &graph.graph.params;
    let flat = tiny::upload(&plan, params, &dense(params, "clean."));
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).unwrap();
    program.write(ctx.gpu, graph.x, &images).unwrap();
    program.write(ctx.gpu, graph.t, &[0f32; 4]).unwrap();
    program.write(ctx.gpu, graph.labels, &labels).unwrap();
    program.write(ctx.gpu, graph.seed, &[0f32; 4]).unwrap();
    program.run(ctx.gpu).unwrap();
    let loss = program.read(ctx.gpu, &[graph.loss]).unwrap().remove(0);
    let error = rel_err(&first[0], &loss);
    assert!(error < 1e-6, "{error:.1e}: {:?}, {loss:?}", first[0]);
}

#[test]
fn importance_weights_scale_the_gradient_and_the_sums() {
    let ctx = context();
    let config = config(2);
    let diffusion = DiffusionConfig::default();
    let step = TrainStep::new(ctx, &classifier(), &diffusion, &config, Noise::Drawn).unwrap();
    let params = &step.graph().params;
    step.flat().write(ctx.gpu, FlatKind::Weights, params, &dense(params, "clean.")).unwrap();
    let (images, labels) = batch(2);
    let run = |importance: &[f64]| {
        let micro = MicroBatch {
            images: &images,
            labels: &labels,
            timesteps: &[10, 900],
            importance,
            first: 0,
            noise: None,
        };
        step.micro_step(ctx, 0, 0, &micro).unwrap();
        let (terms, _) = step.take_terms(ctx).unwrap();
        let grads = step.flat().read(ctx.gpu, FlatKind::Grads, params).unwrap().concat();
        (terms[0].total, terms[0].quartiles, grads, step.image_losses(ctx).unwrap())
    };
    let (one, two, both) = (run(&[1.0, 0.0]), run(&[0.0, 1.0]), run(&[3.0, 0.5]));
    // The losses of the images carry no weight.
    assert_eq!(one.3, both.3);
    let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-5 * b.abs(), "{a} and {b}");
    close(one.0, one.3[0].into());
    close(both.0, 3.0 * one.0 + 0.5 * two.0);
    close(both.1[0], 3.0 * one.0);
    close(both.1[3], 0.5 * two.0);
    let sum: Vec<f32> = one.2.iter().zip(&two.2).map(|(a, b)| 3.0 * a + 0.5 * b).collect();
    let error = rel_err(&both.2, &sum);
    assert!(error < 1e-5, "{error:.1e}");
    assert!(run(&[]).0 > 0.0);
    let short = MicroBatch {
        images: &images,
        labels: &labels,
        timesteps: &[10, 900],
        importance: &[1.0],
        first: 0,
        noise: None,
    };
    let error = step.micro_step(ctx, 0, 0, &short).unwrap_err().to_string();
    assert!(error.contains("1 importance weights for 2 images"), "{error}");
}

/// An evaluator of a network with fixed weights, and its buffers.
fn evaluator(model: &ModelConfig, batch: usize, seed: u64) -> Evaluator {
    let ctx = context();
    let config = TrainConfig { seed, ..config(batch) };
    let diffusion = DiffusionConfig::default();
    let (params, layout) = evaluation_params(&ctx.gpu.caps, model, &diffusion, &config).unwrap();
    let flat = FlatBuffers::inference(ctx.gpu, &layout).unwrap();
    flat.write(ctx.gpu, FlatKind::Weights, &params, &dense(&params, "evaluate.")).unwrap();
    Evaluator::new(ctx, model, &diffusion, &config, &flat, FlatKind::Weights).unwrap()
}

fn evaluate(evaluator: &Evaluator, images: usize) -> Evaluation {
    let data = halves();
    // The same image for a number, however many are evaluated.
    let fetch = spread(&data, data.len());
    evaluator.run(context(), images, &fetch, &mut |_| Ok(())).unwrap()
}

#[test]
fn an_evaluation_depends_on_its_images_alone() {
    for model in [classifier(), ModelConfig::UNet(unet())] {
        let three = evaluator(&model, 3, 0);
        let want = evaluate(&three, 11);
        assert_eq!(want, evaluate(&three, 11), "two evaluations differ");
        assert_eq!((want.images, want.quartile_images.iter().sum::<usize>()), (11, 11));
        // 11 images leave one, three and five places empty.
        for batch in [4, 7, 16] {
            let got = evaluate(&evaluator(&model, batch, 0), 11);
            assert_eq!(got.quartile_images, want.quartile_images);
            for (got, want) in got.terms.iter().zip(&want.terms) {
                assert_eq!(got.name, want.name);
                let values = |t: &demist::train::TermSum| {
                    std::iter::once(t.total).chain(t.quartiles).collect::<Vec<f64>>()
                };
                let error = rel_err(&values(got), &values(want));
                assert!(error < 1e-5, "batch {batch}: {} is off by {error:.1e}", want.name);
            }
        }
        // Each image adds its own loss.
        let sums: Vec<f64> = (1..=5).map(|n| n as f64 * evaluate(&three, n).loss()).collect();
        assert!(sums.is_sorted_by(|a, b| a < b), "{sums:?}");
        let seeded = evaluate(&evaluator(&model, 3, 1), 11);
        assert!(seeded.loss() != want.loss(), "the seed does not matter");
    }
}

#[test]
fn the_quarters_add_up_to_the_whole() {
    let e = evaluate(&evaluator(&classifier(), 8, 0), 32);
    assert!(e.quartile_images.iter().all(|n| *n > 0), "{:?}", e.quartile_images);
    for term in &e.terms {
        let sum: f64 =
            term.quartiles.iter().zip(e.quartile_images).map(|(mean, n)| mean * n as f64).sum();
        assert!((sum / 32.0 - term.total).abs() < 1e-5, "{term:?}");
    }
    assert_eq!(e.terms.iter().map(|t| t.trained).collect::<Vec<_>>(), [true, false, false]);
    assert!(e.term("mse").is_none());
}

#[test]
fn an_evaluation_can_be_stopped() {
    let evaluator = evaluator(&classifier(), 4, 0);
    let ctx = context();
    let (data, mut done) = (halves(), Vec::new());
    let fetch = spread(&data, 10);
    let mut stop = |images: usize| {
        done.push(images);
        if images == 8 { Err(Error::Config("enough".into())) } else { Ok(()) }
    };
    let error = evaluator.run(ctx, 10, &fetch, &mut stop).unwrap_err().to_string();
    assert!(error.contains("enough") && done == [4, 8], "{error}, {done:?}");
    let broken = |i: usize, _: &mut [f32]| {
        if i == 5 { Err(Error::Data("no such image".into())) } else { Ok(0) }
    };
    let error = evaluator.run(ctx, 10, &broken, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("no such image"), "{error}");
    let odd = |_: usize, out: &mut [f32]| {
        assert_eq!(out.len(), LEN);
        Ok(2)
    };
    let error = evaluator.run(ctx, 1, &odd, &mut |_| Ok(())).unwrap_err().to_string();
    assert!(error.contains("label 2"), "{error}");
    // What was stopped half way leaves nothing behind.
    let again = evaluate(&evaluator, 6).loss();
    let fresh = evaluate(&self::evaluator(&classifier(), 4, 0), 6).loss();
    assert_eq!(bits(&[again as f32]), bits(&[fresh as f32]));
}
