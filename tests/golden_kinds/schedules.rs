//! Golden kind "schedules": the diffusion tables and respacings of the library,
//! and the small formulas around the network (timestep embedding, attention
//! order, loss-aware timestep weights) written out in float64.

use demist::diffusion::{
    DiffusionConfig, LossSecondMoment, NoiseSchedule, SpacedSchedule, Tables, named_betas,
    space_timesteps,
};

use crate::common::golden::{Checker, Golden};

/// Float64 tables: what cancellation in `1 - abar` leaves of the last bits.
const TABLE_TOLERANCE: f64 = 1e-11;
/// Largest error of one table element, relative to itself.
const ELEMENT_TOLERANCE: f64 = 1e-9;
/// Float32 results of the reference. The angle `t f` of an embedding reaches
/// 999 and is rounded before its cosine is taken.
const F32_TOLERANCE: f64 = 2e-5;

/// The timesteps that the stored embeddings are of.
const TEMB_STEPS: [f64; 5] = [0.0, 1.0, 17.25, 250.0, 999.0];

pub fn check(golden: &Golden) -> Result<(f64, String), String> {
    let mut checker = Checker::new(golden);
    for name in golden.tensors.keys().filter(|name| name.starts_with("out.")) {
        let path = &name["out.".len()..];
        // A name that no branch knows stays unchecked, which `finish` reports.
        match path.split_once('.') {
            Some(("space", spec)) => check_respacing(&mut checker, name, spec)?,
            Some(("spaced25cos", field)) => check_spaced(&mut checker, name, field)?,
            Some(("temb", dim)) => check_embedding(&mut checker, name, dim)?,
            Some((schedule, table)) => check_table(&mut checker, name, schedule, table)?,
            None => check_formula(&mut checker, name)?,
        }
    }
    checker.finish()
}

/// `out.space.1000.ddim25`: the kept steps.
fn check_respacing(checker: &mut Checker, name: &str, path: &str) -> Result<(), String> {
    let Some((steps, spec)) = path.split_once('.') else { return Ok(()) };
    let steps = steps.parse().map_err(|e| format!("{name}: {e}"))?;
    let kept = space_timesteps(steps, spec).map_err(|e| format!("{name}: {e}"))?;
    checker.exact(name, &kept.iter().map(|&t| t as i64).collect::<Vec<_>>())
}

/// `out.spaced25cos.betas`: 25 steps of the cosine schedule of 1000.
fn check_spaced(checker: &mut Checker, name: &str, field: &str) -> Result<(), String> {
    let config =
        DiffusionConfig { noise_schedule: NoiseSchedule::Cosine, ..DiffusionConfig::default() };
    let spaced = SpacedSchedule::new(&config, "25").map_err(|e| format!("{name}: {e}"))?;
    match field {
        "map" => {
            let map: Vec<i64> = spaced.timestep_map.iter().map(|&t| t as i64).collect();
            checker.exact(name, &map)
        }
        "betas" => close_elements(checker, name, &spaced.betas),
        _ => Ok(()),
    }
}

/// `out.linear1000.betas`: one table of one schedule.
fn check_table(
    checker: &mut Checker,
    name: &str,
    schedule: &str,
    table: &str,
) -> Result<(), String> {
    let (kind, steps) = if let Some(steps) = schedule.strip_prefix("linear") {
        (NoiseSchedule::Linear, steps)
    } else if let Some(steps) = schedule.strip_prefix("cosine") {
        (NoiseSchedule::Cosine, steps)
    } else {
        return Ok(());
    };
    let steps = steps.parse().map_err(|e| format!("{name}: {e}"))?;
    let tables = named_betas(kind, steps)
        .and_then(|betas| Tables::new(&betas))
        .map_err(|e| format!("{name}: {e}"))?;
    let ours = match table {
        "betas" => &tables.betas,
        "alphas_cumprod" => &tables.alphas_cumprod,
        "posterior_variance" => &tables.posterior_variance,
        "posterior_log_variance_clipped" => &tables.posterior_log_variance_clipped,
        "posterior_mean_coef1" => &tables.posterior_mean_coef1,
        "posterior_mean_coef2" => &tables.posterior_mean_coef2,
        _ => return Ok(()),
    };
    close_elements(checker, name, ours)
}

/// As a whole, and each element by itself: the small ones matter as much.
fn close_elements(checker: &mut Checker, name: &str, ours: &[f64]) -> Result<(), String> {
    let theirs = checker.golden.f64s(name)?;
    checker.record(name, crate::common::max_rel_err(ours, &theirs, 1e-30), ELEMENT_TOLERANCE);
    checker.close(name, ours, TABLE_TOLERANCE)
}

