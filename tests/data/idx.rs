//! IDX files, the layout of MNIST.

use crate::support::*;
use demist::data::{DataOptions, Dataset};
use flate2::{Compression, write::GzEncoder};
use std::io::Write;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn idx(magic: u32, shape: &[u32], data: &[u8]) -> Vec<u8> {
    let words = std::iter::once(&magic).chain(shape);
    words.flat_map(|w| w.to_be_bytes()).chain(data.iter().copied()).collect()
}

const IMAGES: &str = "train-images-idx3-ubyte.gz";
const LABELS: &str = "train-labels-idx1-ubyte.gz";

/// Three images of 4 x 4 with labels 7, 0, 3; returns the images file.
fn write_idx(dir: &Path) -> PathBuf {
    let pixels: Vec<u8> = (0..48).collect();
    std::fs::write(dir.join(IMAGES), gzip(&idx(2051, &[3, 4, 4], &pixels))).unwrap();
    std::fs::write(dir.join(LABELS), gzip(&idx(2049, &[3], &[7, 0, 3]))).unwrap();
    dir.join(IMAGES)
}

#[test]
fn idx_opens_by_file_or_folder() {
    let dir = TempDir::new().unwrap();
    let images = write_idx(dir.path());
    for path in [images.as_path(), dir.path()] {
        let data = open(path);
        assert_eq!((data.len(), data.size(), data.channels()), (3, 4, 1));
        assert_eq!(data.classes().join(" "), "0 1 2 3 4 5 6 7 8 9");
        assert_eq!(data.labels(), [7, 0, 3]);
        assert_eq!(data.image(1).unwrap(), (16..32).collect::<Vec<u8>>());
    }
    let larger = Dataset::open(&images, &options(Some(6), Some(3))).unwrap();
    assert_eq!(larger.image(2).unwrap().len(), 6 * 6 * 3);
}

#[test]
fn idx_opens_without_gzip_and_with_more_than_ten_classes() {
    let dir = TempDir::new().unwrap();
    let images = dir.path().join("t10k-images.idx3-ubyte");
    std::fs::write(&images, idx(2051, &[2, 1, 1], &[5, 6])).unwrap();
    let labels = dir.path().join("t10k-labels.idx1-ubyte");
    std::fs::write(labels, idx(2049, &[2], &[11, 2])).unwrap();
    let data = open(&images);
    assert_eq!((data.classes().len(), data.label(0)), (12, 11));
    assert_eq!(data.classes()[11], "11");
}

#[test]
fn broken_idx_files_are_errors() {
    let dir = TempDir::new().unwrap();
    let images = write_idx(dir.path());
    let good = std::fs::read(&images).unwrap();
    for keep in 0..good.len() {
        std::fs::write(&images, &good[..keep]).unwrap();
        let message = failure(&images, &DataOptions::default());
        assert!(message.contains(IMAGES), "{keep} bytes: {message}");
    }
    let max = u32::MAX;
    for (content, parts) in [
        (idx(2049, &[3, 4, 4], &[0; 48]), vec!["magic number 0x00000801", "0x00000803"]),
        (idx(2051, &[3, 4, 4], &[0; 47]), vec!["promises 48", "fewer"]),
        (idx(2051, &[3, 4, 4], &[0; 49]), vec!["promises 48", "more"]),
        (idx(2051, &[max, 28, 28], &[0; 9]), vec!["fewer"]),
        (idx(2051, &[max, max, max], &[0; 9]), vec!["impossible shape"]),
        (idx(2051, &[3, 0, 4], &[]), vec!["4x0"]),
        (idx(2051, &[3, 2, 4], &[0; 24]), vec!["4x2", "--image-size"]),
        (idx(2051, &[2, 4, 4], &[0; 32]), vec![LABELS, "3 labels for 2 images"]),
    ] {
        std::fs::write(&images, gzip(&content)).unwrap();
        assert_fails(&images, &parts);
    }
    std::fs::write(&images, gzip(&idx(2051, &[0, 4, 4], &[]))).unwrap();
    std::fs::write(dir.path().join(LABELS), gzip(&idx(2049, &[0], &[]))).unwrap();
    assert_fails(&images, &["no images"]);
    std::fs::write(&images, &good).unwrap();
    std::fs::remove_file(dir.path().join(LABELS)).unwrap();
    assert_fails(&images, &[LABELS, "missing"]);
}
