//! The network in assets: small, complete, and drawing faces.

mod harness;

use std::path::Path;

use demist::checkpoint::read_network;
use demist::data::{DataOptions, Dataset};
use demist::diffusion::{ImageSampler, SampleOptions, Sampler, SamplingGraph};
use demist::graph::FlatKind;
use demist::model::parameters;
use demist::runtime::{Context, FlatBuffers};

const NETWORK: &str = "assets/faces16.safetensors";
const FACES: &str = "assets/faces16_test.png";

#[test]
fn the_shipped_network_says_how_it_was_made() {
    let (info, _) = read_network(Path::new(NETWORK)).unwrap();
    assert!(std::fs::metadata(NETWORK).unwrap().len() <= 4_000_000);
    assert_eq!(info.data.classes, ["beard", "glasses", "hat", "long", "short"]);
    assert_eq!(info.model.num_classes, Some(5));
    assert!(info.progress.images_seen >= 10_000, "{:?}", info.progress);
    assert!(info.command.starts_with("demist train assets/faces16.png"), "{}", info.command);
    assert_eq!(info.holds, "ema");
    assert!(!info.device.is_empty());
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
    let wiring = SamplingGraph::new(&info.model, EACH, false, false).unwrap();
    let plan = wiring.plan(&gpu.caps).unwrap();
    let params = &wiring.graph.params;
    let flat = FlatBuffers::new(gpu, &plan.params, &[FlatKind::Weights]).unwrap();
    let values = parameters(params, &file, "").unwrap();
    flat.write(gpu, FlatKind::Weights, params, &values).unwrap();
    let sampler =
        ImageSampler::new(ctx, &info.model, &info.diffusion, EACH, &flat, FlatKind::Weights)
            .unwrap();

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
    let options = SampleOptions {
        respacing: "20".into(),
        sampler: Sampler::Ddim { eta: 0.0 },
        clip: true,
        seed: 1,
    };
    for class in 0..classes {
        let labels = [class; EACH];
        let drawn = sampler.sample(ctx, &options, 0, &labels, EACH, &mut |_, _| Ok(())).unwrap();
        assert!(drawn.iter().all(|v| v.abs() <= 1.0));
        let distances: Vec<f32> = means.iter().map(|m| mse(&mean(&drawn, len), m)).collect();
        // Beards and short hair have almost the same mean face.
        let nearest = distances.iter().copied().fold(f32::INFINITY, f32::min);
        let name = &info.data.classes[class as usize];
        assert!(distances[class as usize] <= 1.5 * nearest, "{name}: {distances:?}");
        assert!(distances[class as usize] < 0.05, "{name}: {distances:?}");
    }
}
