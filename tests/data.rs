//! The data layer: every source, damaged files, conversions, the sampler's
//! order and the loader.

use std::collections::HashSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use demist::data::{Augment, Batch, DataOptions, Dataset, Loader, LoaderOptions, Sampler};
use flate2::{Compression, write::GzEncoder};
use image::{DynamicImage, GrayImage, RgbImage};
use tempfile::TempDir;

fn options(image_size: Option<usize>, channels: Option<usize>) -> DataOptions {
    DataOptions { image_size, channels, ..DataOptions::default() }
}

fn open(path: &Path) -> Dataset {
    Dataset::open(path, &DataOptions::default()).unwrap()
}

/// The error of opening `path`, as the user reads it.
fn failure(path: &Path, opts: &DataOptions) -> String {
    Dataset::open(path, opts).unwrap_err().to_string()
}

#[track_caller]
fn assert_fails(path: &Path, parts: &[&str]) {
    let message = failure(path, &DataOptions::default());
    for part in parts {
        assert!(message.contains(part), "{message:?} lacks {part:?}");
    }
}

/// An RGB picture whose every byte depends on its place and on `tone`.
fn rgb(width: u32, height: u32, tone: u8) -> RgbImage {
    RgbImage::from_fn(width, height, |x, y| {
        let base = tone.wrapping_add((x * 7 + y * 13) as u8);
        image::Rgb([base, base.wrapping_mul(3), base.wrapping_add(90)])
    })
}

fn grey(width: u32, height: u32, tone: u8) -> GrayImage {
    GrayImage::from_fn(width, height, |x, y| image::Luma([tone.wrapping_add((x + 5 * y) as u8)]))
}

fn save(folder: &Path, name: &str, image: impl Into<DynamicImage>) -> PathBuf {
    let path = folder.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    image.into().save(&path).unwrap();
    path
}

fn truncate(path: &Path, keep: f64) {
    let bytes = std::fs::read(path).unwrap();
    std::fs::write(path, &bytes[..(bytes.len() as f64 * keep) as usize]).unwrap();
}

// --- folder ---------------------------------------------------------------

#[test]
fn folder_classes_are_prefixes_when_an_image_lies_at_the_root() {
    let dir = TempDir::new().unwrap();
    let zebra = rgb(8, 8, 1);
    save(dir.path(), "zebra_1.png", zebra.clone());
    save(dir.path(), "Ape_x_2.PNG", rgb(8, 8, 2));
    save(dir.path(), "more/zebra_3.png", rgb(8, 8, 3));
    save(dir.path(), "cat.Jpeg", rgb(8, 8, 4));
    save(dir.path(), ".hidden_1.png", rgb(8, 8, 5));
    std::fs::write(dir.path().join("notes.txt"), "not an image").unwrap();

    let data = open(dir.path());
    assert_eq!(data.classes(), ["Ape", "unlabelled", "zebra"]);
    // Sorted walk: Ape_x_2.PNG, cat.Jpeg, more/zebra_3.png, zebra_1.png.
    assert_eq!(data.labels(), [0, 1, 2, 2]);
    assert_eq!(data.class_counts(), [1, 1, 2]);
    assert_eq!((data.len(), data.size(), data.channels()), (4, 8, 3));
    assert_eq!(data.image(3).unwrap(), zebra.into_raw());
    assert!(data.skipped().is_empty());
    assert!(data.image(4).unwrap_err().to_string().contains("image 4"));
}

#[test]
fn folder_classes_are_subfolders_when_every_image_is_in_one() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "dogs/b_1.png", rgb(4, 4, 1));
    save(dir.path(), "dogs/deep/a_1.png", rgb(4, 4, 2));
    save(dir.path(), "cats/z_1.png", rgb(4, 4, 3));
    let data = open(dir.path());
    assert_eq!(data.classes(), ["cats", "dogs"]);
    assert_eq!(data.labels(), [0, 1, 1]);
}

