//! Runs in half precision: they learn what runs in 32 bits learn, and a loss
//! scale that is too large is no divergence.

mod common;
mod harness;
mod tiny;

use demist::checkpoint::{DataInfo, NetworkInfo, Tensor, read_network};
use demist::data::{DataOptions, Dataset};
use demist::diffusion::{DiffusionConfig, LossType, VarType};
use demist::model::{ModelConfig, UNetConfig};
use demist::output::metrics::Metrics;
use demist::recipe::TrainConfig;
use demist::train::{Event, RunOptions, StopFlag, train};
use std::path::Path;
use std::sync::Arc;
use tiny::{context, encoder, halves, mean, run_options, short, unet};

/// The faces at half their size.
fn faces() -> Arc<Dataset> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/faces16.png");
    let options = DataOptions { image_size: Some(tiny::SIDE), ..Default::default() };
    Arc::new(Dataset::open(&path, &options).unwrap())
}

fn losses(folder: &Path) -> Vec<f64> {
    Metrics::read(&folder.join("metrics.csv")).unwrap().column("loss").unwrap()
}

/// The losses of a run's steps, and how often it was told that something is
/// not finite.
fn run(
    data: Arc<Dataset>,
    info: NetworkInfo,
    options: &RunOptions,
) -> demist::Result<(Vec<f64>, usize)> {
    let mut warnings = 0;
    let mut on_event = |event: Event| {
        warnings += usize::from(matches!(event, Event::NotFinite { .. }));
        Ok(())
    };
    train(context(), data, info, options, &StopFlag::default(), &mut on_event)?;
    Ok((losses(options.folder.as_ref().unwrap()), warnings))
}

#[test]
fn half_precision_learns_the_same() {
    let data = faces();
    let diffusion = DiffusionConfig {
        var_type: VarType::LearnedRange,
        loss_type: LossType::RescaledMse,
        ..Default::default()
    };
    let model = UNetConfig {
        channel_mult: vec![1.0, 1.0],
        num_classes: Some(data.classes().len()),
        out_channels: 6,
        ..unet()
    };
    let both = [false, true].map(|half| {
        let root = tempfile::tempdir().unwrap();
        let training = TrainConfig {
            batch_size: 8,
            micro_batch: 8,
            lr: 2e-3,
            steps: 40,
            half,
            ..Default::default()
        };
        let mut info = tiny::info(ModelConfig::UNet(model.clone()), diffusion.clone(), training);
        info.data = DataInfo {
            classes: data.classes().to_vec(),
            images: data.len(),
            source: "faces16".into(),
        };
        let (losses, warnings) = run(data.clone(), info, &run_options(root.path())).unwrap();
        assert_eq!((losses.len(), warnings), (40, 0));
        losses
    });
    let [full, half] = &both;
    let (start, end) = (mean(&full[..5]), mean(&full[30..]));
    assert!(end < 0.7 * start, "nothing is learned: {full:?}");
    let off = (mean(&half[30..]) - end).abs() / end;
    assert!(off < 0.02, "half precision is off by {off:.2e}: {half:?}, {full:?}");
    assert_ne!(full, half);
}

/// From a scale of 2^44 the first twenty steps or so overflow, one row each.
#[test]
fn an_overflowing_scale_is_no_divergence() {
    let models = [ModelConfig::UNet(unet()), ModelConfig::Encoder(encoder())];
    for model in models {
        let root = tempfile::tempdir().unwrap();
        let training = TrainConfig {
            batch_size: 2,
            micro_batch: 2,
            steps: 1,
            half: true,
            ..Default::default()
        };
        let info = tiny::info(model, short(8), training);
        let options = run_options(root.path());
        run(halves(), info, &options).unwrap();
        let path = root.path().join("state.safetensors");
        let (mut info, mut state) = read_network(&path).unwrap();
        let scale = Tensor::f32([4], [44.0, 1e-3, 1.0, 0.0]).unwrap();
        state.tensors.insert("loss_scale".into(), scale);
        state.write(&path).unwrap();
        info.training.steps = 40;
        let resume = RunOptions { resume: true, ..options };
        let (losses, warnings) = run(halves(), info, &resume).unwrap();
        assert_eq!((losses.len(), warnings), (40, 0));
        assert!(losses.iter().all(|l| l.is_finite()), "{losses:?}");
        let (_, state) = read_network(&path).unwrap();
        let [lg, _, good, skipped] = state.tensors["loss_scale"].to_f32().unwrap()[..] else {
            panic!("four numbers")
        };
        assert_eq!(good + skipped, 40.0);
        assert!(skipped >= 6.0 && good >= 4.0 && lg < 39.0, "{lg} {good} {skipped}");
        // Skipped steps change nothing, so the last of them left these weights.
        let norms = Metrics::read(&root.path().join("metrics.csv")).unwrap();
        let norms = norms.column("grad_norm").unwrap();
        let overflowed = norms.iter().filter(|n| n.is_infinite()).count();
        assert_eq!(overflowed as f32, skipped);
    }
}

#[test]
fn a_run_in_half_precision_that_diverges_stops() {
    let root = tempfile::tempdir().unwrap();
    let training = TrainConfig {
        batch_size: 2,
        micro_batch: 2,
        lr: 1e25,
        steps: 60,
        half: true,
        ..Default::default()
    };
    let info = tiny::info(ModelConfig::UNet(unet()), short(8), training);
    let error = run(halves(), info, &run_options(root.path())).unwrap_err();
    assert!(error.to_string().contains("lower learning rate"), "{error}");
}
