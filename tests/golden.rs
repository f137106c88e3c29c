//! The engine against vectors computed with the reference implementation: one
//! test over every file of tests/golden, or of the folder that the environment
//! variable DEMIST_GOLDEN names, each checked as its kind says.

mod common;
#[path = "golden_kinds/encoder.rs"]
mod encoder;
#[path = "golden_kinds/engine.rs"]
mod engine;
#[path = "golden_kinds/engine_sample.rs"]
mod engine_sample;
#[path = "golden_kinds/engine_encoder.rs"]
mod engine_encoder;
#[path = "golden_kinds/sample.rs"]
mod sample;
#[path = "golden_kinds/schedules.rs"]
mod schedules;
#[path = "golden_kinds/sr.rs"]
mod sr;
#[path = "golden_kinds/train.rs"]
mod train;
#[path = "golden_kinds/unet.rs"]
mod unet;

use std::path::PathBuf;

use common::golden::{Golden, golden_files};

/// Checks one file: the worst error and the tensor it was seen in.
fn check(golden: &Golden) -> Result<(f64, String), String> {
    match golden.kind.as_str() {
        "schedules" => schedules::check(golden),
        "encoder" => encoder::check(golden, engine_encoder::run_encoder),
        "sr" => sr::check(golden, engine::run_unet),
        "unet" => unet::check(golden, engine::run_unet),
        "train" => train::check(golden, engine::run_train),
        "sample" => sample::check(golden, engine_sample::run_sample),
        kind => Err(format!("{}: no check for kind {kind:?}", golden.path.display())),
    }
}

#[test]
fn every_golden_file_agrees() {
    let folder = std::env::var_os("DEMIST_GOLDEN").map_or_else(
        || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden"),
        PathBuf::from,
    );
    let mut failures = Vec::new();
    for path in golden_files(&folder).unwrap() {
        match Golden::read(&path).and_then(|golden| check(&golden)) {
            Ok((error, tensor)) => {
                println!("{}: worst error {error:.2e} ({tensor})", path.display());
            }
            Err(reason) => {
                println!("{}: FAILED", path.display());
                failures.push(reason);
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// The hash against weights read from a checkpoint that holds them.
#[test]
fn hash_weights_are_those_of_the_reference() {
    // First, second and last element.
    let cases: [(&str, &[usize], [u32; 3]); 5] = [
        ("time_embed.0.weight", &[128, 32], [0xbdd8_da79, 0x3e21_2a75, 0x3dc1_2959]),
        ("label_emb.weight", &[4, 128], [0x3f41_afe8, 0x3f60_ab16, 0xbf2b_d082]),
        ("input_blocks.0.0.weight", &[32, 3, 3, 3], [0x3e37_7c22, 0x3ddf_31bc, 0x3e03_d560]),
        ("input_blocks.0.0.bias", &[32], [0x3dbf_83c2, 0x3b05_fb9a, 0x3d9e_c903]),
        ("out.0.weight", &[32], [0x3f5b_b3d4, 0x3f9c_3268, 0x3f73_7ebe]),
    ];
    for (key, shape, expected) in cases {
        let values = common::weight("p.", key, shape);
        let found = [values[0], values[1], values[values.len() - 1]];
        assert_eq!(found.map(f32::to_bits), expected, "{key}");
    }
}

#[test]
fn layouts_are_converted_and_back() {
    // Element (n, c, h, w) of a 1 x 2 x 2 x 3 image is 100 c + 10 h + w.
    let nchw: Vec<f32> =
        (0..12).map(|i| (100 * (i / 6) + 10 * (i / 3 % 2) + i % 3) as f32).collect();
    let nhwc = common::nchw_to_nhwc(&nchw, [1, 2, 2, 3]);
    assert_eq!(nhwc, [0., 100., 1., 101., 2., 102., 10., 110., 11., 111., 12., 112.]);
    assert_eq!(common::nhwc_to_nchw(&nhwc, [1, 2, 2, 3]), nchw);

    for shape in [&[5, 3, 2, 4][..], &[6, 4], &[6, 4, 1], &[7]] {
        let file = common::hash_u("layout", shape.iter().product());
        let device = common::param_to_device(&file, shape);
        assert_eq!(common::param_from_device(&device, shape), file, "{shape:?}");
    }
    // O = 2, I = 3: element (i, o) of the device's matrix is (o, i) of the file's.
    assert_eq!(
        common::param_to_device(&[0., 1., 2., 10., 11., 12.], &[2, 3]),
        [0., 10., 1., 11., 2., 12.]
    );
}
