//! A training's whole state as a file: saving it, and loading it to go on.

use super::Session;
use crate::checkpoint::{
    Holds, NetworkInfo, Tensor, TensorFile, parameters, parameters_to_tensors,
};
#[cfg(feature = "files")]
use crate::checkpoint::{read_network, write_network};
use crate::diffusion::LossSecondMoment;
use crate::graph::FlatKind;
use crate::ops::LossScale;
use crate::runtime::Context;
use crate::{Error, Result};
use std::path::Path;

/// Tensors of the losses that decide on the timesteps.
const HISTORY: &str = "sampler.losses";
const COUNTS: &str = "sampler.counts";

/// The loss scale of half precision.
const SCALE: &str = "loss_scale";

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

/// One set of values as a network file.
///
/// # Errors
/// [`Error::Device`] on a fault.
pub async fn network_file(
    ctx: Context<'_>,
    session: &Session,
    kind: FlatKind,
) -> Result<(NetworkInfo, TensorFile)> {
    let values = session.read(ctx, kind).await?;
    let mut file = TensorFile::default();
    file.tensors.extend(parameters_to_tensors(session.params(), &values, "")?);
    Ok((NetworkInfo { holds: Holds::Weights, ..session.info().clone() }, file))
}

/// Writes the whole state.
///
/// # Errors
/// [`Error::Io`] if the file cannot be written, [`Error::Device`] on a fault.
#[cfg(feature = "files")]
pub async fn save_state(ctx: Context<'_>, session: &Session, path: &Path) -> Result<()> {
    let (info, state) = state_file(ctx, session).await?;
    write_network(path, &info, state, false)
}

/// The whole state as a network file.
///
/// # Errors
/// [`Error::Device`] on a fault.
pub async fn state_file(ctx: Context<'_>, session: &Session) -> Result<(NetworkInfo, TensorFile)> {
    let mut state = TensorFile::default();
    for kind in session.kinds() {
        let values = session.read(ctx, kind).await?;
        let prefix = state_prefix(kind);
        state.tensors.extend(parameters_to_tensors(session.params(), &values, &prefix)?);
    }
    if let Some(scale) = session.step_program().loss_scale_async(ctx).await? {
        state.tensors.insert(SCALE.into(), Tensor::f32(vec![4], scale.state().to_vec())?);
    }
    if let Some(history) = session.timestep_losses() {
        let (losses, counts) = history.state();
        let steps = counts.len();
        let shape = vec![steps, losses.len() / steps.max(1)];
        state.tensors.insert(HISTORY.into(), Tensor::f32(shape, losses.to_vec())?);
        state.tensors.insert(COUNTS.into(), Tensor::f32(vec![steps], counts)?);
    }
    Ok((NetworkInfo { holds: Holds::State, ..session.info().clone() }, state))
}

/// Lets `session` go on from a saved state.
///
/// # Errors
/// [`Error::Io`] or [`Error::File`] if the file is no state of this network,
/// [`Error::Device`] on a fault.
#[cfg(feature = "files")]
pub async fn load_state(ctx: Context<'_>, session: &mut Session, path: &Path) -> Result<()> {
    let (info, file) = read_network(path)?;
    restore(ctx, session, (path, &info, &file)).await
}

/// As [`load_state`], from a file that was read already: its name, which stands in
/// messages, and its contents.
///
/// # Errors
/// As [`load_state`], except for reading.
pub async fn restore(
    ctx: Context<'_>,
    session: &mut Session,
    (path, saved, file): (&Path, &NetworkInfo, &TensorFile),
) -> Result<()> {
    for kind in session.kinds() {
        let values = parameters(session.params(), file, &state_prefix(kind))
            .map_err(|e| Error::file(path, e))?;
        session.write(ctx, kind, &values)?;
    }
    let scale = match (session.info().training.half, file.tensors.get(SCALE)) {
        (true, Some(scale)) => Some(loss_scale(scale, path)?),
        _ => None,
    };
    let losses = history(file, session.info(), path)?;
    session.go_on(ctx, saved.progress, losses, scale).await
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
