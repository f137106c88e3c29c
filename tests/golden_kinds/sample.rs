//! Golden kind "sample": sampling loops. Starting noise and added noise are
//! rebuilt here and the stored loop steps compared; what samples is handed in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::common;
use crate::common::golden::{Checker, Golden};

/// Relative l2 error of a sample or x_0 within a loop, where it adds up over
/// steps, and of the likelihood. Seen on llvmpipe: 5.6e-6 in the loops, 3.8e-5
/// in the bound, and 6.2e-5 in the prior, which the reference computes in
/// float32 with much cancellation.
const TOLERANCE: f64 = 2e-4;

/// What to run: the network of `model` with weights
/// `common::weight(salt, key, shape)`, sampled with the config's respacing.
pub struct Case<'a> {
    pub salt: &'a str,
    pub config: &'a Value,
    pub model: &'a Value,
    /// [n, c, h, w].
    pub shape: [usize; 4],
    /// Original timesteps of the kept steps, ascending.
    pub timestep_map: Vec<i64>,
    pub y: Vec<i64>,
    /// Starting noise, row-major NCHW.
    pub x_t: Vec<f32>,
    /// A clean image, to be encoded and scored.
    pub x0: Vec<f32>,
}

impl Case<'_> {
    /// Noise of loop step `i`; 0 is the last timestep.
    pub fn noise(&self, i: usize) -> Vec<f32> {
        common::input_noise(self.salt, &format!("in.noise{i}"), self.x_t.len())
    }
}

/// Compares what `run` returns by name ("out.ddim.0.sample", "out.p.9.x0", ...;
/// row-major NCHW) with the file.
pub fn check(
    golden: &Golden,
    run: impl FnOnce(&Case) -> Result<BTreeMap<String, Vec<f32>>, String>,
) -> Result<(f64, String), String> {
    let outputs = run(&case(golden)?)?;
    let mut checker = Checker::new(golden);
    for (name, values) in &outputs {
        // The file keeps a few steps of each loop.
        if golden.tensors.contains_key(name) {
            checker.close_f32(name, values, TOLERANCE)?;
        }
    }
    checker.finish()
}

fn case(golden: &Golden) -> Result<Case<'_>, String> {
    let salt = golden.config_str("salt")?;
    let y = golden.i64s("in.y")?.to_vec();
    let [channels, size] =
        [golden.config_usize("/model/in_channels")?, golden.config_usize("/model/image_size")?];
    let shape = [y.len(), channels, size, size];
    let count = shape.iter().product();
    Ok(Case {
        salt,
        config: &golden.config,
        model: &golden.config["model"],
        shape,
        timestep_map: golden.i64s("in.timestep_map")?.to_vec(),
        y,
        x_t: common::input_noise(salt, "in.xT", count),
        x0: common::input_image(salt, "in.x0", count),
    })
}
