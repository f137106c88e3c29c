//! Golden kind "encoder": a noisy-image classifier, its log-probabilities and
//! the gradients of the label's log-probability. The inputs are rebuilt here
//! and the outputs compared; what runs the network is handed in.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::common::golden::{ACT_LIMIT, Checker, Golden, PARAM_LIMIT};
use crate::train::{check_noise, noise_floor};
use crate::unet;

/// Relative l2 error of activations, logits and log-probabilities.
const TOLERANCE: f64 = 2e-5;
/// Relative l2 error of gradients. Seen on llvmpipe: 3.4e-6.
const GRADIENT_TOLERANCE: f64 = 3e-5;

/// What to run: build the classifier of `model`, fill each parameter with
/// `common::weight(salt, key, shape)`, feed it x and t, and go backwards from
/// the sum over the images of log p(y | x).
pub struct Case<'a> {
    pub salt: &'a str,
    pub model: &'a Value,
    /// [n, c, h, w].
    pub shape: [usize; 4],
    /// Row-major NCHW.
    pub x: Vec<f32>,
    pub t: Vec<f32>,
    pub y: Vec<usize>,
}

/// Log-probabilities and the gradient of the sum over the images of log p(y |
/// x) by the logits [n, classes].
pub fn log_softmax(logits: &[f32], y: &[usize]) -> (Vec<f32>, Vec<f32>) {
    let classes = logits.len() / y.len();
    let (mut log_probs, mut seeds) = (Vec::new(), Vec::new());
    for (row, label) in logits.chunks_exact(classes).zip(y) {
        let sum: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
        for (class, v) in row.iter().enumerate() {
            let log_p = f64::from(*v) - sum.ln();
            log_probs.push(log_p as f32);
            seeds.push((f64::from(u8::from(class == *label)) - log_p.exp()) as f32);
        }
    }
    (log_probs, seeds)
}

/// Compares what `run` returns by name ("out.y", "out.cond_grad", "act.KEY",
/// and "g.KEY" of the parameters; whole tensors in the reference's layout)
/// with the file.
pub fn check(
    golden: &Golden,
    run: impl FnOnce(&Case) -> Result<BTreeMap<String, Vec<f32>>, String>,
) -> Result<(f64, String), String> {
    let unet::Case { salt, model, shape, x, t, y, .. } =
        unet::case(golden, &golden.config["model"])?;
    let y: Vec<usize> = y.iter().flatten().map(|y| *y as usize).collect();
    let case = Case { salt, model, shape, x, t, y };
    let mut outputs = run(&case)?;
    let logits = outputs.get("out.y").ok_or("no logits")?;
    let (log_probs, _) = log_softmax(logits, &case.y);
    let classes = log_probs.len() / case.y.len();
    let chosen = log_probs.chunks_exact(classes).zip(&case.y).map(|(row, y)| f64::from(row[*y]));
    let loss = -chosen.sum::<f64>() / case.y.len() as f64;
    outputs.insert("out.log_probs".into(), log_probs);
    outputs.insert("out.ce".into(), vec![loss as f32]);
    let floor = noise_floor(golden, "g.")?;
    let mut checker = Checker::new(golden);
    for (name, values) in &outputs {
        match name.split_once('.').map_or("", |(group, _)| group) {
            "act" => checker.close_strided(name, values, ACT_LIMIT, TOLERANCE)?,
            "g" => {
                // The file's are of the cross-entropy, the mean of -log p.
                let scale = -1.0 / case.y.len() as f32;
                let of_loss: Vec<f32> = values.iter().map(|v| scale * v).collect();
                if golden.f64s(&format!("{name}#norm"))?[0] <= floor {
                    check_noise(&mut checker, name, &of_loss, floor);
                } else {
                    checker.close_strided(name, &of_loss, PARAM_LIMIT, GRADIENT_TOLERANCE)?;
                }
            }
            _ if name == "out.cond_grad" => {
                checker.close_f32(name, values, GRADIENT_TOLERANCE)?;
            }
            _ => checker.close_f32(name, values, TOLERANCE)?,
        }
    }
    checker.finish()
}
