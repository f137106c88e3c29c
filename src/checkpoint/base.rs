//! Starting a run from a network that exists: one of ours, or of another
//! program.

use super::{Imported, TensorFile, import, load_header, network::KEY, read_network};
use crate::model::{Hints, ModelConfig, initialise, model_params};
use crate::{Error, Result};
use std::path::Path;

/// Reads a network of ours (of a run's state the averaged weights), or imports
/// one.
///
/// # Errors
/// As [`read_network`] and [`import`].
pub fn read_any(path: &Path, preset: Option<&str>, hints: &Hints) -> Result<Imported> {
    let ours = path.is_file() && load_header(path).is_ok_and(|h| h.metadata.contains_key(KEY));
    if !ours {
        return import(path, preset, hints);
    }
    if preset.is_some() {
        let why = "tells its own configuration: give no preset";
        return Err(Error::file(path, why));
    }
    let (info, file) = read_network(path)?;
    let prefix = info.holds.prefix();
    let named = file.tensors.into_iter().filter_map(|(name, tensor)| {
        name.strip_prefix(prefix).map(|name| (name.to_owned(), tensor))
    });
    let tensors = TensorFile { tensors: named.collect(), metadata: Default::default() };
    Ok(Imported { model: info.model, diffusion: info.diffusion, tensors, preset: None })
}

impl Imported {
    /// Initial values for `model` in device layout: this network's where it has
    /// a tensor of the name and shape, drawn from `seed` elsewhere. Of a tensor
    /// with another number of rows (classes, outputs) the rows are taken that
    /// both have. Also returns the names of what is drawn, wholly or in part.
    ///
    /// # Errors
    /// [`Error::Config`] if less than half of the parameters are there.
    pub fn initial(&self, model: &ModelConfig, seed: u64) -> Result<(Vec<Vec<f32>>, Vec<String>)> {
        let params = model_params(model)?;
        let mut values = initialise(&params, seed);
        let mut fresh = Vec::new();
        for (p, value) in params.iter().zip(&mut values) {
            let shape = p.file_shape();
            match self.tensors.tensors.get(&p.name) {
                Some(t) if t.shape == shape => *value = p.to_device(&t.to_f32()?),
                Some(t) if t.shape.len() == shape.len() && t.shape[1..] == shape[1..] => {
                    let mut rows = p.to_file(value);
                    let ours = t.to_f32()?;
                    let common = rows.len().min(ours.len());
                    rows[..common].copy_from_slice(&ours[..common]);
                    *value = p.to_device(&rows);
                    fresh.push(p.name.clone());
                }
                _ => fresh.push(p.name.clone()),
            }
        }
        if 2 * fresh.len() > params.len() {
            return Err(Error::Config(format!(
                "only {} of the network's {} parameters are in the file: it is another network",
                params.len() - fresh.len(),
                params.len()
            )));
        }
        Ok((values, fresh))
    }
}