/// `out.temb.32`: timestep embeddings of that many channels.
fn check_embedding(checker: &mut Checker, name: &str, dim: &str) -> Result<(), String> {
    let dim = dim.parse().map_err(|e| format!("{name}: {e}"))?;
    let ours: Vec<f64> = TEMB_STEPS.iter().flat_map(|&t| timestep_embedding(t, dim)).collect();
    checker.close(name, &ours, F32_TOLERANCE)
}

/// Cosines, then sines, of `t` at `dim / 2` frequencies falling from 1 towards
/// 1/10000; an odd dimension ends in a zero.
fn timestep_embedding(t: f64, dim: usize) -> Vec<f64> {
    let half = dim / 2;
    let angles = (0..half).map(|i| t * (-(10_000.0_f64.ln()) * i as f64 / half as f64).exp());
    let mut embedding: Vec<f64> =
        angles.clone().map(f64::cos).chain(angles.map(f64::sin)).collect();
    embedding.resize(dim, 0.0);
    embedding
}

fn check_formula(checker: &mut Checker, name: &str) -> Result<(), String> {
    match name {
        "out.lsm_weights" => {
            let weights = loss_second_moment_weights(checker.golden)?;
            checker.close(name, &weights, F32_TOLERANCE)
        }
        "out.qkv_legacy_h2" => {
            let y = attention(checker.golden, 2, |part, head, d| (head * 3 + part) * d)?;
            checker.close(name, &y, F32_TOLERANCE)
        }
        "out.qkv_new_h2" => {
            let y = attention(checker.golden, 2, |part, head, d| (part * 2 + head) * d)?;
            checker.close(name, &y, F32_TOLERANCE)
        }
        _ => Ok(()),
    }
}

/// Probabilities of the timesteps after the stored losses; the file was made
/// with a history of three.
fn loss_second_moment_weights(golden: &Golden) -> Result<Vec<f64>, String> {
    let steps = golden.i64s("in.lsm_ts")?;
    let losses = golden.f64s("in.lsm_losses")?;
    let count = golden.tensor("out.lsm_weights")?.shape.iter().product::<usize>();
    let mut sampler = LossSecondMoment::new(count, 3);
    for (t, loss) in steps.iter().zip(losses) {
        sampler.update(*t as usize, loss as f32);
    }
    if !sampler.warmed_up() {
        return Err("a timestep has fewer than 3 losses".to_owned());
    }
    Ok(sampler.probabilities())
}

/// Attention over `in.qkv` [n, 3c, tokens]; `row(part, head, d)` is the first
/// channel of q, k or v (part 0, 1, 2) of a head with `d` channels.
fn attention(
    golden: &Golden,
    heads: usize,
    row: impl Fn(usize, usize, usize) -> usize,
) -> Result<Vec<f64>, String> {
    let qkv = golden.f64s("in.qkv")?;
    let &[n, channels, tokens] = &golden.tensor("in.qkv")?.shape[..] else {
        return Err("in.qkv is not of rank 3".to_owned());
    };
    let d = channels / 3 / heads;
    let mut y = Vec::with_capacity(n * heads * d * tokens);
    for (sample, head) in (0..n).flat_map(|s| (0..heads).map(move |h| (s, h))) {
        let at = |part: usize, c: usize, token: usize| {
            qkv[(sample * channels + row(part, head, d) + c) * tokens + token]
        };
        let weights: Vec<Vec<f64>> = (0..tokens)
            .map(|t| {
                let dot = |s: usize| (0..d).map(|c| at(0, c, t) * at(1, c, s)).sum::<f64>();
                softmax((0..tokens).map(|s| dot(s) / (d as f64).sqrt()).collect())
            })
            .collect();
        for c in 0..d {
            y.extend(
                weights
                    .iter()
                    .map(|w| w.iter().enumerate().map(|(s, w)| w * at(2, c, s)).sum::<f64>()),
            );
        }
    }
    Ok(y)
}

fn softmax(logits: Vec<f64>) -> Vec<f64> {
    let max = logits.iter().copied().fold(f64::MIN, f64::max);
    let exps: Vec<f64> = logits.iter().map(|l| (l - max).exp()).collect();
    let total: f64 = exps.iter().sum();
    exps.iter().map(|e| e / total).collect()
}
