//! Whole-file writes that either happen or do not: the bytes go to a temporary
//! name in the same folder, reach the disk, and are then renamed over the target.
//!
//! A crash or a full disk leaves the old file as it was. What a killed process
//! leaves behind is named `.NAME.*.tmp`.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// Writes `bytes` to `path`, replacing what was there.
///
/// # Errors
/// [`Error::Io`] naming `path` when the folder is missing or not writable, the
/// disk is full, or `path` is not an ordinary file.
pub fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    write_with(path, |w| w.write_all(bytes))
}

/// As [`write()`], into a folder that is made if it is missing.
///
/// # Errors
/// As [`write()`].
pub fn write_in_new_folder(path: &Path, bytes: &[u8]) -> Result<()> {
    if let Some(folder) = path.parent() {
        std::fs::create_dir_all(folder).map_err(|e| Error::io("create", folder, e))?;
    }
    write(path, bytes)
}

/// Writes `path` through `fill`, which gets a buffered, seekable writer.
/// Nothing appears at `path` unless `fill` and every later step succeed.
///
/// # Errors
/// As [`write()`], and whatever `fill` returns.
pub fn write_with(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&File>) -> io::Result<()>,
) -> Result<()> {
    let target = resolve(path)?;
    let folder = match target.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    let temporary = temporary_in(folder, &target).map_err(|e| {
        let why = if folder.is_dir() {
            format!(
                "cannot write in the folder {}: {}",
                folder.display(),
                io::Error::from(e.kind())
            )
        } else {
            format!("there is no folder {}", folder.display())
        };
        Error::io("create", path, io::Error::new(e.kind(), why))
    })?;

    let mut writer = BufWriter::new(temporary.as_file());
    fill(&mut writer)
        .and_then(|()| writer.flush())
        .and_then(|()| temporary.as_file().sync_all())
        .map_err(|e| Error::io("write", path, e))?;
    drop(writer);

    temporary.persist(&target).map_err(|e| Error::io("rename", path, e.error))?;
    sync_folder(folder);
    Ok(())
}

/// The file that is really to be replaced: links are followed, and anything
/// that is not an ordinary file (a folder, a device) is refused, because a
/// rename would put a plain file in its place.
fn resolve(path: &Path) -> Result<PathBuf> {
    if path.file_name().is_none() {
        let why = io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name");
        return Err(Error::io("create", path, why));
    }
    match std::fs::metadata(path) {
        Ok(m) if m.is_file() => {
            std::fs::canonicalize(path).map_err(|e| Error::io("create", path, e))
        }
        Ok(m) => {
            let what = if m.is_dir() { "it is a folder" } else { "it is not an ordinary file" };
            let why = io::Error::new(io::ErrorKind::InvalidInput, what);
            Err(Error::io("create", path, why))
        }
        // Absent, or out of reach: creating the temporary file says which.
        Err(_) => Ok(path.to_owned()),
    }
}

fn temporary_in(folder: &Path, target: &Path) -> io::Result<tempfile::NamedTempFile> {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    // File names are limited to 255 bytes on most systems: keep the prefix short.
    let prefix: String = format!(".{name}").chars().take(40).collect();
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(".tmp");
    // A temporary file is private by default; an output is an ordinary file, so
    // it keeps the mode of the file it replaces or follows the umask.
    #[cfg(unix)]
    {
        use std::os::unix::fs::PermissionsExt;
        builder.permissions(std::fs::Permissions::from_mode(0o666));
    }
    let temporary = builder.tempfile_in(folder)?;
    if let Ok(old) = std::fs::metadata(target) {
        // Best effort: the file may belong to someone else.
        let _ = temporary.as_file().set_permissions(old.permissions());
    }
    Ok(temporary)
}

/// Makes the rename itself durable. Not every file system can; the data is
/// already safe, so a refusal is ignored.
fn sync_folder(folder: &Path) {
    #[cfg(unix)]
    if let Ok(f) = File::open(folder) {
        let _ = f.sync_all();
    }
    #[cfg(not(unix))]
    let _ = folder;
}
