//! Configurations read off names and shapes: every published parameter list must
//! give its network, and lists of our own making theirs.

use demist::Error;
use demist::diffusion::{LossType, NoiseSchedule, VarType, released_diffusion};
use demist::engine::graph::{DType, Graph};
use demist::model::{
    EncoderConfig, Hints, ModelConfig, Pool, Shapes, UNetConfig, UNetInputs, build, default_model,
    infer, match_preset, model_preset, preset, preset_names,
};

fn listed(name: &str) -> Shapes {
    let path = format!("{}/tests/checkpoints/{name}.tsv", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap();
    let parse = |line: &str| {
        let (key, shape) = line.split_once('\t').unwrap();
        (key.to_owned(), shape.split('x').map(|n| n.parse().unwrap()).collect())
    };
    text.lines().filter(|line| !line.is_empty()).map(parse).collect()
}

fn built(config: &UNetConfig) -> Shapes {
    let mut g = Graph::new();
    let side = config.image_size;
    let x = g.input("x", &[1, side, side, config.in_channels], DType::F32);
    let t = g.input("t", &[1], DType::F32);
    let y = config.num_classes.map(|_| g.input("y", &[1], DType::U32));
    build(config, &mut g, UNetInputs { x, t, y, low_res: None, rng: None }).unwrap();
    g.params.iter().map(|p| (p.name.clone(), p.file_shape())).collect()
}

fn unet(shapes: &Shapes, hints: &Hints) -> UNetConfig {
    match infer(shapes, hints).unwrap() {
        ModelConfig::UNet(config) => config,
        ModelConfig::Encoder(config) => panic!("taken for a classifier: {config:?}"),
    }
}

/// The network `name` with its U-Net preset, if it has one.
fn unet_presets() -> impl Iterator<Item = (&'static str, UNetConfig)> {
    preset_names().iter().filter_map(|name| Some((*name, preset(name)?)))
}

#[test]
fn every_published_list_gives_its_preset() {
    let mut seen = 0;
    for (name, preset) in unet_presets() {
        let shapes = listed(name);
        assert!(match_preset(&shapes).contains(&name), "{name}: {:?}", match_preset(&shapes));
        // Told what shapes cannot tell, the rest must be the preset's.
        let hints = Hints {
            image_size: Some(preset.image_size),
            num_heads: preset.num_head_channels.is_none().then_some(preset.num_heads),
            num_head_channels: preset.num_head_channels,
            new_attention_order: preset.use_new_attention_order,
            small_size: preset.small_size,
            num_res_blocks: None,
        };
        let found = unet(&shapes, &hints);
        let expected = UNetConfig { dropout: 0.0, num_heads: found.num_heads, ..preset.clone() };
        assert_eq!(found, expected, "{name}");
        // Without hints the sizes come from the preset that is recognised.
        let found = unet(&shapes, &Hints::default());
        assert_eq!(found.image_size, preset.image_size, "{name}");
        assert_eq!(found.small_size, preset.small_size, "{name}");
        seen += 1;
    }
    assert_eq!(seen, 15);
}

#[test]
fn presets_are_told_apart_as_far_as_shapes_allow() {
    for (name, _) in unet_presets() {
        let mut expected = vec![name];
        // They differ by their dropout.
        if ["256x256_diffusion_uncond", "lsun_bedroom_cat_horse"].contains(&name) {
            expected = vec!["256x256_diffusion_uncond", "lsun_bedroom_cat_horse"];
        }
        assert_eq!(match_preset(&listed(name)), expected, "{name}");
        assert!(model_preset(name).is_some());
    }
    assert!(match_preset(&Shapes::new()).is_empty());
    assert!(match_preset(&built(&default_model(32))).is_empty());
}

/// The released classifiers (reference flags: width 128, depth 2, four at 64
/// pixels; attention at 32, 16 and 8 pixels; 64 channels a head).
#[test]
fn every_classifier_list_gives_its_network() {
    let wide = [1.0, 1.0, 2.0, 2.0, 4.0, 4.0];
    for (size, num_res_blocks, channel_mult) in [
        (64, 4, &[1.0, 2.0, 3.0, 4.0][..]),
        (128, 2, &[1.0, 1.0, 2.0, 3.0, 4.0]),
        (256, 2, &wide),
        (512, 2, &[0.5, 1.0, 1.0, 2.0, 2.0, 4.0, 4.0]),
    ] {
        let name = format!("{size}x{size}_classifier");
        let expected = EncoderConfig {
            image_size: size,
            in_channels: 3,
            model_channels: 128,
            out_channels: 1000,
            num_res_blocks,
            attention_resolutions: [32, 16, 8].map(|side| size / side).to_vec(),
            dropout: 0.0,
            channel_mult: channel_mult.to_vec(),
            conv_resample: true,
            num_heads: 1,
            num_head_channels: Some(64),
            use_scale_shift_norm: true,
            resblock_updown: true,
            use_new_attention_order: false,
            pool: Pool::Attention,
        };
        let found = infer(&listed(&name), &Hints::default()).unwrap();
        let expected = ModelConfig::Encoder(expected);
        assert_eq!(found, expected, "{name}");
        assert_eq!(model_preset(&name), Some(expected));
        assert_eq!(match_preset(&listed(&name)), [&name[..]]);
    }
}

/// Name and shape of a tensor of a head.
type HeadTensor = (&'static str, &'static [usize]);

/// The 64-pixel classifier's list with another head.
fn with_head(head: &[HeadTensor]) -> Shapes {
    let mut shapes = listed("64x64_classifier");
    shapes.retain(|name, _| !name.starts_with("out.2"));
    shapes.extend(head.iter().map(|(name, shape)| ((*name).to_owned(), shape.to_vec())));
    shapes
}

#[test]
fn pools_are_told_apart_by_their_head() {
    let hints = Hints { image_size: Some(64), ..Hints::default() };
    let cases: [(Pool, &[HeadTensor]); 3] = [
        (Pool::Adaptive, &[("out.3.weight", &[7, 512, 1, 1])]),
        (Pool::Spatial, &[("out.0.weight", &[2048, 900]), ("out.2.weight", &[7, 2048])]),
        (
            Pool::SpatialV2,
            &[
                ("out.0.weight", &[2048, 900]),
                ("out.1.weight", &[2048]),
                ("out.3.weight", &[7, 2048]),
            ],
        ),
    ];
    for (pool, head) in cases {
        let shapes = with_head(head);
        let ModelConfig::Encoder(found) = infer(&shapes, &hints).unwrap() else {
            panic!("{pool:?}: no classifier");
        };
        assert_eq!((found.pool, found.out_channels, found.num_res_blocks), (pool, 7, 4));
        // Only the attention pool tells the size of the images.
        let error = infer(&shapes, &Hints::default()).unwrap_err().to_string();
        assert!(error.contains("size of its images"), "{error}");
    }
}

#[test]
fn options_that_shapes_tell_are_found() {
    let base = UNetConfig { num_head_channels: Some(32), ..default_model(16) };
    let one_level = UNetConfig {
        channel_mult: vec![2.0],
        num_res_blocks: 3,
        attention_resolutions: vec![1],
        ..base.clone()
    };
    let cases = [
        ("as it is", base.clone()),
        ("grey", UNetConfig { in_channels: 1, out_channels: 2, ..base.clone() }),
        ("classes", UNetConfig { num_classes: Some(5), ..base.clone() }),
        ("added embedding", UNetConfig { use_scale_shift_norm: false, ..base.clone() }),
        ("convolutions", UNetConfig { resblock_updown: false, ..base.clone() }),
        (
            "plain resampling",
            UNetConfig { resblock_updown: false, conv_resample: false, ..base.clone() },
        ),
        (
            "attention nowhere but in the middle",
            UNetConfig { attention_resolutions: vec![], ..base.clone() },
        ),
        (
            "attention first and last",
            UNetConfig { attention_resolutions: vec![1, 4], num_res_blocks: 2, ..base.clone() },
        ),
        ("odd multipliers", UNetConfig { channel_mult: vec![1.0, 5.0, 3.0], ..base.clone() }),
        ("one level", UNetConfig { resblock_updown: false, conv_resample: false, ..one_level }),
    ];
    for (what, config) in cases {
        let hints = Hints {
            image_size: Some(16),
            num_heads: Some(config.num_heads),
            num_head_channels: config.num_head_channels,
            ..Hints::default()
        };
        let shapes = built(&config);
        let mut found = unet(&shapes, &hints);
        let exact: Vec<usize> = (0..found.channel_mult.len()).map(|l| found.channels(l)).collect();
        let wanted: Vec<usize> =
            (0..config.channel_mult.len()).map(|l| config.channels(l)).collect();
        assert_eq!(exact, wanted, "{what}");
        found.channel_mult.clone_from(&config.channel_mult);
        assert_eq!(found, config, "{what}");
        assert_eq!(built(&unet(&shapes, &hints)), shapes, "{what}");
    }
}

/// A U-Net of one level and one block, as far as it is looked at.
fn smallest(model_channels: usize, channels: usize) -> Shapes {
    let c = channels;
    [
        ("time_embed.0.weight", vec![4 * model_channels, model_channels]),
        ("input_blocks.0.0.weight", vec![c, 3, 3, 3]),
        ("input_blocks.1.0.in_layers.2.weight", vec![c, c, 3, 3]),
        ("input_blocks.1.0.emb_layers.1.weight", vec![2 * c, 4 * model_channels]),
        ("output_blocks.0.0.in_layers.2.weight", vec![c, 2 * c, 3, 3]),
        ("out.2.weight", vec![3, c, 3, 3]),
    ]
    .map(|(name, shape)| (name.to_owned(), shape))
    .into()
}

#[test]
fn fractions_of_the_width_give_the_channels_exactly() {
    let hints = Hints { image_size: Some(8), ..Hints::default() };
    // Quotients such as 32 / 98 lose a channel when multiplied back and truncated.
    let mut inexact = 0;
    for base in 1..=400 {
        for channels in (32..=512).step_by(32) {
            let found = unet(&smallest(base, channels), &hints);
            assert_eq!(found.channels(0), channels, "{channels} / {base}");
            let quotient = channels as f64 / base as f64;
            inexact += usize::from(((quotient * base as f64) as usize) < channels);
        }
    }
    assert!(inexact > 0, "no case needs care");
}

#[test]
fn heads_are_guessed_and_hints_go_first() {
    let shapes = built(&UNetConfig { model_channels: 64, ..default_model(32) });
    let size = Hints { image_size: Some(32), ..Hints::default() };
    assert_eq!(unet(&shapes, &size).num_head_channels, Some(64));
    let narrow = built(&UNetConfig {
        model_channels: 32,
        channel_mult: vec![1.0, 3.0],
        ..default_model(16)
    });
    let found = unet(&narrow, &size);
    assert_eq!((found.num_heads, found.num_head_channels), (4, None));
    let heads = Hints { num_heads: Some(2), new_attention_order: true, ..size };
    let found = unet(&shapes, &heads);
    assert_eq!((found.num_heads, found.num_head_channels), (2, None));
    assert!(found.use_new_attention_order);

    let mut preset = model_preset("64_256_upsampler").unwrap();
    let other = Hints { small_size: Some(32), num_head_channels: Some(96), ..Hints::default() };
    other.apply(&mut preset);
    let ModelConfig::UNet(preset) = preset else { panic!("no U-Net") };
    assert_eq!(
        (preset.small_size, preset.num_head_channels, preset.image_size),
        (Some(32), Some(96), 256)
    );
}

#[test]
fn super_resolution_is_recognised_by_its_stem() {
    let mut shapes = listed("64_256_upsampler");
    // Not a preset any more, so the small size must be given.
    shapes.insert("label_emb.weight".into(), vec![10, 768]);
    let size = Hints { image_size: Some(256), ..Hints::default() };
    let error = infer(&shapes, &size).unwrap_err().to_string();
    assert!(error.contains("small image"), "{error}");
    let hints = Hints { small_size: Some(64), ..size };
    let found = unet(&shapes, &hints);
    assert_eq!((found.in_channels, found.out_channels), (3, 6));
    assert_eq!((found.small_size, found.num_classes), (Some(64), Some(10)));
    // Four channels in and out are an image with four, unless told otherwise.
    let four = built(&UNetConfig { in_channels: 4, out_channels: 4, ..default_model(16) });
    let size = Hints { image_size: Some(16), ..Hints::default() };
    assert_eq!(unet(&four, &size).in_channels, 4);
    assert_eq!(unet(&four, &Hints { small_size: Some(8), ..size }).in_channels, 2);
}

#[test]
fn what_does_not_fit_is_named() {
    let refused = |change: &dyn Fn(&mut Shapes), hints: &Hints, what: &str| {
        let mut shapes = built(&default_model(16));
        change(&mut shapes);
        let error = infer(&shapes, hints).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains(what), "{error} lacks {what:?}");
    };
    let hints = Hints { image_size: Some(16), ..Hints::default() };
    refused(&|s| s.clear(), &hints, "time_embed.0.weight is missing");
    refused(&|_| (), &Hints::default(), "size of its images");
    let set = |name: &'static str, shape: &'static [usize]| {
        move |s: &mut Shapes| drop(s.insert(name.into(), shape.to_vec()))
    };
    refused(&set("time_embed.0.weight", &[100, 32]), &hints, "[100, 32]");
    refused(&set("time_embed.0.weight", &[128]), &hints, "2 axes");
    let huge = &[usize::MAX, usize::MAX, 3, 3];
    refused(&set("input_blocks.1.0.in_layers.2.weight", huge), &hints, "4 axes");
    refused(&set("input_blocks.999999.0.x", &[1]), &hints, "beyond 1024");
    refused(&set("input_blocks.1.0.in_layers.2.weight", &[40, 32, 3, 3]), &hints, "multiple of 32");
    refused(&set("input_blocks.11.0.in_layers.2.weight", &[32, 32, 3, 3]), &hints, "input");
    refused(&|s| drop(s.remove("out.2.weight")), &hints, "out.2.weight is missing");
    // An encoder of equal blocks without attention could have levels of any length.
    let alike = |s: &mut Shapes| {
        s.retain(|name, _| name.starts_with("time_embed") || name.starts_with("out"));
        s.retain(|name, _| !name.starts_with("output"));
        s.insert("input_blocks.0.0.weight".into(), vec![32, 3, 3, 3]);
        for block in 1..12 {
            let name = format!("input_blocks.{block}.0.in_layers.2.weight");
            s.insert(name, vec![32, 32, 3, 3]);
        }
        s.insert("input_blocks.1.0.emb_layers.1.weight".into(), vec![64, 128]);
        s.insert("out.2.weight".into(), vec![7, 2048]);
    };
    refused(&alike, &hints, "[1, 2, 3, 5, 11]");
    let mut shapes = built(&default_model(16));
    alike(&mut shapes);
    let told = Hints { num_res_blocks: Some(2), ..hints };
    let ModelConfig::Encoder(found) = infer(&shapes, &told).unwrap() else { panic!("no encoder") };
    assert_eq!((found.num_res_blocks, found.channel_mult.len()), (2, 4));
}

