//! Networks, images and runs that take milliseconds, for tests of what is made
//! of whole networks. Needs `mod common` and `mod harness` beside it.

// Each test binary uses its own part.
#![allow(dead_code)]

use crate::{common, harness};
use demist::checkpoint::{DataInfo, Holds, NetworkInfo, Progress, read_network};
use demist::data::{DataOptions, Dataset};
use demist::diffusion::{DiffusionConfig, NoiseSchedule};
use demist::engine::graph::{FlatKind, ParamInfo, Plan};
use demist::engine::runtime::{Context, FlatBuffers};
use demist::model::{EncoderConfig, ModelConfig, Pool, UNetConfig, default_encoder, default_model};
use demist::output::image::save_png;
use demist::recipe::TrainConfig;
use demist::train::RunOptions;
use std::path::Path;
use std::sync::Arc;

/// Side of the images.
pub const SIDE: usize = 8;
/// Values of an image.
pub const LEN: usize = SIDE * SIDE * 3;
/// Classes of [`halves`].
pub const CLASSES: usize = 2;

pub fn context() -> Context<'static> {
    let (gpu, pipelines) = harness::device();
    Context { gpu, pipelines }
}

/// A U-Net of one level for the two classes of [`halves`].
pub fn unet() -> UNetConfig {
    UNetConfig {
        channel_mult: vec![1.0],
        num_classes: Some(CLASSES),
        attention_resolutions: Vec::new(),
        dropout: 0.0,
        ..default_model(SIDE)
    }
}

/// A classifier of two levels for the same.
pub fn encoder() -> EncoderConfig {
    EncoderConfig {
        channel_mult: vec![1.0, 1.0],
        attention_resolutions: Vec::new(),
        pool: Pool::Attention,
        dropout: 0.0,
        ..default_encoder(SIDE, 3, CLASSES)
    }
}

/// A process of so few steps that all of them are quickly taken.
pub fn short(steps: usize) -> DiffusionConfig {
    DiffusionConfig {
        diffusion_steps: steps,
        noise_schedule: NoiseSchedule::Cosine,
        ..Default::default()
    }
}

/// 32 images of two classes: bright on the left, or on the right; all differ.
pub fn halves() -> Arc<Dataset> {
    const EACH: usize = 16;
    // Twice as large as they are used, so that random crops find detail.
    const CELL: usize = 2 * SIDE;
    let folder = tempfile::tempdir().unwrap();
    let width = 2 * EACH * CELL;
    let noise = common::hash_u("halves", CELL * width * 3);
    let pixel = |i: usize, u: &f32| {
        let x = i / 3 % width;
        let (right, class) = (x % CELL >= CELL / 2, x / CELL >= EACH);
        let base = if right == class { 190.0 } else { 65.0 };
        (base + 60.0 * u) as u8
    };
    let pixels: Vec<u8> = noise.iter().enumerate().map(|(i, u)| pixel(i, u)).collect();
    let path = folder.path().join("halves.png");
    save_png(&path, &pixels, width, CELL, 3, &[]).unwrap();
    let json = format!(
        r#"{{"size": {CELL}, "cols": {}, "channels": 3, "classes": [
            {{"name": "left", "count": {EACH}}}, {{"name": "right", "count": {EACH}}}]}}"#,
        2 * EACH
    );
    std::fs::write(path.with_extension("json"), json).unwrap();
    let options = DataOptions { image_size: Some(SIDE), ..Default::default() };
    Arc::new(Dataset::open(&path, &options).unwrap())
}

/// The first `count` images in an order that alternates the classes, and their
/// labels.
pub fn batch(count: usize) -> (Vec<f32>, Vec<u32>) {
    let data = halves();
    let (mut images, mut labels) = (vec![0.0; count * LEN], Vec::new());
    for (i, image) in images.chunks_mut(LEN).enumerate() {
        let at = (i / 2 + i % 2 * data.len() / 2) % data.len();
        data.write_floats(at, Default::default(), image).unwrap();
        labels.push(data.label(at));
    }
    (images, labels)
}

/// What a run on [`halves`] says about itself.
pub fn info(model: ModelConfig, diffusion: DiffusionConfig, training: TrainConfig) -> NetworkInfo {
    NetworkInfo {
        model,
        diffusion,
        data: DataInfo {
            classes: vec!["left".into(), "right".into()],
            images: 32,
            source: "halves".into(),
        },
        training,
        progress: Progress::default(),
        holds: Holds::State,
        command: "test".into(),
        device: context().gpu.summary.name.clone(),
        version: "0".into(),
    }
}

/// A new run in `folder` that logs every step and neither saves, evaluates nor
/// draws on the way.
pub fn run_options(folder: &Path) -> RunOptions {
    RunOptions {
        log_every: 1,
        save_every: 0,
        sample_every: 0,
        eval_every: 0,
        ..RunOptions::new(folder)
    }
}

/// Values under which every layer matters.
pub fn dense(params: &[ParamInfo], salt: &str) -> Vec<Vec<f32>> {
    let value = |p: &ParamInfo| p.to_device(&common::weight(salt, &p.name, &p.file_shape()));
    params.iter().map(value).collect()
}

/// Buffers with `values` for inference of a plan.
pub fn upload(plan: &Plan, params: &[ParamInfo], values: &[Vec<f32>]) -> FlatBuffers {
    let gpu = context().gpu;
    let flat = FlatBuffers::inference(gpu, &plan.params).unwrap();
    flat.write(gpu, FlatKind::Weights, params, values).unwrap();
    flat
}

pub fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// All tensors of a file as bits.
pub fn file_bits(path: &Path) -> Vec<(String, Vec<u32>)> {
    let (_, file) = read_network(path).unwrap();
    let tensors = file.tensors.iter();
    tensors.map(|(name, t)| (name.clone(), bits(&t.to_f32().unwrap()))).collect()
}

pub fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}
