//! The networks in assets: small, complete, and good at what they are for.

mod harness;

use std::path::Path;

use demist::checkpoint::{Holds, parameters, read_network};
use demist::data::{DataOptions, Dataset};
use demist::diffusion::{
    SampleJob, SampleOptions, SamplingGraph, SamplingLoop, SamplingNeeds, VarType,
};
use demist::engine::graph::FlatKind;
use demist::engine::runtime::{Context, FlatBuffers};
use demist::recipe::TrainConfig;
use demist::reference::resize::{ResizeShape, area, bilinear};
use demist::train::{Evaluator, evaluation_params};

const GUIDE: &str = "assets/guide16.safetensors";
const UPSAMPLER: &str = "assets/upsampler16.safetensors";
const NETWORK: &str = "assets/faces16.safetensors";
const FACES: &str = "assets/faces16_test.png";

#[test]
fn the_shipped_network_says_how_it_was_made() {
    let (info, _) = read_network(Path::new(NETWORK)).unwrap();
    assert!(std::fs::metadata(NETWORK).unwrap().len() <= 4_000_000);
    assert_eq!(info.data.classes, ["beard", "glasses", "hat", "long", "short"]);
    assert_eq!(info.model.classes(), Some(5));
    assert!(info.progress.images_seen >= 10_000, "{:?}", info.progress);
    assert!(info.command.starts_with("demist train assets/faces16.png"), "{}", info.command);
    assert_eq!(info.holds, Holds::Weights);
    assert!(!info.device.is_empty());
    assert!(info.model.unet().unwrap().null_class, "it cannot draw without a class");
    assert_eq!(info.diffusion.var_type, VarType::FixedSmall);
    for (path, command) in [(GUIDE, "demist train-classifier"), (UPSAMPLER, "demist train")] {
        let (other, _) = read_network(Path::new(path)).unwrap();
        assert!(std::fs::metadata(path).unwrap().len() <= 4_000_000);
        assert!(other.command.starts_with(&format!("{command} assets/faces16.png")), "{path}");
        assert_eq!(other.diffusion.noise_schedule, info.diffusion.noise_schedule);
    }
}

/// Every `step`-th test face, and its label.
fn test_faces(step: usize) -> (Vec<f32>, Vec<u32>) {
    let faces = Dataset::open(Path::new(FACES), &DataOptions::default()).unwrap();
    let chosen: Vec<usize> = (0..faces.len()).step_by(step).collect();
    let mut pixels = vec![0.0; chosen.len() * faces.image_len()];
    for (i, out) in chosen.iter().zip(pixels.chunks_mut(faces.image_len())) {
        faces.write_floats(*i, Default::default(), out).unwrap();
    }
    (pixels, chosen.iter().map(|i| faces.label(*i)).collect())
}

#[test]
fn the_classifier_recognises_faces_it_never_saw() {
    let (info, file) = read_network(Path::new(GUIDE)).unwrap();
    let (gpu, pipelines) = harness::device();
    let ctx = Context { gpu, pipelines };
    let config =
        TrainConfig { batch_size: 50, micro_batch: 50, noised: false, ..info.training.clone() };
    let (params, layout) =
        evaluation_params(&gpu.caps, &info.model, &info.diffusion, &config).unwrap();
    let flat = FlatBuffers::new(gpu, &layout, &[FlatKind::Weights]).unwrap();
    flat.write(gpu, FlatKind::Weights, &params, &parameters(&params, &file, "").unwrap()).unwrap();
    let evaluator =
        Evaluator::new(ctx, &info.model, &info.diffusion, &config, &flat, FlatKind::Weights)
            .unwrap();
    let (pixels, labels) = test_faces(5);
    let len = pixels.len() / labels.len();
    let fetch = |i: usize, out: &mut [f32]| {
        out.copy_from_slice(&pixels[i * len..(i + 1) * len]);
        Ok(labels[i])
    };
    let evaluation = evaluator.run(ctx, labels.len(), &fetch, &mut |_| Ok(())).unwrap();
    let accuracy = evaluation.term("acc@1").unwrap().total;
    assert!(accuracy >= 0.87, "{accuracy} of {} clean faces", labels.len());
}

