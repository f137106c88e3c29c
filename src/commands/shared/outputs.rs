//! What a command writes, told by the name of it.

use demist::{Error, Result};
use std::path::Path;

/// What is written, by the name of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// A grid of images (.png).
    Picture,
    /// A NumPy archive (.npz).
    Archive,
    /// A folder of images: any other name.
    Folder,
}

impl OutputKind {
    /// The kind of `out`; a name that promises another kind of file is refused.
    pub fn of(out: &Path) -> Result<OutputKind> {
        let extension = out.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
        match extension.as_deref() {
            Some("png") => Ok(OutputKind::Picture),
            Some("npz") => Ok(OutputKind::Archive),
            Some(
                e @ ("jpg" | "jpeg" | "gif" | "webp" | "bmp" | "tif" | "tiff" | "npy" | "pt"
                | "safetensors" | "csv" | "json" | "txt"),
            ) => Err(Error::file(
                out,
                format!("no .{e} can be written: name a .png, an .npz or a folder"),
            )),
            _ => Ok(OutputKind::Folder),
        }
    }

    /// Refuses all but pictures, before the work.
    pub fn must_be_picture(out: &Path) -> Result<()> {
        match OutputKind::of(out)? {
            OutputKind::Picture => Ok(()),
            _ => Err(Error::file(out, "--out must be a picture, with a name that ends in .png")),
        }
    }
}

/// Makes the output folder, and fails before the work rather than after it.
pub fn prepare_output(out: &Path) -> Result<()> {
    let folder = if OutputKind::of(out)? != OutputKind::Folder {
        if out.is_dir() {
            return Err(Error::file(out, "is a folder, a file of that name cannot be written"));
        }
        out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    } else {
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        out
    };
    if !folder.is_dir() {
        return Err(Error::file(out, format!("there is no folder {}", folder.display())));
    }
    let probe = tempfile::tempfile_in(folder);
    probe.map(|_| ()).map_err(|e| Error::io("write in", folder, io_reason(e)))
}

/// The reason alone: a temporary file's error repeats its path.
fn io_reason(e: std::io::Error) -> std::io::Error {
    e.kind().into()
}

/// A class name as part of a file name: it comes from a file and may hold
/// separators.
pub fn file_name_part(class: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-.".contains(c) { c } else { '_' };
    class.chars().take(64).map(safe).collect::<String>().trim_start_matches('.').to_owned()
}
