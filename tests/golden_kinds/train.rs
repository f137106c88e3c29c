//! Golden kind "train": a few optimiser steps. The batches are rebuilt here and
//! losses, gradients and weights compared; what trains is handed in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::common;
use crate::common::golden::{Checker, Golden, PARAM_LIMIT};

/// Element of a parameter whose gradient is below this share of the tensor's
/// root mean square in every step is one of exactly zero: the keys' biases in
/// `qkv.bias`, since a softmax does not see what all its inputs share.
const ZERO_SHARE: f64 = 1e-4;

/// Later gradients where the variational bound is trained on: its gradient at
/// t = 0 is a thousand times the others', and a network that differs by one
/// last bit of its weights comes out up to 3e-3 elsewhere after two steps. Seen
/// on llvmpipe: 3.6e-3, norms 7e-4.
const BOUND_TOLERANCES: [f64; 2] = [8e-3, 2e-3];

/// Relative error of losses and of the first step's gradients. Seen on
/// llvmpipe: 6e-6.
const TOLERANCE: f64 = 1e-4;
/// Relative error of the norm and sum of later gradients, weights and averages.
/// Seen on llvmpipe: 9e-5.
const NORM_TOLERANCE: f64 = 2e-4;
/// Relative error of the elements of later gradients: AdamW's first steps have
/// about the size lr whatever the gradient's, so rounding differences near
/// zero grow into the weights and come back. Seen on llvmpipe: up to 2.8e-4.
const LATER_TOLERANCE: f64 = 1e-3;
/// Share of weights that may lie further off than one step of size lr.
const DISAGREEING_SHARE: f64 = 0.02;

/// A gradient below this share of the step's whole gradient is rounding noise
/// around an exact zero: a bias ahead of a group norm with one channel a group
/// cancels. Both sides then only have to be that small, and AdamW, which
/// scales noise up to lr, may move such a weight either way.
const NOISE_SHARE: f64 = 1e-6;

/// One training batch.
pub struct Step {
    /// Row-major NCHW, as `noise`.
    pub x0: Vec<f32>,
    pub noise: Vec<f32>,
    pub t: Vec<i64>,
    /// Labels of a class-conditional network.
    pub y: Option<Vec<i64>>,
}

/// What to run: the network of `model` with weights
/// `common::weight(salt, key, shape)`, trained on `steps` in order.
pub struct Case<'a> {
    pub salt: &'a str,
    pub model: &'a Value,
    pub diffusion: &'a Value,
    pub optim: &'a Value,
    /// [n, c, h, w].
    pub shape: [usize; 4],
    pub steps: Vec<Step>,
}

/// Compares what `run` returns by name ("out.s0.loss", "g0.KEY", "wN.KEY",
/// "ema.KEY"; whole tensors in the file's layout) with the file.
pub fn check(
    golden: &Golden,
    run: impl FnOnce(&Case) -> Result<BTreeMap<String, Vec<f32>>, String>,
) -> Result<(f64, String), String> {
    let case = case(golden)?;
    let lr = golden.config_f64("/optim/lr")?;
    let outputs = run(&case)?;
    let mut checker = Checker::new(golden);
    let noise = noise_floors(golden, case.steps.len())?;
    let moved = 2.0 * lr * case.steps.len() as f64;
    let bound = golden.config.pointer("/diffusion/learn_sigma").is_some();
    let [later_tolerance, norm_tolerance] =
        if bound { BOUND_TOLERANCES } else { [LATER_TOLERANCE, NORM_TOLERANCE] };
    for (name, values) in &outputs {
        let (group, key) = name.split_once('.').unwrap_or(("", name));
        let cancels = is_noise(golden, key, &noise)?;
        match group {
            "out" => checker.close_f32(name, values, TOLERANCE)?,
            "wN" | "ema" if cancels => {
                checker.mostly_close(name, values, PARAM_LIMIT, moved, 0.0)?;
                checker.record(&format!("{name}#norm"), 0.0, 0.0);
            }
            "wN" | "ema" => {
                let zero = zero_elements(golden, key, case.steps.len(), values.len())?;
                let kept = values.len() - zero.len();
                // Where elements drift, the others are compared one by one: all
                // of so small a tensor are stored.
                let allowed = (zero.len() as f64 + DISAGREEING_SHARE * kept as f64)
                    / values.len() as f64;
                checker.mostly_close(name, values, PARAM_LIMIT, lr, allowed)?;
                if zero.is_empty() {
                    checker.close_norm(name, values, norm_tolerance)?;
                } else {
                    checker.mostly_close(name, values, PARAM_LIMIT, moved, 0.0)?;
                    checker.record(&format!("{name}#norm"), 0.0, 0.0);
                }
            }
            g if cancels => {
                let step: usize = g[1..].parse().map_err(|e| format!("{name}: {e}"))?;
                check_noise(&mut checker, name, values, noise[step]);
            }
            "g0" => checker.close_strided(name, values, PARAM_LIMIT, TOLERANCE)?,
            _ => {
                let elements = common::strided(values, PARAM_LIMIT);
                checker.close_f32(name, &elements, later_tolerance)?;
                checker.close_norm(name, values, norm_tolerance)?;
            }
        }
    }
    checker.finish()
}

