//! Networks of other programs: a file of the reference's tensors or a folder of
//! diffusers becomes a configuration and named tensors of ours; and the way back.

use std::path::Path;

use super::guess::guess;
use super::network::KEY;
use super::parameters::check_parameters;
use super::tensor_file::TensorFile;
use super::torch::tensors_from_bytes;
#[cfg(feature = "files")]
use super::{diffusers::read_diffusers, tensor::Tensor, tensor_file::Storage, torch::read_tensors};
use crate::diffusion::{DiffusionConfig, SpacedSchedule, released_diffusion};
use crate::model::{
    Hints, ModelConfig, Shapes, infer, match_preset, model_params, model_preset, preset_names,
};
use crate::{Error, Result};

/// What wrapped networks put before every name.
const WRAPPER: &str = "module.";

/// A network of another program.
#[derive(Debug, Clone, PartialEq)]
pub struct Imported {
    /// The network.
    pub model: ModelConfig,
    /// The process it was trained for; a guess where neither a preset nor the
    /// source tells.
    pub diffusion: DiffusionConfig,
    /// Its parameters, with the reference's names and shapes.
    pub tensors: TensorFile,
    /// The preset it was taken for, asked for or recognised.
    pub preset: Option<&'static str>,
}

/// Reads a network from a PyTorch checkpoint, a safetensors file of the
/// reference's tensors, or a folder of diffusers. Its configuration is `preset`'s,
/// or that of the preset whose shapes it has, or read off its names and shapes;
/// `hints` override what shapes cannot tell.
///
/// # Errors
/// [`Error::Io`] or [`Error::File`] for a file that cannot be read or does not fit
/// its configuration, naming the first differences; [`Error::Config`] for an
/// unknown preset, or if a hint is needed.
#[cfg(feature = "files")]
pub fn import(path: &Path, preset: Option<&str>, hints: &Hints) -> Result<Imported> {
    if !path.is_dir() {
        return import_tensors(path, read_tensors(path)?, preset, hints);
    }
    if preset.is_some() {
        let why = "a folder tells its own configuration: give no preset".into();
        return Err(Error::Config(why));
    }
    let (model, diffusion, tensors) = read_diffusers(path, hints)?;
    let model = ModelConfig::UNet(model);
    checked(path, Imported { model, diffusion, tensors, preset: None })
}

/// As [`import`], from the bytes of a PyTorch checkpoint or a safetensors file; `name`
/// stands for the file in messages.
///
/// # Errors
/// As [`import`], except for reading.
pub fn import_from_bytes(
    name: impl AsRef<Path>,
    bytes: &[u8],
    preset: Option<&str>,
    hints: &Hints,
) -> Result<Imported> {
    let name = name.as_ref();
    import_tensors(name, tensors_from_bytes(name, bytes)?, preset, hints)
}

/// Checks that the tensors are those of the configuration.
fn checked(path: &Path, imported: Imported) -> Result<Imported> {
    SpacedSchedule::new(&imported.diffusion, "")?;
    let params = model_params(&imported.model)?;
    check_parameters(&params, &imported.tensors, "").map_err(|why| {
        let known = match_preset(&shapes(&imported.tensors));
        let other = known.first().filter(|name| imported.preset != Some(name));
        let hint = other.map_or(String::new(), |name| format!("; preset {name} fits"));
        Error::file(path, format!("{why}{hint}"))
    })?;
    Ok(imported)
}

/// Finds the configuration of the tensors in the file `path`.
fn import_tensors(
    path: &Path,
    mut tensors: TensorFile,
    preset: Option<&str>,
    hints: &Hints,
) -> Result<Imported> {
    if tensors.metadata.contains_key(KEY) {
        return Err(Error::file(path, "already a network of this program, with its configuration"));
    }
    tensors.metadata.clear();
    unwrap_names(&mut tensors);
    let shapes = shapes(&tensors);
    let known = match preset {
        Some(name) => {
            Some(*preset_names().iter().find(|known| **known == name).ok_or_else(|| {
                let names = preset_names().join(", ");
                Error::Config(format!("unknown preset `{name}`; there are {names}"))
            })?)
        }
        None => match_preset(&shapes).first().copied(),
    };
    let mut model = match known.and_then(model_preset) {
        Some(model) => model,
        None => infer(&shapes, hints).map_err(|e| Error::file(path, e.to_string()))?,
    };
    hints.apply(&mut model);
    model.validate()?;
    let diffusion = known.and_then(released_diffusion).unwrap_or_else(|| guess(&model));
    checked(path, Imported { model, diffusion, tensors, preset: known })
}

/// The shape of each tensor.
fn shapes(tensors: &TensorFile) -> Shapes {
    tensors.tensors.iter().map(|(name, t)| (name.clone(), t.shape.clone())).collect()
}

/// Strips what data-parallel wrappers put before every name.
fn unwrap_names(file: &mut TensorFile) {
    if file.tensors.keys().all(|name| name.starts_with(WRAPPER)) {
        let tensors = std::mem::take(&mut file.tensors);
        file.tensors =
            tensors.into_iter().map(|(name, t)| (name[WRAPPER.len()..].to_owned(), t)).collect();
    }
}

/// Writes the tensors called `prefix` + name as a plain safetensors file with the
/// reference's names and layout, without our configuration: what guided-diffusion
/// loads after `safetensors.torch.load_file`.
///
/// # Errors
/// As [`TensorFile::write_as`].
#[cfg(feature = "files")]
pub fn write_reference(
    path: &Path,
    tensors: TensorFile,
    prefix: &str,
    storage: Storage,
) -> Result<()> {
    let plain =
        |(name, tensor): (String, Tensor)| Some((name.strip_prefix(prefix)?.to_owned(), tensor));
    let tensors = tensors.tensors.into_iter().filter_map(plain).collect();
    // PyTorch's loaders ask for this.
    let metadata = [("format".to_owned(), "pt".to_owned())].into();
    TensorFile { tensors, metadata }.write_as(path, storage)
}
