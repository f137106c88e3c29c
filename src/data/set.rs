//! A data set: its options, its images and their classes.

use super::decode::Pixels;
#[cfg(feature = "files")]
use super::decode::decode_file;
use crate::{Error, Result};
use std::path::{Path, PathBuf};

/// Class of the images that name none.
pub(super) const UNLABELLED: &str = "unlabelled";

/// Largest side that can be asked for, in pixels: far above any pixel-space
/// diffusion model, and low enough that a mistyped size cannot exhaust memory.
const MAX_IMAGE_SIZE: usize = 8192;

/// How a data set is to be presented.
#[derive(Debug, Clone)]
pub struct DataOptions {
    /// Side of the square images, in pixels; others are resized and cropped to
    /// it. `None`: every image must already be square and of one size.
    pub image_size: Option<usize>,
    /// 1 (grey) or 3 (RGB). `None`: what the source has; a folder is RGB unless
    /// all its images are grey.
    pub channels: Option<usize>,
    /// Keep what random crops are cut from (see [`Augment`]).
    pub random_crop: bool,
    /// Bytes of decoded images a folder may keep in memory; the rest is decoded
    /// again whenever it is needed.
    pub cache_bytes: u64,
}

impl Default for DataOptions {
    fn default() -> Self {
        DataOptions { image_size: None, channels: None, random_crop: false, cache_bytes: 1 << 30 }
    }
}

impl DataOptions {
    pub(super) fn check(&self) -> Result<()> {
        if let Some(size) = self.image_size
            && !(1..=MAX_IMAGE_SIZE).contains(&size)
        {
            return Err(Error::Config(format!(
                "image size {size} is out of range: 1 to {MAX_IMAGE_SIZE} pixels"
            )));
        }
        match self.channels {
            None | Some(1 | 3) => Ok(()),
            Some(n) => {
                Err(Error::Config(format!("{n} channels asked for: 1 (grey) or 3 (RGB) exist")))
            }
        }
    }
}

/// What is done to an image each time it is seen.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Augment {
    /// Mirror it left to right.
    pub flip: bool,
    /// Resize and crop it at random: three uniform numbers in 0..1 choose the
    /// shorter side between the image size and 1.25 times it, and the window.
    pub crop: Option<[f64; 3]>,
}

/// Where the pixels come from after opening.
pub(super) enum Store {
    /// All images in memory, one after the other, each HWC of the source's own
    /// size (atlas, IDX).
    Flat { pixels: Vec<u8>, width: usize, height: usize, channels: usize },
    /// One file per image (folder); `cache[i]` holds the already fitted image
    /// where the budget allowed it.
    #[cfg(feature = "files")]
    Files { paths: Vec<PathBuf>, cache: Vec<Option<Pixels>> },
}

/// A labelled set of square 8-bit images, all of one size and channel count.
pub struct Dataset {
    pub(super) size: usize,
    pub(super) channels: usize,
    /// Whether images are brought to `size` (asked for by the user) or were
    /// found to have it.
    pub(super) resized: bool,
    pub(super) classes: Vec<String>,
    pub(super) labels: Vec<u32>,
    pub(super) store: Store,
    pub(super) skipped: Vec<(PathBuf, String)>,
}

impl Dataset {
    /// Assembles an in-memory set of equal images (`pixels` is [len, height,
    /// width, channels]).
    pub(super) fn from_flat(
        path: &Path,
        opts: &DataOptions,
        pixels: Vec<u8>,
        [width, height, channels]: [usize; 3],
        classes: Vec<String>,
        labels: Vec<u32>,
    ) -> Result<Dataset> {
        if labels.is_empty() {
            return Err(Error::file(path, "holds no images"));
        }
        if opts.image_size.is_none() && width != height {
            return Err(Error::file(
                path,
                format!("images are {width}x{height}, not square: give --image-size"),
            ));
        }
        Ok(Dataset {
            size: opts.image_size.unwrap_or(width),
            channels: opts.channels.unwrap_or(channels),
            resized: opts.image_size.is_some(),
            classes,
            labels,
            store: Store::Flat { pixels, width, height, channels },
            skipped: Vec::new(),
        })
    }

