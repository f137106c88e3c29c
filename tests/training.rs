//! Training as a whole: it learns, computes the same bits twice and across a
//! stop, and gives the same gradients however a batch is cut up or recomputed.

mod common;
mod harness;

use common::rel_err;
use demist::checkpoint::{DataInfo, Holds, NetworkInfo, Progress, read_network};
use demist::data::{DataOptions, Dataset};
use demist::diffusion::{DiffusionConfig, MeanType, NoiseSchedule};
use demist::engine::graph::FlatKind;
use demist::engine::runtime::Context;
use demist::model::{ModelConfig, UNetConfig, initialise};
use demist::output::metrics::Metrics;
use demist::recipe::TrainConfig;
use demist::train::{
    Event, MicroBatch, Noise, RunOptions, StopFlag, TrainOutcome, TrainStep, train,
};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

const SIZE: usize = 16;
const PIXELS: usize = SIZE * SIZE * 3;

fn context() -> Context<'static> {
    let (gpu, pipelines) = harness::device();
    Context { gpu, pipelines }
}

fn faces() -> Arc<Dataset> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/faces16.png");
    Arc::new(Dataset::open(&path, &DataOptions::default()).unwrap())
}

/// A network for 16x16 faces, as small as group norm allows.
fn network(channel_mult: &[f64]) -> UNetConfig {
    UNetConfig {
        image_size: SIZE,
        model_channels: 32,
        num_res_blocks: 1,
        attention_resolutions: Vec::new(),
        channel_mult: channel_mult.to_vec(),
        num_classes: Some(5),
        num_heads: 2,
        use_scale_shift_norm: true,
        ..Default::default()
    }
}

/// `count` faces, evenly spread over the classes, and their labels.
fn batch(count: usize) -> (Vec<f32>, Vec<u32>) {
    let faces = faces();
    let mut images = vec![0.0; count * PIXELS];
    let mut labels = Vec::new();
    for (i, image) in images.chunks_mut(PIXELS).enumerate() {
        let at = i * faces.len() / count;
        faces.write_floats(at, Default::default(), image).unwrap();
        labels.push(faces.label(at));
    }
    (images, labels)
}

/// One whole batch as step `number`, with the noise and timesteps it draws.
fn step_on(step: &TrainStep, config: &TrainConfig, number: u64, images: &[f32], labels: &[u32]) {
    let first = number * config.batch_size as u64;
    let n = config.micro_batch;
    for part in 0..config.micro_batches() {
        let first = first + (part * n) as u64;
        let timesteps: Vec<usize> =
            (first..first + n as u64).map(|i| step.draw_timestep(number, i)).collect();
        let micro = MicroBatch {
            images: &images[part * n * PIXELS..][..n * PIXELS],
            labels: &labels[part * n..][..n],
            timesteps: &timesteps,
            importance: &[],
            first,
            noise: None,
        };
        step.micro_step(context(), number, part, &micro).unwrap();
    }
}

fn new_step(model: &UNetConfig, diffusion: &DiffusionConfig, config: &TrainConfig) -> TrainStep {
    TrainStep::new(context(), &ModelConfig::UNet(model.clone()), diffusion, config, Noise::Drawn)
        .unwrap()
}

/// Sum over the steps since the last call of the mean loss over their `batch`
/// images, and the last gradient norm.
fn take_loss(step: &TrainStep, batch: usize) -> (f64, f64) {
    let (terms, norm) = step.take_terms(context()).unwrap();
    (terms.iter().filter(|t| t.trained).map(|t| t.total).sum::<f64>() / batch as f64, norm)
}

fn write(step: &TrainStep, values: &[Vec<f32>]) {
    for kind in [FlatKind::Weights, FlatKind::Ema(0)] {
        step.flat().write(context().gpu, kind, &step.graph().params, values).unwrap();
    }
}

