//! Golden kind "train": a few optimiser steps. The batches are rebuilt here and
//! losses, gradients and weights compared; what trains is handed in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::common;
use crate::common::golden::{Checker, Golden, PARAM_LIMIT};

/// Relative error of losses and of the first step's gradients.
const TOLERANCE: f64 = 1e-4;
/// Relative error of later gradients and of weights: AdamW's first steps have
/// about the size lr whatever the gradient's, so rounding differences near
/// zero grow into the weights.
const LATER_TOLERANCE: f64 = 5e-3;
/// Share of weights that may lie further off than one step of size lr.
const DISAGREEING_SHARE: f64 = 0.02;

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
    for (name, values) in &outputs {
        match name.split_once('.').map_or("", |(group, _)| group) {
            "out" => checker.close_f32(name, values, TOLERANCE)?,
            "wN" | "ema" => {
                checker.mostly_close(name, values, PARAM_LIMIT, lr, DISAGREEING_SHARE)?;
                checker.close_norm(name, values, LATER_TOLERANCE)?;
            }
            "g0" => checker.close_strided(name, values, PARAM_LIMIT, TOLERANCE)?,
            _ => checker.close_strided(name, values, PARAM_LIMIT, LATER_TOLERANCE)?,
        }
    }
    checker.finish()
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
