//! Pictures on disk, and what opening them says.

use demist::data::{DataOptions, Dataset};
use image::{DynamicImage, GrayImage, RgbImage};
use std::path::{Path, PathBuf};

pub fn options(image_size: Option<usize>, channels: Option<usize>) -> DataOptions {
    DataOptions { image_size, channels, ..DataOptions::default() }
}

pub fn open(path: &Path) -> Dataset {
    Dataset::open(path, &DataOptions::default()).unwrap()
}

/// The error of opening `path`, as the user reads it.
pub fn failure(path: &Path, opts: &DataOptions) -> String {
    Dataset::open(path, opts).unwrap_err().to_string()
}

#[track_caller]
pub fn assert_fails(path: &Path, parts: &[&str]) {
    let message = failure(path, &DataOptions::default());
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// An RGB picture whose every byte depends on its place and on `tone`.
pub fn rgb(width: u32, height: u32, tone: u8) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let base = tone.wrapping_add((x * 7 + y * 13) as u8);
        image::Rgb([base, base.wrapping_mul(3), base.wrapping_add(90)])
    })
}

pub fn grey(width: u32, height: u32, tone: u8) -> GrayImage {
    GrayImage::from_fn(width, height, |x, y| image::Luma([tone.wrapping_add((x + 5 * y) as u8)]))
}

pub fn save(folder: &Path, name: &str, image: impl Into<DynamicImage>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(&path).unwrap();
    path
}

pub fn truncate(path: &Path, keep: f64) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..(bytes.len() as f64 * keep) as usize]).unwrap();
}

pub fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}