fn read(step: &TrainStep, kind: FlatKind) -> Vec<Vec<f32>> {
    step.flat().read(context().gpu, kind, &step.graph().params).unwrap()
}

/// Weights that are nowhere zero, so that every gradient is at work.
fn dense_weights(step: &TrainStep) -> Vec<Vec<f32>> {
    let params = &step.graph().params;
    params
        .iter()
        .map(|p| p.to_device(&common::weight("training.", &p.name, &p.file_shape())))
        .collect()
}

fn bits(values: &[Vec<f32>]) -> Vec<u32> {
    values.iter().flatten().map(|v| v.to_bits()).collect()
}

/// Gradients of one step with nowhere zero weights on the same eight faces.
fn gradients(model: &UNetConfig, config: &TrainConfig) -> (TrainStep, Vec<Vec<f32>>) {
    let step = new_step(model, &DiffusionConfig::default(), config);
    write(&step, &dense_weights(&step));
    let (images, labels) = batch(config.batch_size);
    step_on(&step, config, 3, &images, &labels);
    let grads = read(&step, FlatKind::Grads);
    (step, grads)
}

fn with_dropout(model: UNetConfig) -> UNetConfig {
    UNetConfig { dropout: 0.2, ..model }
}

fn batch_of(batch_size: usize, micro_batch: usize) -> TrainConfig {
    TrainConfig { batch_size, micro_batch, ..Default::default() }
}

/// One fixed batch of 8 faces, predicting x_0, under the cosine schedule; each
/// face has a label of its own, so that it can be told from pure noise. Noise
/// and timesteps (uniform over all 1000) are drawn anew for every step. What is
/// compared is the mean over the last 20 steps of the batch's mean squared
/// error: a single step's depends much on the timesteps it drew.
#[test]
fn overfits_one_batch() {
    const STEPS: u64 = 180;
    const WINDOW: u64 = 20;
    let model = UNetConfig { num_classes: Some(8), ..network(&[1.0, 1.0]) };
    let diffusion = DiffusionConfig {
        mean_type: MeanType::XStart,
        noise_schedule: NoiseSchedule::Cosine,
        ..Default::default()
    };
    let config = TrainConfig { lr: 3e-3, lr_warmup: 10, ..batch_of(8, 8) };
    let step = new_step(&model, &diffusion, &config);
    write(&step, &initialise(&step.graph().params, 1));
    let (images, _) = batch(8);
    let labels: Vec<u32> = (0..8).collect();
    let mut loss = f64::INFINITY;
    for number in 0..STEPS {
        step_on(&step, &config, number, &images, &labels);
        step.update(context(), number).unwrap();
        if (number + 1) % WINDOW == 0 {
            loss = take_loss(&step, 8).0 / WINDOW as f64;
        }
    }
    assert!(loss < 0.02, "the mean squared error is still {loss:.4} after {STEPS} steps");
}

#[test]
fn the_same_seed_gives_the_same_bits() {
    let model = with_dropout(network(&[1.0]));
    let run = |seed: u64| {
        let config = TrainConfig { seed, ..batch_of(4, 4) };
        let step = new_step(&model, &DiffusionConfig::default(), &config);
        write(&step, &initialise(&step.graph().params, 0));
        let (images, labels) = batch(4);
        for number in 0..4 {
            step_on(&step, &config, number, &images, &labels);
            step.update(context(), number).unwrap();
        }
        [FlatKind::Weights, FlatKind::Ema(0)].map(|kind| bits(&read(&step, kind)))
    };
    let first = run(7);
    assert!(first == run(7), "two runs of one seed differ");
    assert!(first != run(8), "the seed has no effect");
}

