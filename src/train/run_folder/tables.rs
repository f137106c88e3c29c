//! The tables of a run: losses of the training (`metrics.csv`) and of the validation set
//! (`evaluation.csv`), and both as a picture.

use crate::Result;
use crate::output::metrics::{Metrics, MetricsWriter};
use crate::output::plot;
use crate::train::step::QUARTILES;
use crate::train::{Evaluation, Losses, RunOptions, Session, TermSum};
use std::path::{Path, PathBuf};

/// The tables of a run in progress.
pub(super) struct Tables {
    metrics: MetricsWriter,
    evaluations: Option<MetricsWriter>,
    /// Step of the last row of evaluation.csv.
    evaluated: Option<u64>,
}

impl Tables {
    /// Begins tables in `folder`, or goes on with them at the position of `session`.
    pub fn open(folder: &Path, options: &RunOptions, session: &Session) -> Result<Tables> {
        let at = options.resume.then_some(session.info().progress.step);
        let terms = session.step_program().term_names();
        let metrics = open(&folder.join("metrics.csv"), &columns(&terms, true), at)?;
        let (mut evaluations, mut evaluated) = (None, None);
        if options.validation.is_some() {
            let path = folder.join("evaluation.csv");
            evaluations = Some(open(&path, &columns(&terms, false), at)?);
            evaluated = Metrics::read(&path)?.rows.last().map(|row| row.step);
        }
        Ok(Tables { metrics, evaluations, evaluated })
    }

    /// Writes a row of losses, and the images per second.
    pub fn write_losses(&mut self, losses: &Losses, images_per_second: f64) -> Result<()> {
        let Losses { step, images_seen, loss, ref terms, grad_norm, lr, .. } = *losses;
        let row: Vec<f64> = [images_seen as f64, loss, grad_norm, lr, images_per_second]
            .into_iter()
            .chain(term_values(terms))
            .collect();
        self.metrics.append(step, &row)
    }

    /// Writes a row of an evaluation. A run that was finished and resumed has its row
    /// already.
    pub fn write_evaluation(&mut self, step: u64, evaluation: &Evaluation) -> Result<()> {
        if let Some(csv) = self.evaluations.as_mut().filter(|_| self.evaluated != Some(step)) {
            let row: Vec<f64> = [evaluation.images as f64, evaluation.loss()]
                .into_iter()
                .chain(term_values(&evaluation.terms))
                .collect();
            csv.append(step, &row)?;
        }
        self.evaluated = Some(step);
        Ok(())
    }

    /// Draws the losses, if there are any yet.
    pub fn plot(&self, folder: &Path, device: &str) -> Result<Option<PathBuf>> {
        let metrics = Metrics::read(&folder.join("metrics.csv"))?;
        let Some(points) = metrics.points("loss").filter(|p| !p.is_empty()) else {
            return Ok(None);
        };
        let validation = match self.evaluations {
            Some(_) => Metrics::read(&folder.join("evaluation.csv"))?.points("loss"),
            None => None,
        };
        let path = folder.join("loss.png");
        plot::loss_plot(&path, &format!("training loss on {device}"), &points, validation)?;
        Ok(Some(path))
    }
}

/// Columns after the step: loss, each term, its quartiles.
fn columns(terms: &[&str], training: bool) -> Vec<String> {
    let mut columns: Vec<String> = vec!["images".into(), "loss".into()];
    if training {
        columns.extend(["grad_norm", "lr", "images_per_second"].map(String::from));
    }
    for term in terms {
        columns.push((*term).into());
        columns.extend((0..QUARTILES).map(|q| format!("{term}_q{q}")));
    }
    columns
}

fn open(path: &Path, columns: &[String], resume_at: Option<u64>) -> Result<MetricsWriter> {
    let names: Vec<&str> = columns.iter().map(String::as_str).collect();
    match resume_at {
        Some(step) => MetricsWriter::resume(path, &names, step),
        None => MetricsWriter::create(path, &names),
    }
}

/// The values of the columns of terms.
fn term_values(terms: &[TermSum]) -> impl Iterator<Item = f64> + '_ {
    terms.iter().flat_map(|t| std::iter::once(t.total).chain(t.quartiles))
}