#[test]
fn folder_channels_follow_the_images_and_the_option() {
    let dir = TempDir::new().unwrap();
    let g = grey(4, 4, 10);
    save(dir.path(), "a_1.png", g.clone());
    assert_eq!(open(dir.path()).channels(), 1);
    assert_eq!(open(dir.path()).image(0).unwrap(), g.clone().into_raw());

    save(dir.path(), "a_2.png", RgbImage::from_pixel(4, 4, image::Rgb([255, 0, 0])));
    let mixed = open(dir.path());
    assert_eq!(mixed.channels(), 3);
    let repeated: Vec<u8> = g.as_raw().iter().flat_map(|&v| [v, v, v]).collect();
    assert_eq!(mixed.image(0).unwrap(), repeated);

    let as_grey = Dataset::open(dir.path(), &options(None, Some(1))).unwrap();
    assert_eq!(as_grey.image(0).unwrap(), g.into_raw());
    assert_eq!(as_grey.image(1).unwrap(), [76; 16]); // 0.299 * 255
}

#[test]
fn alpha_is_dropped_and_sixteen_bits_become_eight() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", image::RgbaImage::from_pixel(2, 2, image::Rgba([9, 8, 7, 0])));
    let deep = image::ImageBuffer::from_pixel(2, 2, image::Rgb([65535u16, 257 * 100, 0]));
    save(dir.path(), "a_2.png", DynamicImage::ImageRgb16(deep));
    let data = open(dir.path());
    assert_eq!(data.image(0).unwrap(), [9, 8, 7].repeat(4));
    assert_eq!(data.image(1).unwrap(), [255, 100, 0].repeat(4));
}

#[test]
fn sizes_must_agree_unless_one_is_given() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", rgb(8, 8, 1));
    save(dir.path(), "a_2.png", rgb(9, 9, 2));
    assert_fails(dir.path(), &["8x8", "9x9", "a_1.png", "a_2.png", "--image-size"]);
    let data = Dataset::open(dir.path(), &options(Some(8), None)).unwrap();
    assert_eq!((data.len(), data.size()), (2, 8));
    assert_eq!(data.image(0).unwrap(), rgb(8, 8, 1).into_raw());

    let oblong = TempDir::new().unwrap();
    save(oblong.path(), "a_1.png", rgb(8, 4, 1));
    assert_fails(oblong.path(), &["8x4", "not square", "--image-size"]);
}

#[test]
fn resizing_halves_with_a_box_and_crops_the_centre() {
    let dir = TempDir::new().unwrap();
    // 6 x 4 to 2: halved once to 3 x 2, whose shorter side is 2 already; the
    // crop of 3 columns to 2 starts at column (3 - 2) div 2 = 0.
    let rows: [[u8; 6]; 4] = [
        [10, 11, 0, 255, 1, 1], //
        [4, 4, 1, 1, 1, 1],
        [0, 2, 100, 102, 7, 7],
        [4, 6, 200, 202, 7, 7],
    ];
    let image = GrayImage::from_raw(6, 4, rows.concat()).unwrap();
    save(dir.path(), "a_1.png", image);
    let data = Dataset::open(dir.path(), &options(Some(2), None)).unwrap();
    // (10+11)/2 -> 11 and 4 -> 8; (0+255)/2 -> 128 and 1 -> 65; (1+5)/2, (101+201)/2.
    assert_eq!(data.image(0).unwrap(), [8, 65, 3, 151]);
}