/// A run on faces with dropout and so few timesteps that a sample grid is quick.
fn info(training: TrainConfig) -> NetworkInfo {
    let faces = faces();
    NetworkInfo {
        model: ModelConfig::UNet(with_dropout(network(&[1.0]))),
        diffusion: DiffusionConfig {
            diffusion_steps: 6,
            noise_schedule: NoiseSchedule::Cosine,
            ..Default::default()
        },
        data: DataInfo {
            classes: faces.classes().to_vec(),
            images: faces.len(),
            source: "faces16".into(),
        },
        training,
        progress: Progress::default(),
        holds: Holds::State,
        command: "test".into(),
        device: context().gpu.summary.name.clone(),
        version: "0".into(),
    }
}

fn run_options(folder: &Path) -> RunOptions {
    RunOptions {
        resume: true,
        log_every: 1,
        save_every: 0,
        sample_every: 0,
        ..RunOptions::new(folder)
    }
}

/// Runs `train` on faces in `folder` until `steps`; `stop_at` sets the stop
/// flag after that step.
fn train_in(
    folder: &Path,
    steps: u64,
    options: impl Fn(RunOptions) -> RunOptions,
    stop_at: Option<u64>,
) -> TrainOutcome {
    let training = TrainConfig { lr_warmup: 3, flip: true, steps, ..batch_of(4, 2) };
    let options = options(run_options(folder));
    let stop = StopFlag::default();
    let flag = stop.clone();
    let mut on_event = |event: Event| {
        if matches!(event, Event::Step { step, .. } if Some(step) == stop_at) {
            flag.set();
        }
        Ok(())
    };
    train(context(), faces(), info(training), &options, &stop, &mut on_event).unwrap()
}

/// All tensors of a file as bits.
fn file_bits(folder: &Path, name: &str) -> Vec<(String, Vec<u32>)> {
    let (_, file) = read_network(&folder.join(name)).unwrap();
    let tensors = file.tensors.iter();
    tensors
        .map(|(name, t)| {
            (name.clone(), t.to_f32().unwrap().iter().map(|v| v.to_bits()).collect::<Vec<_>>())
        })
        .collect()
}

/// Six steps at once, with saves and samples in between, against the same six
/// with three stops: by the flag, by the time limit and by the number of steps.
#[test]
fn a_stopped_and_resumed_run_computes_the_same_bits() {
    let root = tempfile::tempdir().unwrap();
    let (straight, stopped) = (root.path().join("straight"), root.path().join("stopped"));
    let fresh = |o| RunOptions { resume: false, ..o };

    let sampling = |o| RunOptions { save_every: 2, sample_every: 3, ..fresh(o) };
    let whole = train_in(&straight, 6, sampling, None);
    assert!(!whole.interrupted);
    assert!(straight.join("samples/step_0000003.png").exists(), "no grid was drawn");

    let first = train_in(&stopped, 6, fresh, Some(2));
    assert!(first.interrupted);
    assert_eq!((first.progress.step, first.progress.images_seen), (2, 8));
    let no_time = |o| RunOptions { time_limit: Some(Duration::ZERO), ..o };
    assert_eq!(train_in(&stopped, 6, no_time, None).progress, first.progress);
    assert_eq!(train_in(&stopped, 4, |o| o, None).progress.step, 4);
    let last = train_in(&stopped, 6, |o| o, None);
    assert_eq!(last.progress, whole.progress);

    let state = file_bits(&straight, "state.safetensors");
    for prefix in ["weights.", "ema.", "exp_avg.", "exp_avg_sq."] {
        let mut tensors = state.iter().filter(|(name, _)| name.starts_with(prefix));
        let moved = |(_, v): &(String, Vec<u32>)| v.iter().any(|v| *v != 0);
        assert!(tensors.any(moved), "the state holds no {prefix} other than zero");
    }
    let resumed = file_bits(&stopped, "state.safetensors");
    assert_eq!(state.len(), resumed.len());
    for ((name, a), (_, b)) in state.iter().zip(&resumed) {
        assert!(a == b, "{name} differs after the resumed run");
    }
    assert!(
        file_bits(&straight, "network.safetensors") == file_bits(&stopped, "network.safetensors")
    );
    let metrics = |folder: &Path| {
        let m = Metrics::read(&folder.join("metrics.csv")).unwrap();
        let steps: Vec<u64> = m.rows.iter().map(|r| r.step).collect();
        (steps, m.column("loss").unwrap(), m.column("images").unwrap())
    };
    assert_eq!(metrics(&straight), metrics(&stopped));
    assert_eq!(metrics(&straight).0, [1, 2, 3, 4, 5, 6]);
}

