//! A network on disk: safetensors with its whole configuration as JSON, so
//! that no flag has to be repeated.

#[cfg(feature = "files")]
use super::tensor_file::load_header;
use super::tensor_file::{Header, Storage, TensorFile, header_from_bytes};
use crate::diffusion::{DiffusionConfig, SpacedSchedule};
use crate::model::ModelConfig;
use crate::recipe::TrainConfig;
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// Metadata key that holds [`NetworkInfo`] as JSON.
pub(super) const KEY: &str = "demist";

/// What was learned from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DataInfo {
    /// Class names in label order.
    pub classes: Vec<String>,
    /// Images in the set.
    pub images: usize,
    /// The path as the user gave it.
    pub source: String,
}

/// How far training has come.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Optimizer steps done.
    pub step: u64,
    /// Images seen, which is also the position in the data stream.
    pub images_seen: u64,
    /// The lowest validation loss so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub best_loss: Option<f64>,
}

/// What the tensors of a network file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Holds {
    /// All of a run: the trained weights, their averages and both moments, each set
    /// under its prefix.
    #[serde(rename = "state")]
    State,
    /// One set of weights, under their own names: what is drawn and evaluated with.
    #[serde(rename = "ema")]
    Weights,
}

impl Holds {
    /// What stands before the names of the weights that are drawn and evaluated with:
    /// of a state these are the first average.
    pub fn prefix(self) -> &'static str {
        match self {
            Holds::State => "ema.",
            Holds::Weights => "",
        }
    }
}

impl std::fmt::Display for Holds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Holds::State => "state",
            Holds::Weights => "ema",
        })
    }
}

/// Everything a network file says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NetworkInfo {
    /// The network.
    pub model: ModelConfig,
    /// The process it was trained for.
    pub diffusion: DiffusionConfig,
    /// The images it was trained on.
    pub data: DataInfo,
    /// How it was trained (its seed is all the random state there is).
    pub training: TrainConfig,
    /// How far.
    pub progress: Progress,
    /// What its tensors are.
    pub holds: Holds,
    /// The command line.
    pub command: String,
    /// The device that trained it last.
    pub device: String,
    /// Version of the program that wrote the file.
    pub version: String,
}

impl NetworkInfo {
    /// Stores itself in `file`'s metadata.
    ///
    /// # Errors
    /// [`Error::Config`] if a value cannot be written as JSON.
    pub fn attach(&self, file: &mut TensorFile) -> Result<()> {
        let json =
            serde_json::to_string(self).map_err(|e| Error::Config(format!("metadata: {e}")))?;
        file.metadata.insert(KEY.into(), json);
        Ok(())
    }

    fn parse(header: &Header, path: &Path) -> Result<NetworkInfo> {
        let json = header.metadata.get(KEY).ok_or_else(|| {
            Error::file(
                path,
                "holds tensors but no demist configuration, so its network is unknown",
            )
        })?;
        let info: NetworkInfo = serde_json::from_str(json)
            .map_err(|e| Error::file(path, format!("its configuration cannot be read: {e}")))?;
        info.validate().map_err(|e| Error::file(path, e.to_string()))?;
        Ok(info)
    }

    /// Checks each part, and that the class names are as many as the network's
    /// classes (or absent).
    fn validate(&self) -> Result<()> {
        self.model.validate()?;
        SpacedSchedule::new(&self.diffusion, "")?;
        self.training.validate()?;
        match (self.model.classes(), self.data.classes.len()) {
            (Some(classes), names @ 1..) if names != classes => {
                Err(Error::Config(format!("{names} class names for {classes} classes")))
            }
            _ => Ok(()),
        }
    }

    /// The classes for a message: their names, or numbers where they have none.
    pub fn class_names(&self) -> String {
        match self.model.classes() {
            Some(n) if self.data.classes.is_empty() => format!("0 to {}", n.saturating_sub(1)),
            _ => self.data.classes.join(", "),
        }
    }

    /// Class number of `name`, which may also be the number itself.
    ///
    /// # Errors
    /// [`Error::Config`] listing the classes there are.
    pub fn class(&self, name: &str) -> Result<u32> {
        let classes = &self.data.classes;
        let by_name = classes.iter().position(|c| c == name);
        let by_number = || name.parse().ok().filter(|i| *i < self.model.classes().unwrap_or(0));
        match (self.model.classes(), by_name.or_else(by_number)) {
            (None, _) => {
                Err(Error::Config("the network is not conditional, it has no classes".into()))
            }
            (Some(_), Some(i)) => Ok(i as u32),
            (Some(_), None) => Err(Error::Config(format!(
                "unknown class `{name}`; there are {}",
                self.class_names()
            ))),
        }
    }
}

/// Reads the configuration alone.
///
/// # Errors
/// [`Error::Io`] or [`Error::File`] naming the fault.
#[cfg(feature = "files")]
pub fn read_info(path: &Path) -> Result<NetworkInfo> {
    NetworkInfo::parse(&load_header(path)?, path)
}

/// The configuration in a file's bytes; `name` stands for the file in messages.
///
/// # Errors
/// [`Error::File`] naming the fault.
pub fn info_from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<NetworkInfo> {
    NetworkInfo::parse(&header_from_bytes(&name, bytes)?, name.as_ref())
}

/// Reads configuration and tensors.
///
/// # Errors
/// [`Error::Io`] or [`Error::File`] naming the fault.
#[cfg(feature = "files")]
pub fn read_network(path: &Path) -> Result<(NetworkInfo, TensorFile)> {
    let info = read_info(path)?;
    Ok((info, TensorFile::read(path)?))
}

/// Configuration and tensors in a file's bytes; `name` stands for the file in messages.
///
/// # Errors
/// [`Error::File`] naming the fault.
pub fn network_from_bytes(
    name: impl AsRef<Path>,
    bytes: &[u8],
) -> Result<(NetworkInfo, TensorFile)> {
    let info = info_from_bytes(&name, bytes)?;
    Ok((info, TensorFile::from_bytes(name, bytes)?))
}

/// Writes a network with its configuration, as half precision on request.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be written.
#[cfg(feature = "files")]
pub fn write_network(
    path: &Path,
    info: &NetworkInfo,
    mut file: TensorFile,
    half: bool,
) -> Result<()> {
    info.attach(&mut file)?;
    file.write_as(path, storage(half))
}

/// The bytes of the file that [`write_network`] writes.
///
/// # Errors
/// As [`TensorFile::to_bytes`].
pub fn network_to_bytes(info: &NetworkInfo, mut file: TensorFile, half: bool) -> Result<Vec<u8>> {
    info.attach(&mut file)?;
    file.to_bytes(storage(half))
}

fn storage(half: bool) -> Storage {
    if half { Storage::F16 } else { Storage::F32 }
}
