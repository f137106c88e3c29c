//! What a run keeps on disk.
//!
//! ```text
//! RUN/state.safetensors    weights, averages, both moments, position: all of a resume
//! RUN/network.safetensors  the first average, ready for `sample`
//! RUN/network_ema_R.safetensors  the averages of further rates R
//! RUN/best.safetensors     the first average where the validation loss was lowest
//! RUN/metrics.csv          step, losses by term and quartile, gradient norm, rate
//! RUN/evaluation.csv       the same losses on the validation set
//! RUN/loss.png             both as a picture
//! RUN/samples/             a class-labelled grid at intervals
//! ```

mod preview;
mod tables;

use super::state::{network_file, save_state};
use super::{Evaluation, Losses, RunOptions, Session};
use crate::checkpoint::write_network;
use crate::data::Dataset;
use crate::graph::FlatKind;
use crate::model::ModelConfig;
use crate::runtime::Context;
use crate::{Error, Result};
use pollster::block_on;
use preview::Preview;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use tables::Tables;

/// How old the loss plot may grow.
const PLOT_EVERY: Duration = Duration::from_secs(30);

/// The whole state of the run in `folder`.
pub fn state_path(folder: &Path) -> PathBuf {
    folder.join("state.safetensors")
}

/// The folder of a run in progress.
pub(super) struct RunFolder {
    path: PathBuf,
    tables: Tables,
    preview: Option<Preview>,
    plotted: Instant,
}

/// Makes the folder of a run, if need be.
pub(super) fn create(path: &Path) -> Result<()> {
    std::fs::create_dir_all(path).map_err(|e| Error::io("create", path, e))
}

/// Writes one set of values as a network.
fn save_network(ctx: Context, session: &Session, kind: FlatKind, path: &Path) -> Result<()> {
    let (info, file) = block_on(network_file(ctx, session, kind))?;
    write_network(path, &info, file, false)
}

impl RunFolder {
    /// The folder at `path`, for what `session` trains.
    pub fn open(path: &Path, options: &RunOptions, session: &Session) -> Result<RunFolder> {
        create(path)?;
        let tables = Tables::open(path, options, session)?;
        Ok(RunFolder { path: path.to_owned(), tables, preview: None, plotted: Instant::now() })
    }

    /// Writes a row of losses.
    pub fn write_losses(&mut self, losses: &Losses, images_per_second: f64) -> Result<()> {
        self.tables.write_losses(losses, images_per_second)
    }

    /// Writes a row of an evaluation.
    pub fn write_evaluation(&mut self, step: u64, evaluation: &Evaluation) -> Result<()> {
        self.tables.write_evaluation(step, evaluation)
    }

    /// Keeps the first average as the best network; returns its file.
    pub fn save_best(&self, ctx: Context, session: &Session) -> Result<PathBuf> {
        let path = self.path.join("best.safetensors");
        save_network(ctx, session, FlatKind::Ema(0), &path)?;
        Ok(path)
    }

    /// Writes the state and the averaged networks; returns the files of the networks.
    pub fn save(&self, ctx: Context, session: &Session) -> Result<Vec<PathBuf>> {
        block_on(save_state(ctx, session, &state_path(&self.path)))?;
        let network = |(i, rate): (usize, &f64)| {
            let name = match i {
                0 => "network.safetensors".to_owned(),
                _ => format!("network_ema_{rate}.safetensors"),
            };
            let path = self.path.join(name);
            save_network(ctx, session, FlatKind::Ema(i as u8), &path)?;
            Ok(path)
        };
        session.info().training.ema_rates.iter().enumerate().map(network).collect()
    }

    /// Whether the plot of the losses has grown old.
    pub fn plot_is_old(&self) -> bool {
        self.plotted.elapsed() >= PLOT_EVERY
    }

    /// Draws the losses; returns the file, if there are losses.
    pub fn plot(&mut self, ctx: Context) -> Result<Option<PathBuf>> {
        let path = self.tables.plot(&self.path, &ctx.gpu.summary.name)?;
        if path.is_some() {
            self.plotted = Instant::now();
        }
        Ok(path)
    }

    /// Draws a grid with the averaged weights of a diffusion network; small images for a
    /// super-resolution network come from `dataset`. Returns the file, if there is one.
    pub fn draw(
        &mut self,
        ctx: Context,
        session: &Session,
        dataset: &Dataset,
    ) -> Result<Option<PathBuf>> {
        if matches!(session.info().model, ModelConfig::Encoder(_)) {
            return Ok(None);
        }
        let preview = match self.preview.take() {
            Some(preview) => preview,
            None => Preview::new(ctx, session)?,
        };
        let path = preview.draw(ctx, session.info(), dataset, &self.path)?;
        self.preview = Some(preview);
        Ok(Some(path))
    }
}