/// Noise, timesteps and dropout belong to an image, not to its micro-batch.
#[test]
fn micro_batches_add_up_to_the_batch() {
    let model = with_dropout(network(&[1.0, 2.0]));
    let (whole, want) = gradients(&model, &batch_of(8, 8));
    let (parts, got) = gradients(&model, &batch_of(8, 4));
    let flat = |v: &[Vec<f32>]| v.concat();
    let error = rel_err(&flat(&got), &flat(&want));
    assert!(error <= 1e-5, "the gradients differ by {error:.1e}");
    let size = flat(&want).iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    for ((p, got), want) in whole.graph().params.iter().zip(&got).zip(&want) {
        // Gradients that cancel (a bias ahead of a norm) are rounding noise.
        let norm = want.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        let error = rel_err(got, want) * norm / norm.max(1e-4 * size);
        assert!(error <= 1e-4, "the gradient of {} differs by {error:.1e}", p.name);
    }
    let loss = |step: &TrainStep| take_loss(step, 4).0;
    let (whole, parts) = (loss(&whole), loss(&parts));
    assert!((whole - parts).abs() <= 1e-5 * whole, "losses {whole} and {parts}");
}

#[test]
fn recomputation_saves_memory_and_changes_no_gradient() {
    for model in [network(&[1.0, 2.0]), with_dropout(network(&[1.0, 2.0]))] {
        let dropout = model.dropout;
        let (plain, want) = gradients(&model, &batch_of(4, 4));
        let recomputing = UNetConfig { use_checkpoint: true, ..model };
        let (checkpointed, got) = gradients(&recomputing, &batch_of(4, 4));
        assert!(
            bits(&got) == bits(&want),
            "the gradients differ by {:.1e} at dropout {dropout}",
            rel_err(&got.concat(), &want.concat())
        );
        let slots = |step: &TrainStep| step.plan().report().slots;
        let (less, more) = (slots(&checkpointed), slots(&plain));
        // What Winograd's convolutions hold between their transforms is not saved.
        assert!(less * 5 < more * 4, "{less} bytes of slots with recomputation, {more} without");
    }
}

#[test]
fn a_gradient_that_is_not_finite_skips_the_update() {
    let config = batch_of(2, 2);
    let step = new_step(&network(&[1.0]), &DiffusionConfig::default(), &config);
    write(&step, &dense_weights(&step));
    let state = || {
        let kinds = [FlatKind::Weights, FlatKind::Ema(0), FlatKind::ExpAvg, FlatKind::ExpAvgSq];
        kinds.map(|kind| read(&step, kind))
    };
    let (images, labels) = batch(2);
    step_on(&step, &config, 0, &images, &labels);
    step.update(context(), 0).unwrap();
    let before = state();
    take_loss(&step, 2);
    for (number, poison) in [(1, f32::NAN), (2, f32::INFINITY), (3, 1e36)] {
        let mut images = images.clone();
        images[PIXELS + 7] = poison;
        step_on(&step, &config, number, &images, &labels);
        step.update(context(), number).unwrap();
        let (_, norm) = take_loss(&step, 2);
        assert!(!norm.is_finite(), "{poison}: the norm is {norm}");
        for (now, before) in state().iter().zip(&before) {
            assert!(bits(now) == bits(before), "a pixel of {poison} changed the state");
        }
    }
    step_on(&step, &config, 4, &images, &labels);
    step.update(context(), 4).unwrap();
    let (loss, norm) = take_loss(&step, 2);
    assert!(loss.is_finite() && norm.is_finite(), "loss {loss}, norm {norm}");
    for (now, before) in state().iter().zip(&before) {
        assert!(bits(now) != bits(before), "nothing is learned afterwards");
        assert!(now.iter().flatten().all(|v| v.is_finite()));
    }
}

