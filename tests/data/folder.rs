//! Folders of images: classes, sizes, channels, and files that cannot be read.

use crate::support::*;
use demist::data::{DataOptions, Dataset};
use image::{DynamicImage, GrayImage, RgbImage};
use std::sync::atomic::{AtomicUsize, Ordering};
use tempfile::TempDir;

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
