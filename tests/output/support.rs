//! Folders and pictures to write.

use demist::Error;
use std::fs;
use std::path::Path;

/// The only file in a folder, so that left-over temporaries are noticed.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

pub fn temp() -> tempfile::TempDir {
    tempfile::tempdir().unwrap()
}

pub fn assert_io_names(error: &Error, path: &Path) {
    assert!(matches!(error, Error::Io { path: p, .. } if p == path), "{error:?}");
    assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
}

/// A picture with a different value in every byte of the first rows.
pub fn pattern(n: usize) -> Vec<u8> {
    (0..n).map(|i| (i * 37 % 251) as u8).collect()
}