#[test]
fn a_run_that_diverges_stops_with_advice() {
    let root = tempfile::tempdir().unwrap();
    let info = info(TrainConfig { lr: 1e25, steps: 50, ..batch_of(2, 2) });
    let mut warnings = 0;
    let mut on_event = |event: Event| {
        warnings += u32::from(matches!(event, Event::NotFinite { .. }));
        Ok(())
    };
    let options = RunOptions { resume: false, ..run_options(root.path()) };
    let stop = StopFlag::default();
    let error = train(context(), faces(), info, &options, &stop, &mut on_event).unwrap_err();
    assert!(error.to_string().contains("lower learning rate"), "{error}");
    assert_eq!(warnings, 5);
    assert!(!root.path().join("network.safetensors").exists(), "a broken network was saved");
}

#[test]
fn learning_rate_and_average_follow_their_schedules() {
    let base = TrainConfig { lr: 0.1, steps: 100, ..Default::default() };
    assert_eq!(base.lr_at(0), 0.1);
    assert_eq!(base.lr_at(99), 0.1);
    let warm = TrainConfig { lr_warmup: 10, ..base.clone() };
    assert!((warm.lr_at(0) - 0.01).abs() < 1e-12);
    assert!((warm.lr_at(4) - 0.05).abs() < 1e-12);
    assert_eq!(warm.lr_at(9), 0.1);
    assert_eq!(warm.lr_at(50), 0.1);
    let both = TrainConfig { lr_anneal: true, ..warm };
    assert!((both.lr_at(4) - 0.05 * 0.96).abs() < 1e-12);
    assert!((both.lr_at(50) - 0.05).abs() < 1e-12);
    assert!((both.lr_at(99) - 0.001).abs() < 1e-12);
    assert_eq!(both.lr_at(100), 0.0);

    let average = TrainConfig { ema_rates: vec![0.99], ..base };
    assert_eq!(average.ema_at(0.99, 0), 0.1);
    assert_eq!(average.ema_at(0.99, 10), 0.55);
    // (1 + s) / (10 + s) reaches 0.99 at s = 890.
    assert!(average.ema_at(0.99, 889) < 0.99);
    assert_eq!(average.ema_at(0.99, 891), 0.99);
    assert_eq!(TrainConfig { ema_warmup: false, ..average }.ema_at(0.99, 0), 0.99);
}

#[test]
fn impossible_batches_are_errors() {
    let config = batch_of(2, 2);
    let step = new_step(&network(&[1.0]), &DiffusionConfig::default(), &config);
    let (images, labels) = batch(2);
    let good = || MicroBatch {
        images: &images,
        labels: &labels,
        timesteps: &[0, 999],
        importance: &[],
        first: 0,
        noise: None,
    };
    let run =
        |batch: MicroBatch| step.micro_step(context(), 0, 0, &batch).map_err(|e| e.to_string());
    assert!(run(good()).is_ok());
    let faults = [
        (MicroBatch { timesteps: &[0, 1000], ..good() }, "timestep 1000"),
        (MicroBatch { timesteps: &[0], ..good() }, "8 bytes"),
        (MicroBatch { labels: &[0, 5], ..good() }, "label 5"),
        (MicroBatch { labels: &[0], ..good() }, "labels"),
        (MicroBatch { images: &images[1..], ..good() }, "x0"),
        (MicroBatch { noise: Some(&images), ..good() }, "noise"),
    ];
    for (batch, hint) in faults {
        let error = run(batch).unwrap_err();
        assert!(error.contains(hint), "{error:?} does not mention {hint:?}");
    }
}
