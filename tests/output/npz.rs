//! NumPy archives.

use crate::support::*;
use demist::Error;
use demist::output::npz;
use std::fs;
use std::io::Write;
use std::path::Path;

/// A sound zip archive with one array, made of a header and data.
fn archive(path: &Path, name: &str, header: &str, data: &[u8]) {
    let mut zip = zip::ZipWriter::new(fs::File::create(path).unwrap());
    zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    let header = format!("{header}\n");
    zip.write_all(b"\x93NUMPY\x01\x00").unwrap();
    zip.write_all(&(header.len() as u16).to_le_bytes()).unwrap();
    zip.write_all(header.as_bytes()).unwrap();
    zip.write_all(data).unwrap();
    zip.finish().unwrap();
}

#[test]
fn samples_read_back_with_and_without_labels() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    let images = pattern(3 * 4 * 5 * 3);
    let labels = [7, -1, i64::MAX];
    for given in [Some(&labels[..]), None] {
        npz::save_samples(&path, &images, [3, 4, 5, 3], given).unwrap();
        // The date of the first entry: none (1980-01-01), so equal samples are equal files.
        assert_eq!(fs::read(&path).unwrap()[10..14], [0, 0, 0x21, 0]);
        let mut archive = zip::ZipArchive::new(fs::File::open(&path).unwrap()).unwrap();
        assert_eq!(archive.len(), 1 + usize::from(given.is_some()));
        let array = npyz::NpyFile::new(archive.by_name("arr_0.npy").unwrap()).unwrap();
        assert_eq!((array.shape(), array.order()), (&[3, 4, 5, 3][..], npyz::Order::C));
        assert_eq!(array.dtype().descr(), "'|u1'");
        assert_eq!(array.into_vec::<u8>().unwrap(), images);
        if given.is_some() {
            let array = npyz::NpyFile::new(archive.by_name("arr_1.npy").unwrap()).unwrap();
            assert_eq!(array.dtype().descr(), "'<i8'");
            assert_eq!(array.into_vec::<i64>().unwrap(), labels);
        }
        let samples = npz::load_samples(&path).unwrap();
        assert_eq!((&samples.images, samples.shape), (&images, [3, 4, 5, 3]));
        assert_eq!(samples.labels.as_deref(), given);
    }
}

#[test]
fn a_numpy_archive_with_compression_is_read() {
    // numpy.savez_compressed(f, arange(24, uint8).reshape(2, 2, 2, 3), array([1, 2]))
    let samples = npz::load_samples(Path::new("tests/data/numpy_compressed.npz")).unwrap();
    assert_eq!(samples.images, (0..24).collect::<Vec<u8>>());
    assert_eq!(samples.shape, [2, 2, 2, 3]);
    assert_eq!(samples.labels, Some(vec![1, 2]));
}

#[test]
fn sizes_that_disagree_are_refused() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    for (shape, labels) in [([1, 2, 2, 3], None), ([2, 2, 2, 3], Some(&[1][..]))] {
        let error = npz::save_samples(&path, &[0; 24], shape, labels).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error}");
    }
    let error = npz::save_samples(&path, &[], [usize::MAX, 2, 2, 3], None).unwrap_err();
    assert!(matches!(error, Error::Shape { .. }), "{error}");
    assert!(!path.exists());
}

#[test]
fn broken_archives_are_errors_that_name_the_fault() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    let fails_with = |what: &str| {
        let error = npz::load_samples(&path).unwrap_err();
        assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error}");
        assert!(error.to_string().contains(what), "{error} lacks {what:?}");
    };
    let dict = |descr: &str, order: &str, shape: &str| {
        format!("{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}")
    };
    let u1 = "'|u1'";
    let nested = format!("{}1{}", "(".repeat(30_000), ")".repeat(30_000));
    for (header, what) in [
        (dict(u1, "False", "(2, 2, 6)"), "the shape [2, 2, 6]"),
        (dict(u1, "False", "(2, 2, 2, 4)"), "`arr_0`"),
        (dict(u1, "False", "(2, 2, 2, 2)"), "goes on beyond its shape"),
        (dict(u1, "False", "(9999999, 9999999, 9, 9)"), "`arr_0`"),
        (dict(u1, "False", "(99999999999, 99999999999, 1, 1)"), "a plain array"),
        (dict(u1, "False", "(0, 99999999999, 99999999999, 1)"), "a plain array"),
        (dict(u1, "False", "(-1, 2, 2, 3)"), "a plain array"),
        (dict(u1, "False", &nested), "a plain array"),
        (dict("[('a', '|u1')]", "False", "(2, 2, 2, 3)"), "a plain array"),
        (dict("'|i1'", "False", "(2, 2, 2, 3)"), "uint8 is needed"),
        (dict(u1, "True", "(2, 2, 2, 3)"), "Fortran"),
        ("(1,".into(), "a plain array"),
        ("{'shape': (24,)}".into(), "not a usable .npz"),
    ] {
        archive(&path, "arr_0.npy", &header, &pattern(24));
        fails_with(what);
    }
    archive(&path, "arr_0.npy", &dict(u1, "False", "(2, 2, 2, 3)"), &pattern(24));
    assert_eq!(npz::load_samples(&path).unwrap().images, pattern(24));
    archive(&path, "other.npy", &dict(u1, "False", "(2, 2, 2, 3)"), &pattern(24));
    fails_with("no array `arr_0`");

    npz::save_samples(&path, &pattern(24), [2, 2, 2, 3], None).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    let at = bytes.windows(24).position(|w| w == pattern(24)).unwrap();
    bytes[at + 5] ^= 1;
    fs::write(&path, bytes).unwrap();
    fails_with("checksum");
    fs::write(&path, "no archive").unwrap();
    fails_with("not a usable .npz");
    assert!(matches!(npz::load_samples(&dir.path().join("none")), Err(Error::Io { .. })));
}

#[test]
fn mutated_archives_never_panic() {
    let dir = temp();
    let path = dir.path().join("samples.npz");
    npz::save_samples(&path, &pattern(24), [2, 2, 2, 3], Some(&[1, 2])).unwrap();
    let good = fs::read(&path).unwrap();
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let mut refused = 0;
    for round in 0..2000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random(3) {
            let at = random(bytes.len());
            bytes[at] = [0, 255, b'9', b'(', random(256) as u8][random(5)];
        }
        if round % 4 == 0 {
            bytes.truncate(random(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        refused += usize::from(npz::load_samples(&path).is_err());
    }
    assert!(refused > 1000, "{refused}");
}