#[test]
fn resizing_bicubically_keeps_constants_and_weighs_as_keys() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", RgbImage::from_pixel(7, 5, image::Rgb([200, 3, 77])));
    // One bright column among dark ones, doubled in size.
    let spike = GrayImage::from_fn(6, 6, |x, _| image::Luma([if x == 3 { 128 } else { 0 }]));
    save(dir.path(), "a_2.png", spike);
    let data = Dataset::open(dir.path(), &options(Some(12), Some(3))).unwrap();
    assert_eq!(data.image(0).unwrap(), [200, 3, 77].repeat(144));
    // Output x has its centre at (x + 0.5) / 2, so 0.25, 0.75, 1.25 or 1.75
    // from the column's: Keys' weights there are 0.8671875, 0.2265625,
    // -0.0703125 and -0.0234375, and what falls below zero is clipped.
    let expected = [0, 0, 0, 0, 0, 29, 111, 111, 29, 0, 0, 0];
    let row: Vec<u8> = data.image(1).unwrap()[..36].iter().step_by(3).copied().collect();
    assert_eq!(row, expected);
}

#[test]
fn unreadable_images_are_skipped_by_name() {
    let dir = TempDir::new().unwrap();
    for i in 0..5 {
        save(dir.path(), &format!("a_{i}.png"), rgb(16, 16, i));
    }
    truncate(&dir.path().join("a_1.png"), 0.6);
    truncate(&save(dir.path(), "b_1.jpg", rgb(32, 32, 9)), 0.8);
    std::fs::write(dir.path().join("c_1.png"), b"").unwrap();
    std::fs::write(dir.path().join("d_1.jpeg"), b"GIF89a and no image").unwrap();
    let data = open(dir.path());
    assert_eq!(data.len(), 4);
    assert_eq!(data.classes(), ["a"]);
    let names: Vec<_> = data.skipped().iter().map(|(p, _)| p.file_name().unwrap()).collect();
    assert_eq!(names, ["a_1.png", "b_1.jpg", "c_1.png", "d_1.jpeg"]);
    assert!(data.skipped().iter().all(|(_, reason)| !reason.is_empty()));
    assert!(data.skipped()[1].1.contains("truncated"));
    assert_eq!(data.image(1).unwrap(), rgb(16, 16, 2).into_raw());
}

#[test]
fn a_header_that_lies_about_its_size_is_skipped() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", rgb(4, 4, 1));
    let path = save(dir.path(), "a_2.png", rgb(4, 4, 2));
    let mut bytes = std::fs::read(&path).unwrap();
    // IHDR: width and height at 16, its checksum over 12..29 at 29.
    bytes[16..24].copy_from_slice(&[0, 0, 0x30, 0, 0, 0, 0x30, 0]);
    let mut crc = flate2::Crc::new();
    crc.update(&bytes[12..29]);
    bytes[29..33].copy_from_slice(&crc.sum().to_be_bytes());
    std::fs::write(&path, bytes).unwrap();
    let data = open(dir.path());
    assert_eq!(data.len(), 1);
    assert!(data.skipped()[0].1.contains("12288x12288"), "{:?}", data.skipped());
}

#[test]
fn folders_without_a_readable_image_are_errors() {
    let dir = TempDir::new().unwrap();
    assert_fails(dir.path(), &["no .png"]);
    truncate(&save(dir.path(), "a_1.png", rgb(8, 8, 1)), 0.5);
    assert_fails(dir.path(), &["none of the 1 images", "a_1.png"]);
    assert_fails(&dir.path().join("absent"), &["absent", "cannot read"]);
    std::fs::write(dir.path().join("x.txt"), "x").unwrap();
    assert_fails(&dir.path().join("x.txt"), &["x.txt", "not a data set"]);
    let alone = save(dir.path(), "alone.png", rgb(8, 8, 1));
    assert_fails(&alone, &["alone.png", "not a data set", "json"]);
}