#[test]
fn the_upsampler_beats_bilinear_interpolation() {
    let (info, file) = read_network(Path::new(UPSAMPLER)).unwrap();
    let (gpu, pipelines) = harness::device();
    let ctx = Context { gpu, pipelines };
    let (originals, labels) = test_faces(100);
    let count = labels.len();
    let model = info.model.unet().unwrap();
    let [large, small] = [model.image_size, model.small_size.unwrap()];
    let down = ResizeShape { n: count, from: [large; 2], to: [small; 2], c: 3 };
    let low_res = area(&down, &originals);
    let up = ResizeShape { n: count, from: [small; 2], to: [large; 2], c: 3 };
    let plain = bilinear(&up, &low_res);

    let wiring = SamplingGraph::new(model, count, SamplingNeeds::default()).unwrap();
    let plan = wiring.plan(&gpu.caps).unwrap();
    let params = &wiring.graph.params;
    let flat = FlatBuffers::new(gpu, &plan.params, &[FlatKind::Weights]).unwrap();
    flat.write(gpu, FlatKind::Weights, params, &parameters(params, &file, "").unwrap()).unwrap();
    let weights = (&flat, FlatKind::Weights);
    let sampler = SamplingLoop::compile(ctx, wiring, plan, &info.diffusion, weights, None).unwrap();
    let options = SampleOptions { respacing: "5".into(), ..Default::default() };
    let job = SampleJob { count, low_res: Some(&low_res), ..Default::default() };
    let drawn = sampler.sample(ctx, &options, &job, &mut |_| Ok(())).unwrap();
    let (network, interpolated) = (mse(&drawn, &originals), mse(&plain, &originals));
    // At least 3 dB better.
    assert!(network < 0.5 * interpolated, "{network} against {interpolated}");
}

/// Mean image [h, w, c] of bytes or floats that lie in [-1, 1].
fn mean(images: &[f32], len: usize) -> Vec<f32> {
    let n = images.len() / len;
    (0..len).map(|i| images.iter().skip(i).step_by(len).sum::<f32>() / n as f32).collect()
}

fn mse(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f32>() / a.len() as f32
}

/// On average the samples of a class look like that class of faces it never
/// saw, about as much as like the nearest class.
#[test]
fn the_shipped_network_draws_its_classes() {
    const EACH: usize = 8;
    let (info, file) = read_network(Path::new(NETWORK)).unwrap();
    let (gpu, pipelines) = harness::device();
    let ctx = Context { gpu, pipelines };
    let model = info.model.unet().unwrap();
    let wiring = SamplingGraph::new(model, EACH, SamplingNeeds::default()).unwrap();
    let plan = wiring.plan(&gpu.caps).unwrap();
    let params = &wiring.graph.params;
    let flat = FlatBuffers::new(gpu, &plan.params, &[FlatKind::Weights]).unwrap();
    let values = parameters(params, &file, "").unwrap();
    flat.write(gpu, FlatKind::Weights, params, &values).unwrap();
    let sampler =
        SamplingLoop::new(ctx, model, &info.diffusion, EACH, &flat, FlatKind::Weights).unwrap();

    let faces = Dataset::open(Path::new(FACES), &DataOptions::default()).unwrap();
    let len = faces.image_len();
    let class_mean = |class: u32| {
        let mut all = Vec::new();
        for i in (0..faces.len()).filter(|i| faces.label(*i) == class) {
            let mut image = vec![0.0; len];
            faces.write_floats(i, Default::default(), &mut image).unwrap();
            all.extend(image);
        }
        mean(&all, len)
    };
    let classes = info.data.classes.len() as u32;
    let means: Vec<_> = (0..classes).map(class_mean).collect();
    let options = SampleOptions { respacing: "20".into(), seed: 1, ..Default::default() };
    for class in 0..classes {
        let labels = [class; EACH];
        let job = SampleJob { count: EACH, labels: &labels, ..Default::default() };
        let drawn = sampler.sample(ctx, &options, &job, &mut |_| Ok(())).unwrap();
        assert!(drawn.iter().all(|v| v.abs() <= 1.0));
        let distances: Vec<f32> = means.iter().map(|m| mse(&mean(&drawn, len), m)).collect();
        // Beards and short hair have almost the same mean face.
        let nearest = distances.iter().copied().fold(f32::INFINITY, f32::min);
        let name = &info.data.classes[class as usize];
        assert!(distances[class as usize] <= 1.5 * nearest, "{name}: {distances:?}");
        assert!(distances[class as usize] < 0.05, "{name}: {distances:?}");
    }
}