#[test]
fn every_published_network_has_its_process() {
    for (name, model) in unet_presets() {
        let config = released_diffusion(name).unwrap_or_else(|| panic!("{name} has no process"));
        assert_eq!(config.var_type.is_learned(), model.out_channels == 6, "{name}");
        assert_eq!(
            config.diffusion_steps == 4000,
            name.starts_with("iddpm") && !name.contains("lsun")
        );
    }
    let of = |name| released_diffusion(name).unwrap();
    for name in ["64x64_diffusion", "64x64_classifier", "iddpm_imagenet64_cond_270M"] {
        assert_eq!(of(name).noise_schedule, NoiseSchedule::Cosine, "{name}");
    }
    for name in ["256x256_diffusion", "512x512_classifier", "iddpm_upsample_256_280M"] {
        assert_eq!(of(name).noise_schedule, NoiseSchedule::Linear, "{name}");
    }
    // The trap: only the networks trained with Improved DDPM's defaults rescale.
    for (name, rescale) in [
        ("iddpm_cifar10_50M", true),
        ("iddpm_imagenet64_uncond_100M", true),
        ("iddpm_imagenet64_cond_270M", false),
        ("iddpm_upsample_256_280M", false),
        ("iddpm_lsun_bedroom", false),
        ("256x256_diffusion", false),
    ] {
        assert_eq!(of(name).rescale_timesteps, rescale, "{name}");
        assert_eq!(of(name).loss_type == LossType::RescaledMse, rescale, "{name}");
    }
    assert_eq!(of("ddpm_cifar10_35M").var_type, VarType::FixedLarge);
    assert!(released_diffusion("no such network").is_none());
}
