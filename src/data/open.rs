//! Opening a data set, whose kind is told from what lies at a path, and single images.

#[cfg(feature = "files")]
use super::decode::decode_file;
use super::decode::{Pixels, decode};
use super::set::{DataOptions, Dataset};
#[cfg(feature = "files")]
use super::{atlas, folder, idx};
use crate::{Error, Result};
use std::path::Path;

impl Dataset {
    /// Opens the data set at `path`, whose kind is told from what lies there:
    ///
    /// * a folder holding `train-images*idx3*`, or such a file: IDX (MNIST
    ///   layout), gzipped or not. Classes are the label numbers, at least
    ///   "0" to "9".
    /// * any other folder: every `.png`, `.jpg` and `.jpeg` (any case) below
    ///   it, in sorted order, names beginning with a dot left out. If every
    ///   image lies in a subfolder, its class is the subfolder directly below
    ///   the root; otherwise it is the file name before the first underscore,
    ///   or "unlabelled" without one.
    /// * a `.png` with a `.json` beside it, or that `.json`: an atlas.
    ///
    /// With `image_size`, images are box-halved while their shorter side is at
    /// least twice that, bicubically resized to it and centre-cropped, with the
    /// arithmetic of Pillow (the preparation of guided-diffusion).
    #[cfg(feature = "files")]
    pub fn open(path: &Path, opts: &DataOptions) -> Result<Dataset> {
        Self::open_with_progress(path, opts, &|_, _| {})
    }

    /// As [`open`](Self::open), reporting `(files done, files in all)` from the
    /// decoding threads while a folder is verified.
    #[cfg(feature = "files")]
    pub fn open_with_progress(
        path: &Path,
        opts: &DataOptions,
        progress: &(dyn Fn(usize, usize) + Sync),
    ) -> Result<Dataset> {
        opts.check()?;
        let meta = std::fs::metadata(path).map_err(|e| Error::io("read", path, e))?;
        if meta.is_dir() {
            return match idx::images_in(path)? {
                Some(images) => idx::open(&images, opts),
                None => folder::open(path, opts, progress),
            };
        }
        let name = path.file_name().map(|n| n.to_string_lossy().to_lowercase()).unwrap_or_default();
        if name.ends_with(".json") {
            return atlas::open(&path.with_extension("png"), path, opts);
        }
        if name.ends_with(".png") {
            let json = path.with_extension("json");
            if json.is_file() {
                return atlas::open(path, &json, opts);
            }
        } else if name.contains("idx3") {
            return idx::open(path, opts);
        }
        Err(Error::file(
            path,
            "not a data set: give a folder of .png and .jpg images, an atlas .png with its .json \
             beside it, or *-images-idx3-ubyte.gz with its labels file beside it",
        ))
    }
}

/// One PNG or JPEG file as [size, size, channels] bytes, resized and cropped as
/// in a data set.
///
/// # Errors
/// If the file cannot be read as an image.
#[cfg(feature = "files")]
pub fn open_image(path: &Path, size: usize, channels: usize) -> Result<Vec<u8>> {
    fitted(path, decode_file(path), size, channels)
}

/// As [`open_image`], from a file's bytes; `name` stands for the file in messages.
///
/// # Errors
/// [`Error::File`] if they are no image.
pub fn image_from_bytes(
    name: impl AsRef<Path>,
    bytes: &[u8],
    size: usize,
    channels: usize,
) -> Result<Vec<u8>> {
    fitted(name.as_ref(), decode(bytes), size, channels)
}

/// A decoded image, resized and cropped.
fn fitted(
    path: &Path,
    decoded: std::result::Result<Pixels, String>,
    size: usize,
    channels: usize,
) -> Result<Vec<u8>> {
    DataOptions { image_size: Some(size), channels: Some(channels), ..Default::default() }
        .check()?;
    let pixels = decoded.map_err(|reason| Error::file(path, reason))?;
    Ok(pixels.fit(size, channels).with_channels(channels).data)
}