/// Checks that `values`, which the file has as rounding noise, are no more.
pub fn check_noise(checker: &mut Checker, name: &str, values: &[f32], floor: f64) {
    let norm = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
    // In units of the floor: up to 1 is zero.
    let in_floors = norm / floor;
    let error = if in_floors <= 1.0 { 0.0 } else { in_floors };
    checker.record(name, error, 0.0);
    checker.record(&format!("{name}#norm"), error, 0.0);
}

/// Norm of the whole gradient whose tensors begin with `prefix`, times
/// [`NOISE_SHARE`].
pub fn noise_floor(golden: &Golden, prefix: &str) -> Result<f64, String> {
    let mut squares = 0.0;
    for name in golden.tensors.keys().filter(|n| n.starts_with(prefix) && n.ends_with("#norm")) {
        squares += golden.f64s(name)?[0].powi(2);
    }
    Ok(NOISE_SHARE * f64::sqrt(squares))
}

/// The floor of each step.
fn noise_floors(golden: &Golden, steps: usize) -> Result<Vec<f64>, String> {
    (0..steps).map(|step| noise_floor(golden, &format!("g{step}."))).collect()
}

/// Whether parameter `key`'s gradient is noise in every step.
fn is_noise(golden: &Golden, key: &str, floors: &[f64]) -> Result<bool, String> {
    for (step, floor) in floors.iter().enumerate() {
        let name = format!("g{step}.{key}#norm");
        if !golden.tensors.contains_key(&name) || golden.f64s(&name)?[0] > *floor {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Elements of `key` whose stored gradient is zero but for rounding in every
/// step, of a parameter small enough to be stored whole.
fn zero_elements(
    golden: &Golden,
    key: &str,
    steps: usize,
    len: usize,
) -> Result<Vec<usize>, String> {
    if len > PARAM_LIMIT {
        return Ok(Vec::new());
    }
    let mut zero: Vec<usize> = (0..len).collect();
    for step in 0..steps {
        let gradient = golden.f64s(&format!("g{step}.{key}"))?;
        let square = gradient.iter().map(|g| g * g).sum::<f64>() / len as f64;
        zero.retain(|i| gradient[*i].abs() <= ZERO_SHARE * square.sqrt());
    }
    Ok(zero)
}

fn case(golden: &Golden) -> Result<Case<'_>, String> {
    let salt = golden.config_str("salt")?;
    let [channels, size] =
        [golden.config_usize("/model/in_channels")?, golden.config_usize("/model/image_size")?];
    let batch = golden.i64s("in.s0.t")?.len();
    let shape = [batch, channels, size, size];
    let steps = (0..golden.config_usize("/optim/steps")?)
        .map(|i| step(golden, salt, i, shape.iter().product()))
        .collect::<Result<_, _>>()?;
    let [model, diffusion, optim] = ["model", "diffusion", "optim"].map(|f| &golden.config[f]);
    Ok(Case { salt, model, diffusion, optim, shape, steps })
}

fn step(golden: &Golden, salt: &str, i: usize, count: usize) -> Result<Step, String> {
    let labels = format!("in.s{i}.y");
    Ok(Step {
        x0: common::input_image(salt, &format!("in.s{i}.x0"), count),
        noise: common::input_noise(salt, &format!("in.s{i}.noise"), count),
        t: golden.i64s(&format!("in.s{i}.t"))?.to_vec(),
        y: match golden.tensors.contains_key(&labels) {
            true => Some(golden.i64s(&labels)?.to_vec()),
            false => None,
        },
    })
}
