//! A tuning in a file: JSON, with a header that says what it is good for.

use super::{DeviceKey, Tuning};
use crate::files::{atomic, stamp};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// More than any tuning needs; what is longer is not read.
const MOST_BYTES: u64 = 16 << 20;

/// The contents of a tuning file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TuningFile {
    /// Version of the program that measured; another one measures anew.
    pub version: String,
    /// The commit that it was built from, if the build was told.
    pub commit: Option<String>,
    /// When it last measured, in UTC.
    pub date: String,
    /// What was measured.
    #[serde(flatten)]
    pub device: DeviceKey,
    /// The winners.
    pub tuning: Tuning,
}

impl TuningFile {
    /// This program's tuning of a device.
    pub fn new(device: DeviceKey, tuning: Tuning) -> TuningFile {
        TuningFile {
            version: env!("CARGO_PKG_VERSION").into(),
            commit: stamp::commit().map(str::to_owned),
            date: stamp::now(),
            device,
            tuning,
        }
    }

    /// Reads what is good for `device` and this version of the program: `None` if
    /// there is no such file, it cannot be read, or it is another device's or another
    /// version's.
    ///
    /// # Errors
    /// [`Error::File`] if it is no tuning file.
    pub fn read(path: &Path, device: &DeviceKey) -> Result<Option<TuningFile>> {
        let corrupt = |why: String| Error::file(path, format!("is no tuning file: {why}"));
        match std::fs::metadata(path) {
            Ok(m) if m.len() > MOST_BYTES => {
                return Err(corrupt(format!("it has {} bytes", m.len())));
            }
            Ok(m) if m.is_file() => {}
            _ => return Ok(None),
        }
        let Ok(bytes) = std::fs::read(path) else { return Ok(None) };
        let json: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|e| corrupt(e.to_string()))?;
        // The rest may look different in another version.
        match json.get("version").and_then(|v| v.as_str()) {
            Some(version) if version != env!("CARGO_PKG_VERSION") => return Ok(None),
            Some(_) => {}
            None => return Err(corrupt("it says no version".into())),
        }
        let file: TuningFile = serde_json::from_value(json).map_err(|e| corrupt(e.to_string()))?;
        Ok((file.device == *device).then_some(file))
    }

    /// Writes it, into a folder that is made if need be.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::file(path, format!("cannot be put into JSON: {e}")))?;
        atomic::write_in_new_folder(path, text.as_bytes())
    }
}