#[test]
fn damaged_bytes_never_panic() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_0.png", rgb(12, 12, 0));
    let png = std::fs::read(save(dir.path(), "b_0.png", rgb(12, 12, 5))).unwrap();
    let jpg = std::fs::read(save(dir.path(), "b_0.jpg", rgb(12, 12, 5))).unwrap();
    for (extension, whole) in [("png", png), ("jpg", jpg)] {
        for i in 0..whole.len().min(400) {
            let mut bytes = whole.clone();
            bytes[i] ^= 0x5A;
            std::fs::write(dir.path().join(format!("c_{i}.{extension}")), &bytes).unwrap();
            let cut = dir.path().join(format!("cut_{i}.{extension}"));
            std::fs::write(cut, &whole[..i]).unwrap();
        }
    }
    let data = Dataset::open(dir.path(), &options(Some(12), None)).unwrap();
    assert!(data.skipped().len() > 400, "{}", data.skipped().len());
    assert!(data.skipped().iter().all(|(p, _)| !p.ends_with("b_0.png") && !p.ends_with("b_0.jpg")));
    // Nothing that was cut off may be trained on.
    assert!(!data.classes().contains(&"cut".to_owned()));
}

#[test]
fn the_cache_changes_nothing_but_memory() {
    let dir = TempDir::new().unwrap();
    for i in 0..6 {
        save(dir.path(), &format!("a_{i}.png"), rgb(20, 17, i));
        save(dir.path(), &format!("b_{i}.png"), grey(15, 20, i));
    }
    for channels in [None, Some(1), Some(3)] {
        let cached = options(Some(7), channels);
        // Room for a few of the twelve images only.
        let tight = DataOptions { cache_bytes: 500, ..cached.clone() };
        let cached = Dataset::open(dir.path(), &cached).unwrap();
        let tight = Dataset::open(dir.path(), &tight).unwrap();
        for i in 0..cached.len() {
            assert_eq!(cached.image(i).unwrap(), tight.image(i).unwrap(), "{channels:?} {i}");
        }
    }
    let calls = AtomicUsize::new(0);
    let count = |done: usize, total: usize| {
        assert!(done <= total && total == 12);
        calls.fetch_add(1, Ordering::Relaxed);
    };
    Dataset::open_with_progress(dir.path(), &options(Some(7), None), &count).unwrap();
    assert_eq!(calls.into_inner(), 12);
}

#[cfg(unix)]
#[test]
fn link_loops_end_and_dangling_links_are_named() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "in/a_1.png", rgb(4, 4, 1));
    std::os::unix::fs::symlink(dir.path(), dir.path().join("in/loop")).unwrap();
    std::os::unix::fs::symlink("nowhere", dir.path().join("in/b_1.png")).unwrap();
    let data = open(dir.path());
    assert_eq!((data.len(), data.skipped().len()), (1, 1));
    assert!(data.skipped()[0].0.ends_with("in/b_1.png"));
}

#[test]
fn impossible_options_are_errors() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", rgb(4, 4, 1));
    assert!(failure(dir.path(), &options(Some(0), None)).contains("image size 0"));
    assert!(failure(dir.path(), &options(Some(usize::MAX), None)).contains("out of range"));
    assert!(failure(dir.path(), &options(None, Some(4))).contains("4 channels"));
}

// --- atlas ----------------------------------------------------------------

fn shipped(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets").join(name)
}

#[test]
fn the_shipped_atlases_open_by_either_file() {
    let data = open(&shipped("faces16.png"));
    assert_eq!((data.len(), data.size(), data.channels()), (6000, 16, 3));
    assert_eq!(data.classes(), ["beard", "glasses", "hat", "long", "short"]);
    assert_eq!(data.class_counts(), [1200; 5]);
    assert!((0..6000).all(|i| data.label(i) == (i / 1200) as u32));

    // Cell 4357 of 80 columns, cut out by other means.
    let sheet = image::open(shipped("faces16.png")).unwrap().into_rgb8();
    let cell = image::imageops::crop_imm(&sheet, 4357 % 80 * 16, 4357 / 80 * 16, 16, 16);
    assert_eq!(data.image(4357).unwrap(), cell.to_image().into_raw());

    let by_json = open(&shipped("faces16.json"));
    assert_eq!(by_json.image(4357).unwrap(), data.image(4357).unwrap());
    let test = open(&shipped("faces16_test.json"));
    assert_eq!((test.len(), test.class_counts()), (2000, vec![400; 5]));
    let train: HashSet<_> = (0..6000).map(|i| data.image(i).unwrap()).collect();
    assert_eq!(train.len(), 6000, "the faces are distinct");
    assert!((0..2000).all(|i| !train.contains(&test.image(i).unwrap())));

    let small = Dataset::open(&shipped("faces16.png"), &options(Some(8), Some(1))).unwrap();
    assert_eq!((small.size(), small.channels(), small.image(5).unwrap().len()), (8, 1, 64));
}

