//! What a run keeps on disk: saving the whole state, and loading it to go on.

use super::TrainStep;
use super::step::state_kinds;
use crate::checkpoint::{
    Holds, NetworkInfo, Progress, Tensor, TensorFile, read_network, write_network,
};
use crate::checkpoint::{parameters, parameters_to_tensors};
use crate::diffusion::LossSecondMoment;
use crate::graph::FlatKind;
use crate::ops::LossScale;
use crate::runtime::Context;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Tensors of the timestep sampler's history.
const HISTORY: &str = "sampler.losses";
const COUNTS: &str = "sampler.counts";

/// The loss scale of half precision.
const SCALE: &str = "loss_scale";

/// The whole state.
pub(super) fn state_path(folder: &Path) -> PathBuf {
    folder.join("state.safetensors")
}

/// The first average, ready to draw from.
pub(super) fn network_path(folder: &Path) -> PathBuf {
    folder.join("network.safetensors")
}

/// The first average where the evaluation was best.
pub(super) fn best_path(folder: &Path) -> PathBuf {
    folder.join("best.safetensors")
}

/// The prefix under which state.safetensors keeps a flat buffer.
pub fn state_prefix(kind: FlatKind) -> String {
    match kind {
        FlatKind::Ema(0) => "ema.".into(),
        FlatKind::Ema(i) => format!("ema{i}."),
        FlatKind::ExpAvg => "exp_avg.".into(),
        FlatKind::ExpAvgSq => "exp_avg_sq.".into(),
        _ => "weights.".into(),
    }
}

/// Writes one set of values as a network.
pub(super) fn save_network(
    ctx: Context,
    step: &TrainStep,
    info: &NetworkInfo,
    kind: FlatKind,
    path: &Path,
) -> Result<()> {
    let params = &step.graph().params;
    let values = step.flat().read(ctx.gpu, kind, params)?;
    let mut file = TensorFile::default();
    file.tensors.extend(parameters_to_tensors(params, &values, "")?);
    write_network(path, &NetworkInfo { holds: Holds::Weights, ..info.clone() }, file, false)
}

/// Writes the whole state.
pub(super) fn save_state(
    ctx: Context,
    step: &TrainStep,
    info: &NetworkInfo,
    sampler: Option<&LossSecondMoment>,
    path: &Path,
) -> Result<()> {
    let params = &step.graph().params;
    let mut state = TensorFile::default();
    for kind in state_kinds(info.training.ema_rates.len()) {
        let values = step.flat().read(ctx.gpu, kind, params)?;
        state.tensors.extend(parameters_to_tensors(params, &values, &state_prefix(kind))?);
    }
    if let Some(scale) = step.loss_scale(ctx)? {
        state.tensors.insert(SCALE.into(), Tensor::f32(vec![4], scale.state().to_vec())?);
    }
    if let Some(sampler) = sampler {
        let (losses, counts) = sampler.state();
        let steps = counts.len();
        let shape = vec![steps, losses.len() / steps.max(1)];
        state.tensors.insert(HISTORY.into(), Tensor::f32(shape, losses.to_vec())?);
        state.tensors.insert(COUNTS.into(), Tensor::f32(vec![steps], counts)?);
    }
    write_network(path, &NetworkInfo { holds: Holds::State, ..info.clone() }, state, false)
}

/// Uploads a saved state; returns its position and the sampler's history.
pub(super) fn load_state(
    ctx: Context,
    step: &TrainStep,
    info: &NetworkInfo,
    path: &Path,
) -> Result<(Progress, Option<LossSecondMoment>)> {
    let (saved, file) = read_network(path)?;
    let params = &step.graph().params;
    for kind in state_kinds(info.training.ema_rates.len()) {
        let values =
            parameters(params, &file, &state_prefix(kind)).map_err(|e| Error::file(path, e))?;
        step.flat().write(ctx.gpu, kind, params, &values)?;
    }
    if let (true, Some(scale)) = (info.training.half, file.tensors.get(SCALE)) {
        step.set_loss_scale(ctx, loss_scale(scale, path)?)?;
    }
    Ok((saved.progress, history(&file, info, path)?))
}

fn loss_scale(scale: &Tensor, path: &Path) -> Result<LossScale> {
    let state = scale.to_f32().map_err(|e| Error::file(path, e.to_string()))?;
    match state[..] {
        [lg, growth, good, skipped] if lg.is_finite() && growth.is_finite() => {
            Ok(LossScale::from_state([lg, growth, good, skipped]))
        }
        _ => Err(Error::file(path, format!("its loss scale {state:?} is none"))),
    }
}

fn history(file: &TensorFile, info: &NetworkInfo, path: &Path) -> Result<Option<LossSecondMoment>> {
    let (Some(losses), Some(counts)) = (file.tensors.get(HISTORY), file.tensors.get(COUNTS)) else {
        return Ok(None);
    };
    let read = |t: &Tensor| {
        t.to_f32().map(|v| v.into_owned()).map_err(|e| Error::file(path, e.to_string()))
    };
    let steps = info.diffusion.diffusion_steps;
    LossSecondMoment::from_state(steps, read(losses)?, &read(counts)?)
        .map(Some)
        .map_err(|e| Error::file(path, e.to_string()))
}
