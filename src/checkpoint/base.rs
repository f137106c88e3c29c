//! Starting a run from a network that exists: one of ours, or of another
//! program.

use super::import::{Imported, import_from_bytes};
use super::network::{KEY, NetworkInfo, network_from_bytes};
use super::tensor_file::{TensorFile, header_from_bytes};
#[cfg(feature = "files")]
use super::{import::import, network::read_network, tensor_file::load_header};
use crate::model::{Hints, ModelConfig, initialise, model_params};
use crate::{Error, Result};
use std::path::Path;

/// Reads a network of ours (of a run's state the averaged weights), or imports
/// one.
///
/// # Errors
/// As [`read_network`] and [`import`].
#[cfg(feature = "files")]
pub fn read_any(path: &Path, preset: Option<&str>, hints: &Hints) -> Result<Imported> {
    let ours = path.is_file() && load_header(path).is_ok_and(|h| h.metadata.contains_key(KEY));
    if !ours {
        return import(path, preset, hints);
    }
    refuse_preset(path, preset)?;
    let (info, file) = read_network(path)?;
    Ok(weights_of(info, file))
}

/// As [`read_any`], from a file's bytes; `name` stands for the file in messages.
///
/// # Errors
/// As [`network_from_bytes`] and [`import_from_bytes`].
pub fn any_from_bytes(
    name: impl AsRef<Path>,
    bytes: &[u8],
    preset: Option<&str>,
    hints: &Hints,
) -> Result<Imported> {
    let name = name.as_ref();
    let ours = header_from_bytes(name, bytes).is_ok_and(|h| h.metadata.contains_key(KEY));
    if !ours {
        return import_from_bytes(name, bytes, preset, hints);
    }
    refuse_preset(name, preset)?;
    let (info, file) = network_from_bytes(name, bytes)?;
    Ok(weights_of(info, file))
}

/// A network of ours needs no preset.
fn refuse_preset(path: &Path, preset: Option<&str>) -> Result<()> {
    match preset {
        Some(_) => Err(Error::file(path, "tells its own configuration: give no preset")),
        None => Ok(()),
    }
}

/// The weights that are drawn with, under their own names.
fn weights_of(info: NetworkInfo, file: TensorFile) -> Imported {
    let prefix = info.holds.prefix();
    let named = file.tensors.into_iter().filter_map(|(name, tensor)| {
        name.strip_prefix(prefix).map(|name| (name.to_owned(), tensor))
    });
    let tensors = TensorFile { tensors: named.collect(), metadata: Default::default() };
    Imported { model: info.model, diffusion: info.diffusion, tensors, preset: None }
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
