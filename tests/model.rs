//! What the networks' descriptions accept and how they are wired; no device.

use demist::engine::caps::Caps;
use demist::engine::graph::{DType, Graph, Lower, Plan, PlanOptions, TensorId, verify_slots};
use demist::model::{
    EncoderConfig, Pool, UNetConfig, UNetInputs, build, build_encoder, default_encoder,
    default_model, encoder_preset, preset,
};

fn small() -> UNetConfig {
    UNetConfig { num_classes: Some(4), ..default_model(16) }
}

/// Which optional inputs to give.
#[derive(Clone, Copy, Default)]
struct Given {
    labels: bool,
    low_res: Option<[usize; 4]>,
}

/// The graph of `config` for two images, with `recompute` levels.
fn unet(config: &UNetConfig, given: Given, recompute: u32) -> demist::Result<(Graph, TensorId)> {
    let mut g = Graph::new();
    g.recompute_levels = recompute;
    let size = config.image_size;
    let x = g.input("x", &[2, size, size, config.in_channels], DType::F32);
    let t = g.input("t", &[2], DType::F32);
    let y = given.labels.then(|| g.input("y", &[2], DType::U32));
    let low_res = given.low_res.map(|shape| g.input("low_res", &shape, DType::F32));
    let out = build(config, &mut g, UNetInputs { x, t, y, low_res, rng: None })?;
    Ok((g, out))
}

fn encoder(config: &EncoderConfig) -> demist::Result<(Graph, TensorId)> {
    let mut g = Graph::new();
    let size = config.image_size;
    let x = g.input("x", &[1, size, size, config.in_channels], DType::F32);
    let t = g.input("t", &[1], DType::F32);
    let out = build_encoder(config, &mut g, x, t, None)?;
    Ok((g, out))
}

fn file_shape(g: &Graph, name: &str) -> Vec<usize> {
    g.params.iter().find(|p| p.name == name).unwrap_or_else(|| panic!("no {name}")).file_shape()
}

#[test]
fn impossible_unets_are_named() {
    let cases: [(UNetConfig, &str); 8] = [
        (UNetConfig { null_class: true, num_classes: None, ..small() }, "give num_classes"),
        (UNetConfig { num_classes: Some(0), ..small() }, "num_classes must be at least 1"),
        (UNetConfig { small_size: Some(0), ..small() }, "small_size 0 is not in 1 to"),
        (UNetConfig { small_size: Some(17), ..small() }, "small_size 17 is not in 1 to"),
        (UNetConfig { out_channels: 65, ..small() }, "out_channels 65 is above 64"),
        (UNetConfig { image_size: 18, ..small() }, "cannot be halved 2 times"),
        (UNetConfig { channel_mult: vec![], ..small() }, "has 0 levels"),
        // The decoder's heads alone do not fit.
        (
            UNetConfig { num_head_channels: None, num_heads_upsample: Some(3), ..small() },
            "64 channels do not divide into 3 heads",
        ),
    ];
    for (config, part) in cases {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with("model: ") && message.contains(part), "{message}");
    }
}

#[test]
fn impossible_classifiers_are_named() {
    let fits = default_encoder(16, 3, 10);
    let cases: [(EncoderConfig, &str); 6] = [
        (EncoderConfig { out_channels: 0, ..fits.clone() }, "out_channels must be at least 1"),
        (EncoderConfig { channel_mult: vec![], ..fits.clone() }, "has 0 levels"),
        (EncoderConfig { dropout: 1.0, ..fits.clone() }, "dropout 1 is not in"),
        (
            EncoderConfig { num_head_channels: Some(48), ..fits.clone() },
            "no multiple of num_head_channels",
        ),
        (EncoderConfig { model_channels: 33, ..fits.clone() }, "a multiple of 32"),
        (
            EncoderConfig { image_size: 256, channel_mult: vec![1.0], ..fits.clone() },
            "256x256 positions, at most 128x128",
        ),
    ];
    for (config, part) in cases {
        let message = config.validate().unwrap_err().to_string();
        assert!(message.starts_with("model: ") && message.contains(part), "{message}");
        assert_eq!(encoder(&config).unwrap_err().to_string(), message);
    }
    // More classes than an image may have channels.
    EncoderConfig { out_channels: 21_841, ..fits }.validate().unwrap();
}