    /// A set of images in memory: `pixels` are bytes `[n, size, size, channels]`, rows
    /// first, and `labels` is the class of each, as an index into `classes`. Without
    /// labels and classes all are of one class.
    ///
    /// # Errors
    /// [`Error::Data`] if there are no images, or the numbers do not fit.
    pub fn from_pixels(
        pixels: Vec<u8>,
        size: usize,
        channels: usize,
        labels: Vec<u32>,
        classes: Vec<String>,
    ) -> Result<Dataset> {
        let fail = |detail: String| Err(Error::Data(format!("images in memory: {detail}")));
        let options =
            DataOptions { image_size: Some(size), channels: Some(channels), ..Default::default() };
        options.check()?;
        let (bytes, len) = (pixels.len(), size * size * channels);
        if bytes == 0 || !bytes.is_multiple_of(len) {
            return fail(format!("{bytes} bytes are no images of {size}x{size}x{channels}"));
        }
        let images = bytes / len;
        let (labels, classes) = match (labels.len(), classes.len()) {
            (0, 0) => (vec![0; images], vec![UNLABELLED.to_owned()]),
            _ => (labels, classes),
        };
        if labels.len() != images {
            return fail(format!("{images} images with {} labels", labels.len()));
        }
        if let Some(label) = labels.iter().find(|label| **label as usize >= classes.len()) {
            return fail(format!("label {label} of {} classes", classes.len()));
        }
        let store = Store::Flat { pixels, width: size, height: size, channels };
        let skipped = Vec::new();
        Ok(Dataset { size, channels, resized: false, classes, labels, store, skipped })
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there are no images; never true for an opened set.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Class names, sorted (numerically for IDX); a label is an index into them.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Label of image `i`.
    ///
    /// # Panics
    /// If `i >= len()`, as indexing a slice does.
    pub fn label(&self, i: usize) -> u32 {
        self.labels[i]
    }

    /// All labels, in image order.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// Number of images in each class.
    pub fn class_counts(&self) -> Vec<usize> {
        let mut counts = vec![0; self.classes.len()];
        for &label in &self.labels {
            counts[label as usize] += 1;
        }
        counts
    }

    /// Side of the square images, in pixels.
    pub fn size(&self) -> usize {
        self.size
    }

    /// Channels per pixel: 1 (grey) or 3 (RGB).
    pub fn channels(&self) -> usize {
        self.channels
    }

    /// Values per image: size * size * channels.
    pub fn image_len(&self) -> usize {
        self.size * self.size * self.channels
    }

    /// Files left out because they cannot be decoded, each with the reason.
    pub fn skipped(&self) -> &[(PathBuf, String)] {
        &self.skipped
    }

    /// Image `i` as [size, size, channels] bytes.
    ///
    /// # Errors
    /// If `i` is out of range, or the file behind it changed since the set was
    /// opened.
    pub fn image(&self, i: usize) -> Result<Vec<u8>> {
        self.cut(i, None)
    }

    /// Image `i`, cut at random by `crop` (see [`Augment::crop`]).
    pub(super) fn cut(&self, i: usize, crop: Option<[f64; 3]>) -> Result<Vec<u8>> {
        if i >= self.len() {
            return Err(Error::Data(format!("image {i} asked for, the set has {}", self.len())));
        }
        let pixels = match &self.store {
            Store::Flat { pixels, width, height, channels } => {
                let len = width * height * channels;
                let data = pixels[i * len..(i + 1) * len].to_vec();
                Pixels { width: *width, height: *height, channels: *channels, data }
            }
            #[cfg(feature = "files")]
            Store::Files { paths, cache } => match &cache[i] {
                Some(pixels) => pixels.clone(),
                None => self.decode_again(&paths[i])?,
            },
        };
        let pixels = match crop {
            Some(u) => pixels.fit_random(self.size, self.channels, u),
            None if self.resized => pixels.fit(self.size, self.channels),
            None => pixels,
        };
        Ok(pixels.with_channels(self.channels).data)
    }

    /// Writes image `i` as floats in [-1, 1] (see [`to_float`]) to `out`, which
    /// holds [`image_len`](Self::image_len) values [size, size, channels];
    /// changed as `augment` says.
    pub fn write_floats(&self, i: usize, augment: Augment, out: &mut [f32]) -> Result<()> {
        let image = self.cut(i, augment.crop)?;
        if out.len() != image.len() {
            return Err(Error::shape(
                "dataset",
                format!("{} values offered for an image of {}", out.len(), image.len()),
            ));
        }
        let row = self.size * self.channels;
        for (src, dst) in image.chunks_exact(row).zip(out.chunks_exact_mut(row)) {
            let to = dst.chunks_exact_mut(self.channels);
            let from = src.chunks_exact(self.channels);
            let copy = |(d, s): (&mut [f32], &[u8])| {
                for (d, &s) in d.iter_mut().zip(s) {
                    *d = to_float(s);
                }
            };
            if augment.flip {
                to.rev().zip(from).for_each(copy)
            } else {
                to.zip(from).for_each(copy)
            }
        }
        Ok(())
    }

    /// Decodes a file that the cache had no room for.
    #[cfg(feature = "files")]
    fn decode_again(&self, path: &Path) -> Result<Pixels> {
        let pixels = decode_file(path)
            .map_err(|reason| Error::file(path, format!("{reason} (it was readable before)")))?;
        if !self.resized && (pixels.width, pixels.height) != (self.size, self.size) {
            return Err(Error::file(
                path,
                format!(
                    "is {}x{} now, was {2}x{2} when the data set was opened",
                    pixels.width, pixels.height, self.size
                ),
            ));
        }
        Ok(pixels)
    }
}

impl std::fmt::Debug for Dataset {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Dataset")
            .field("len", &self.len())
            .field("size", &self.size)
            .field("channels", &self.channels)
            .field("classes", &self.classes)
            .field("skipped", &self.skipped)
            .finish_non_exhaustive()
    }
}

/// Byte to model value: x / 127.5 - 1, in [-1, 1].
pub fn to_float(x: u8) -> f32 {
    f32::from(x) / 127.5 - 1.0
}

/// The first names of classes, for a message.
pub fn first_names(classes: &[String]) -> String {
    let shown: Vec<&str> = classes.iter().take(8).map(String::as_str).collect();
    let more = if classes.len() > 8 { ", ..." } else { "" };
    format!("{}{more}", shown.join(", "))
}
