//! Golden kind "unet": one forward pass. The inputs are rebuilt here and the
//! outputs compared; what runs the network is handed in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::common;
use crate::common::golden::{ACT_LIMIT, Checker, Golden};

/// Relative l2 error of activations and output, float32 against float32. Seen
/// on llvmpipe: at most 4.2e-6.
const TOLERANCE: f64 = 2e-5;

/// What to run: build the network of `model`, fill each parameter with
/// `common::weight(salt, key, shape)`, and feed it x, t and y.
pub struct Case<'a> {
    pub salt: &'a str,
    pub model: &'a Value,
    /// [n, c, h, w].
    pub shape: [usize; 4],
    /// Row-major NCHW.
    pub x: Vec<f32>,
    pub t: Vec<f32>,
    /// Labels of a class-conditional network.
    pub y: Option<Vec<i64>>,
    /// Side and values (row-major NCHW) of a super-resolution network's small
    /// images.
    pub low_res: Option<(usize, Vec<f32>)>,
}

/// Compares what `run` returns by name ("out.y", "act.input_blocks.0", ...;
/// whole tensors, row-major NCHW) with the file.
pub fn check(
    golden: &Golden,
    run: impl FnOnce(&Case) -> Result<BTreeMap<String, Vec<f32>>, String>,
) -> Result<(f64, String), String> {
    let outputs = run(&case(golden, &golden.config["model"])?)?;
    let mut checker = Checker::new(golden);
    compare(&mut checker, &outputs)?;
    checker.finish()
}

/// Compares output and activations.
pub fn compare(checker: &mut Checker, outputs: &BTreeMap<String, Vec<f32>>) -> Result<(), String> {
    for (name, values) in outputs {
        // A resized input is small and stored whole.
        if name.starts_with("act.") && name != "act.upsampled" {
            checker.close_strided(name, values, ACT_LIMIT, TOLERANCE)?;
        } else {
            checker.close_f32(name, values, TOLERANCE)?;
        }
    }
    Ok(())
}

/// Rebuilds the inputs of the network of `model`.
pub fn case<'a>(golden: &'a Golden, model: &'a Value) -> Result<Case<'a>, String> {
    let salt = golden.config_str("salt")?;
    let t: Vec<f32> = golden.i64s("in.t")?.iter().map(|&t| t as f32).collect();
    let y = match golden.tensors.contains_key("in.y") {
        true => Some(golden.i64s("in.y")?.to_vec()),
        false => None,
    };
    let [channels, size] =
        [golden.config_usize("/model/in_channels")?, golden.config_usize("/model/image_size")?];
    let shape = [t.len(), channels, size, size];
    let x_scale = golden.config_f64("/x_scale")? as f32;
    let x = common::input(salt, "in.x", x_scale, shape.iter().product());
    Ok(Case { salt, model, shape, x, t, y, low_res: None })
}
