//! Atlases: one picture with a description beside it.

use crate::support::*;
use demist::data::Dataset;
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use tempfile::TempDir;

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
