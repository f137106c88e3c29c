//! Every preset against the parameter list of the published network it names:
//! `checkpoints/NAME.tsv` holds the names and shapes of the released file, one
//! "name TAB 3x4x5" a line, in the order of its state_dict.

use demist::diffusion::{SamplingGraph, SamplingNeeds};
use demist::engine::caps::Caps;
use demist::engine::graph::{DType, Graph};
use demist::model::{UNetInputs, build, build_encoder, encoder_preset, preset, preset_names};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Parameters of the released networks, counted on the reference's own modules
/// (the classifiers': the sum of their lists).
const COUNTS: [(&str, usize); 19] = [
    ("64x64_diffusion", 295_904_454),
    ("128x128_diffusion", 421_529_606),
    ("256x256_diffusion", 553_838_086),
    ("256x256_diffusion_uncond", 552_814_086),
    ("lsun_bedroom_cat_horse", 552_814_086),
    ("512x512_diffusion", 558_997_638),
    ("64x64_classifier", 65_438_568),
    ("128x128_classifier", 42_568_040),
    ("256x256_classifier", 54_096_360),
    ("512x512_classifier", 54_448_360),
    ("64_256_upsampler", 311_795_910),
    ("128_512_upsampler", 308_835_270),
    ("iddpm_imagenet64_uncond_100M", 121_063_942),
    ("iddpm_cifar10_50M", 52_546_438),
    ("iddpm_imagenet64_cond_270M", 273_049_350),
    ("iddpm_upsample_256_280M", 279_792_390),
    ("iddpm_lsun_bedroom", 113_676_678),
    ("ddpm_cifar10_35M", 35_746_307),
    ("ddpm_lsun256_114M", 113_673_219),
];

/// Names and shapes, as a file lists them.
type Listed = Vec<(String, Vec<usize>)>;

fn folder() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/checkpoints"))
}

fn listed(name: &str) -> Listed {
    let path = folder().join(format!("{name}.tsv"));
    let text = std::fs::read_to_string(&path)
        .unwrap_or_else(|e| panic!("{name} has no parameter list, {}: {e}", path.display()));
    let parse = |line: &str| {
        let (key, shape) = line.split_once('\t').expect("a name, a tab and a shape");
        (key.to_owned(), shape.split('x').map(|n| n.parse().expect("an extent")).collect())
    };
    text.lines().filter(|line| !line.is_empty()).map(parse).collect()
}

/// The network's graph for one image.
fn graph(name: &str) -> Graph {
    let mut g = Graph::new();
    let t = g.input("t", &[1], DType::F32);
    let result = if let Some(c) = encoder_preset(name) {
        let x = g.input("x", &[1, c.image_size, c.image_size, c.in_channels], DType::F32);
        build_encoder(&c, &mut g, x, t, None)
    } else {
        let c = preset(name).unwrap_or_else(|| panic!("{name} is listed but unknown"));
        let x = g.input("x", &[1, c.image_size, c.image_size, c.in_channels], DType::F32);
        let y = c.num_classes.map(|_| g.input("y", &[1], DType::U32));
        let small = |s| g.input("low_res", &[1, s, s, c.in_channels], DType::F32);
        let low_res = c.small_size.map(small);
        build(&c, &mut g, UNetInputs { x, t, y, low_res, rng: None })
    };
    result.unwrap_or_else(|e| panic!("{name}: {e}"));
    g
}

fn built(name: &str) -> Listed {
    graph(name).params.iter().map(|p| (p.name.clone(), p.file_shape())).collect()
}

/// The first few differences between what is wanted and what was built.
fn differences(want: &Listed, got: &Listed) -> Vec<String> {
    let wanted: BTreeMap<_, _> = want.iter().cloned().collect();
    let found: BTreeMap<_, _> = got.iter().cloned().collect();
    assert_eq!(wanted.len(), want.len(), "a name is listed twice");
    assert_eq!(found.len(), got.len(), "a parameter's name is used twice");
    let names: BTreeSet<_> = wanted.keys().chain(found.keys()).collect();
    let differing = names.into_iter().filter(|n| wanted.get(*n) != found.get(*n));
    differing
        .map(|n| format!("{n}: listed {:?}, built {:?}", wanted.get(n), found.get(n)))
        .take(8)
        .collect()
}

#[test]
fn every_preset_has_the_names_and_shapes_of_its_file() {
    for name in preset_names() {
        let (want, got) = (listed(name), built(name));
        let faults = differences(&want, &got);
        assert!(faults.is_empty(), "{name}:\n{}", faults.join("\n"));
        // Tensors are found by name, so the order is free; it is told, not judged.
        if let Some(i) = want.iter().zip(&got).position(|(a, b)| a.0 != b.0) {
            println!("{name}: the order differs from {i} on: {} | {}", want[i].0, got[i].0);
        }
    }
}

#[test]
fn every_list_has_a_preset() {
    let lists: BTreeSet<String> = std::fs::read_dir(folder())
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|e| e == "tsv"))
        .map(|path| path.file_stem().unwrap().to_str().unwrap().to_owned())
        .collect();
    let presets: BTreeSet<String> = preset_names().iter().map(|n| n.to_string()).collect();
    assert_eq!(lists, presets);
    assert!(preset("no such network").is_none() && encoder_preset("no such network").is_none());
}

#[test]
fn parameter_counts_are_the_published_ones() {
    let counted: BTreeSet<_> = COUNTS.iter().map(|c| c.0).collect();
    assert_eq!(counted, preset_names().iter().copied().collect());
    for (name, count) in COUNTS {
        let total: usize = graph(name).params.iter().map(|p| p.len()).sum();
        assert_eq!(total, count, "{name}");
    }
}

#[test]
fn adm_at_256_pixels_plans_below_5_gib_within_default_limits() {
    // No device is opened: the limits are those that every WebGPU device has.
    let model = preset("256x256_diffusion").unwrap();
    let wiring = SamplingGraph::new(&model, 1, SamplingNeeds::default()).unwrap();
    let plan = wiring.plan(&Caps::default()).unwrap();
    let report = plan.report();
    let total = report.slots + report.pinned + report.params;
    assert!(total < 5 << 30, "{report:?}");
    // One copy of the parameters and the live activations are the least.
    assert!(report.params >= 4 * 553_838_086, "{report:?}");
    assert!(report.slots >= report.lower_bound, "{report:?}");
    // Multiply-adds of the reference, an image forward: 1119.83 G.
    let gmac = report.flops as f64 / 2e9;
    assert!((gmac / 1119.83 - 1.0).abs() < 0.02, "{gmac} GMAC");
}