fn write_atlas(dir: &Path, width: u32, height: u32, json: &str) -> PathBuf {
    std::fs::write(dir.join("sheet.json"), json).unwrap();
    save(dir, "sheet.png", grey(width, height, 0))
}

#[test]
fn atlas_classes_are_sorted_and_labels_follow() {
    let dir = TempDir::new().unwrap();
    let json = r#"{"size": 2, "cols": 3, "channels": 1,
        "classes": [{"name": "z", "count": 3}, {"name": "a", "count": 1}]}"#;
    let data = open(&write_atlas(dir.path(), 6, 4, json));
    assert_eq!(data.classes(), ["a", "z"]);
    assert_eq!(data.labels(), [1, 1, 1, 0]);
    // Cell 3 starts at (0, 2); grey value x + 5 y.
    assert_eq!(data.image(3).unwrap(), [10, 11, 15, 16]);
}

#[test]
fn broken_atlases_are_errors() {
    let dir = TempDir::new().unwrap();
    let json = |size: &str, cols: &str, channels: u32, count: &str| {
        format!(
            r#"{{"size": {size}, "cols": {cols}, "channels": {channels},
                "classes": [{{"name": "a", "count": {count}}}]}}"#
        )
    };
    let huge = u64::MAX.to_string();
    for (text, parts) in [
        (json("2", "3", 1, "7"), vec!["sheet.png", "6x4", "7 cells", "need 6x6"]),
        (json("2", "4", 1, "4"), vec!["need 8x2"]),
        (json("2", "3", 1, &huge), vec!["need 6x"]),
        (json(&huge, &huge, 1, &huge), vec!["impossibly large"]),
        (json("0", "3", 1, "1"), vec!["size 0"]),
        (json("2", "0", 1, "1"), vec!["cols 0"]),
        (json("2", "3", 2, "1"), vec!["channels 2"]),
        (json("2", "3", 1, "0"), vec!["no images"]),
        (json("-2", "3", 1, "1"), vec!["sheet.json", "not an atlas description"]),
        ("{".to_owned(), vec!["sheet.json", "not an atlas description"]),
    ] {
        let png = write_atlas(dir.path(), 6, 4, &text);
        assert_fails(&png, &parts);
    }
    let twice = r#"{"size": 2, "cols": 3, "channels": 1,
        "classes": [{"name": "a", "count": 1}, {"name": "a", "count": 1}]}"#;
    assert_fails(&write_atlas(dir.path(), 6, 4, twice), &["listed twice"]);

    let png = write_atlas(dir.path(), 6, 4, &json("2", "3", 1, "6"));
    truncate(&png, 0.7);
    assert_fails(&png, &["sheet.png"]);
    std::fs::remove_file(&png).unwrap();
    assert_fails(&dir.path().join("sheet.json"), &["sheet.png", "not beside"]);
}

// --- IDX ------------------------------------------------------------------

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

// --- floats and flips -----------------------------------------------------