#[test]
fn operands_must_be_those_of_the_options() {
    let message = |config: &UNetConfig, given| unet(config, given, 0).unwrap_err().to_string();
    let labels = Given { labels: true, ..Given::default() };
    let plain = UNetConfig { num_classes: None, ..small() };
    assert!(message(&small(), Given::default()).contains("needs labels"));
    assert!(message(&plain, labels).contains("has no classes"));
    let sr = UNetConfig { small_size: Some(4), ..plain.clone() };
    assert!(message(&sr, Given::default()).contains("needs a small image of 4 pixels"));
    for shape in [[2, 5, 5, 3], [1, 4, 4, 3], [2, 4, 4, 1]] {
        let given = Given { low_res: Some(shape), ..Given::default() };
        assert!(message(&sr, given).contains("[2, 4, 4, 3] is needed"));
        assert!(message(&plain, given).contains("only a super-resolution network"));
    }
    let given = Given { low_res: Some([2, 4, 4, 3]), ..Given::default() };
    let (g, _) = unet(&sr, given, 0).unwrap();
    assert_eq!(file_shape(&g, "input_blocks.0.0.weight"), [32, 6, 3, 3]);
}

#[test]
fn no_class_is_one_more_row() {
    let given = Given { labels: true, ..Given::default() };
    for (null_class, rows) in [(false, 4), (true, 5)] {
        let config = UNetConfig { null_class, ..small() };
        let (g, _) = unet(&config, given, 0).unwrap();
        assert_eq!(file_shape(&g, "label_emb.weight"), [rows, 128]);
        assert_eq!(config.label_rows(), Some(rows));
    }
}

/// Scopes and widths of the nodes inside of regions.
fn recomputed(g: &Graph) -> Vec<(String, usize)> {
    let width = |id: TensorId| g.shape(id)[2];
    let nodes = g.nodes.iter().filter(|n| n.region.is_some() && g.shape(n.outputs[0]).len() == 4);
    nodes.map(|n| (n.scope.clone(), width(n.outputs[0]))).collect()
}

#[test]
fn levels_are_recomputed_on_request() {
    let given = Given { labels: true, ..Given::default() };
    for resblock_updown in [true, false] {
        let config = UNetConfig { resblock_updown, ..small() };
        assert!(recomputed(&unet(&config, given, 0).unwrap().0).is_empty());
        let (all, _) = unet(&config, given, 0b111).unwrap();
        let checkpointed = UNetConfig { use_checkpoint: true, ..config.clone() };
        let (same, _) = unet(&checkpointed, given, 0).unwrap();
        assert_eq!(recomputed(&all), recomputed(&same));
        let mut nodes = 0;
        for level in 0..3 {
            let (g, _) = unet(&config, given, 1 << level).unwrap();
            let inside = recomputed(&g);
            let size = 16 >> level;
            assert!(inside.iter().any(|(scope, _)| scope.starts_with("input_blocks")));
            assert!(inside.iter().any(|(scope, _)| scope.starts_with("output_blocks")));
            let middle = inside.iter().any(|(scope, _)| scope.starts_with("middle_block"));
            assert_eq!(middle, level == 2);
            // Blocks between levels count to the larger one.
            assert!(inside.iter().all(|(_, width)| *width == size || 2 * width == size));
            nodes += inside.len();
        }
        assert_eq!(nodes, recomputed(&all).len());
    }
}