#[test]
fn floats_span_minus_one_to_one_and_flip_mirrors_columns() {
    let dir = TempDir::new().unwrap();
    let image = RgbImage::from_raw(2, 2, vec![0, 255, 51, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    save(dir.path(), "a_1.png", image);
    let data = open(dir.path());
    let mut plain = vec![0.0; data.image_len()];
    data.write_floats(0, Augment::default(), &mut plain).unwrap();
    assert_eq!(plain[..3], [-1.0, 1.0, 51.0 / 127.5 - 1.0]);
    let mut flipped = plain.clone();
    data.write_floats(0, Augment { flip: true, crop: None }, &mut flipped).unwrap();
    let pixel = |v: &[f32], p: usize| v[p * 3..p * 3 + 3].to_vec();
    for (p, mirrored) in [1, 0, 3, 2].into_iter().enumerate() {
        assert_eq!(pixel(&flipped, p), pixel(&plain, mirrored));
    }
    assert!(data.write_floats(0, Augment::default(), &mut [0.0; 5]).is_err());
}

// --- sampler --------------------------------------------------------------

#[test]
fn every_epoch_is_another_permutation() {
    let mut sampler = Sampler::new(50, 3).unwrap();
    let mut epochs = HashSet::new();
    for epoch in 0..20 {
        let order: Vec<usize> = (epoch * 50..epoch * 50 + 50).map(|k| sampler.index(k)).collect();
        let mut sorted = order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert!(epochs.insert(order), "epoch {epoch} repeats an earlier one");
    }
    // Position 0 is not drawn towards any image.
    let mut firsts = [0u32; 10];
    let mut ten = Sampler::new(10, 1).unwrap();
    (0..10_000).for_each(|epoch| firsts[ten.index(epoch * 10)] += 1);
    assert!(firsts.iter().all(|&n| (800..1200).contains(&n)), "{firsts:?}");
}

#[test]
fn the_stream_is_a_function_of_seed_and_index() {
    let mut forward = Sampler::new(37, 9).unwrap();
    let stream: Vec<_> = (0..200).map(|k| (forward.index(k), forward.flip(k))).collect();
    let mut backward = Sampler::new(37, 9).unwrap();
    for k in (0..200).rev() {
        assert_eq!((backward.index(k), backward.flip(k)), stream[k as usize], "{k}");
    }
    let mut other = Sampler::new(37, 10).unwrap();
    let different = (0..200).filter(|&k| other.index(k) != stream[k as usize].0).count();
    assert!(different > 150, "{different}");
    assert!(backward.index(u64::MAX) < 37);
    assert!(Sampler::new(0, 1).is_err());
}

#[test]
fn the_order_never_changes_between_versions() {
    // A saved run resumes by its counter alone, so the order is a format. The
    // values come from an independent implementation.
    let mut sampler = Sampler::new(10, 42).unwrap();
    let order: Vec<_> = (0..20).map(|k| sampler.index(k)).collect();
    let flips: Vec<_> = (0..12).map(|k| u8::from(sampler.flip(k))).collect();
    assert_eq!(order, [6, 2, 5, 1, 7, 3, 4, 8, 0, 9, 2, 6, 5, 3, 9, 4, 8, 7, 1, 0]);
    assert_eq!(flips, [0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1]);
}

#[test]
fn flips_are_fair_and_independent_of_the_order() {
    let sampler = Sampler::new(1000, 4).unwrap();
    let heads = (0..10_000).filter(|&k| sampler.flip(k)).count();
    assert!((4700..5300).contains(&heads), "{heads}");
    let alternations = (0..10_000).filter(|&k| sampler.flip(k) != sampler.flip(k + 1)).count();
    assert!((4700..5300).contains(&alternations), "{alternations}");
}

// --- loader ---------------------------------------------------------------

fn faces() -> Arc<Dataset> {
    Arc::new(open(&shipped("faces16_test.png")))
}

fn take(data: &Arc<Dataset>, options: LoaderOptions, batches: usize) -> Vec<Batch> {
    let mut loader = Loader::new(data.clone(), options).unwrap();
    (0..batches).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn the_loader_delivers_the_stream_for_any_number_of_workers() {
    let data = faces();
    // 30 batches of 96 go past the end of the first epoch of 2000.
    let options = LoaderOptions { batch_size: 96, seed: 7, flip: true, ..Default::default() };
    let mut sampler = Sampler::new(data.len(), 7).unwrap();
    let expected: Vec<Batch> = (0..30u64)
        .map(|b| {
            let mut images = vec![0.0; 96 * data.image_len()];
            let mut labels = Vec::new();
            for (k, out) in (b * 96..).zip(images.chunks_exact_mut(data.image_len())) {
                let i = sampler.index(k);
                data.write_floats(i, Augment { flip: sampler.flip(k), crop: None }, out).unwrap();
                labels.push(data.label(i));
            }
            Batch { images, labels, start: b * 96 }
        })
        .collect();
    for workers in [0, 1, 2, 3, 7] {
        let got = take(&data, LoaderOptions { workers, ..options.clone() }, 30);
        assert!(got == expected, "{workers} workers");
    }
}

#[test]
fn resuming_by_the_counter_equals_never_having_stopped() {
    let data = faces();
    let options = LoaderOptions { batch_size: 64, seed: 1, flip: true, ..Default::default() };
    let whole = take(&data, options.clone(), 40);
    let resumed = take(&data, LoaderOptions { start: 25 * 64, workers: 3, ..options.clone() }, 15);
    assert!(resumed == whole[25..]);
    // Another batch size sees the same images.
    let halves = take(&data, LoaderOptions { batch_size: 32, ..options.clone() }, 80);
    assert!(halves.iter().flat_map(|b| &b.labels).eq(whole.iter().flat_map(|b| &b.labels)));
    let unflipped = take(&data, LoaderOptions { flip: false, ..options }, 1);
    assert_eq!(unflipped[0].labels, whole[0].labels);
    assert!(unflipped[0].images != whole[0].images);
}

#[test]
fn a_batch_may_be_larger_than_the_set() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", rgb(4, 4, 1));
    save(dir.path(), "b_1.png", rgb(4, 4, 2));
    let options = LoaderOptions { batch_size: 6, ..Default::default() };
    let batch = take(&Arc::new(open(dir.path())), options, 1).remove(0);
    assert_eq!(batch.images.len(), 6 * 48);
    assert_eq!(batch.labels.iter().sum::<u32>(), 3, "each epoch holds both: {:?}", batch.labels);
}

#[test]
fn dropping_the_loader_joins_its_threads() {
    let data = faces();
    for workers in [1, 4] {
        for taken in [0, 1, 5] {
            let options = LoaderOptions { batch_size: 256, workers, ..Default::default() };
            assert_eq!(take(&data, options, taken).len(), taken);
            // The workers held their own references.
            assert_eq!(Arc::strong_count(&data), 1);
        }
    }
}

#[test]
fn errors_of_workers_come_out_of_next() {
    let dir = TempDir::new().unwrap();
    let path = save(dir.path(), "a_1.png", rgb(4, 4, 1));
    let opts = DataOptions { cache_bytes: 0, ..DataOptions::default() };
    let data = Arc::new(Dataset::open(dir.path(), &opts).unwrap());
    save(dir.path(), "a_1.png", rgb(5, 5, 1));
    let resized = data.image(0).unwrap_err().to_string();
    assert!(resized.contains("5x5 now, was 4x4"), "{resized}");
    std::fs::remove_file(&path).unwrap();
    let options = LoaderOptions { batch_size: 2, workers: 2, ..Default::default() };
    let mut loader = Loader::new(data.clone(), options).unwrap();
    assert!(loader.next().unwrap_err().to_string().contains("a_1.png"));
    assert!(loader.next().unwrap_err().to_string().contains("stopped"));

    let faces = faces();
    let make = |batch_size, start| {
        Loader::new(faces.clone(), LoaderOptions { batch_size, start, ..Default::default() })
    };
    assert!(make(0, 0).is_err());
    assert!(make(usize::MAX, 0).is_err());
    assert!(make(usize::MAX / 16384, 0).unwrap().next().is_err());
    assert!(make(8, u64::MAX - 4).unwrap().next().is_err());
}