#[test]
fn each_level_recomputed_saves_memory() {
    let config = UNetConfig { num_classes: None, ..default_model(64) };
    let slots = |levels| {
        let (mut g, out) = unet(&config, Given::default(), levels).unwrap();
        let shape = g.shape(out).to_vec();
        let seed = g.input("seed", &shape, DType::F32);
        let mut lower = Lower::new(&g, &Caps::default());
        lower.forward(&g).unwrap();
        lower.backward(&g, &[(out, seed)], &[]).unwrap();
        let plan = Plan::new(&g, lower, &[out], PlanOptions::default()).unwrap();
        verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
        plan.report().slots
    };
    let peaks = [0b0000, 0b0001, 0b0011, 0b0111, 0b1111].map(slots);
    assert!(peaks.is_sorted_by(|more, less| more > less), "{peaks:?}");
}

#[test]
fn defaults_are_networks_of_every_size() {
    for size in [1, 4, 8, 16, 20, 28, 32, 48, 64, 96, 128, 256, 512, 1024, 999] {
        default_model(size).validate().unwrap_or_else(|e| panic!("{size}: {e}"));
        let config = default_encoder(size, 1, 10);
        config.validate().unwrap_or_else(|e| panic!("{size}: {e}"));
        let (g, logits) = encoder(&config).unwrap();
        assert_eq!(g.shape(logits), [1, 10]);
    }
}

#[test]
fn spatial_pools_read_the_means_of_every_block() {
    // Stem and blocks of 64x64_classifier at 128, 256, 384 and 512 channels:
    // 1 + 4 of the first, then a resampling one of the level above and four.
    let features = 5 * 128 + (128 + 4 * 256) + (256 + 4 * 384) + (384 + 4 * 512) + 512;
    let base = encoder_preset("64x64_classifier").unwrap();
    for (pool, last) in [(Pool::Spatial, "out.2"), (Pool::SpatialV2, "out.3")] {
        let (g, logits) = encoder(&EncoderConfig { pool, ..base.clone() }).unwrap();
        assert_eq!(file_shape(&g, "out.0.weight"), [2048, features]);
        assert_eq!(file_shape(&g, &format!("{last}.weight")), [1000, 2048]);
        assert_eq!(g.shape(logits), [1, 1000]);
    }
}

#[test]
fn work_bounds_the_arithmetic_of_a_plan() {
    let flops = |(g, out): (Graph, TensorId)| {
        let mut lower = Lower::new(&g, &Caps::default());
        lower.forward(&g).unwrap();
        Plan::new(&g, lower, &[out], PlanOptions::default()).unwrap().report().flops as f64
    };
    let bounds = |name: &str, work: f64, flops: f64| {
        assert!((1.0..20.0).contains(&(work / flops)), "{name}: {work:e} for {flops:e}");
    };
    let base = encoder_preset("128x128_classifier").unwrap();
    for pool in [Pool::Attention, Pool::Adaptive, Pool::Spatial, Pool::SpatialV2] {
        let config = EncoderConfig { pool, ..base.clone() };
        bounds(&format!("{pool:?}"), config.work(), flops(encoder(&config).unwrap()));
    }
    let config = preset("128x128_diffusion").unwrap();
    let given = Given { labels: true, ..Given::default() };
    // The graph is of two images.
    bounds("unet", config.work(), flops(unet(&config, given, 0).unwrap()) / 2.0);
}

#[test]
fn defaults_are_those_of_files() {
    // A file names what has no default; what it leaves out is what `default` says.
    let unet = r#"{"image_size": 64, "in_channels": 3, "model_channels": 128,
        "out_channels": 3, "num_res_blocks": 2, "attention_resolutions": [4, 8],
        "channel_mult": [1, 2, 3, 4]}"#;
    let read: UNetConfig = serde_json::from_str(unet).unwrap();
    assert_eq!(read, UNetConfig::default());
    read.validate().unwrap();
    let encoder =
        unet.replace(r#""out_channels": 3"#, r#""pool": "attention", "out_channels": 1000"#);
    let read: EncoderConfig = serde_json::from_str(&encoder).unwrap();
    assert_eq!(read, EncoderConfig::default());
    read.validate().unwrap();
    assert!(serde_json::from_str::<UNetConfig>("{}").is_err(), "a size has to be given");
}
