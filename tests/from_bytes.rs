//! What reads a path and what reads the same file's bytes must agree.

use std::path::Path;

use demist::Error;
use demist::checkpoint::{
    Storage, TensorFile, any_from_bytes, header_from_bytes, import, import_from_bytes,
    info_from_bytes, load_header, network_from_bytes, network_to_bytes, read_any, read_info,
    read_network, read_tensors, tensors_from_bytes,
};
use demist::data::{DataOptions, Dataset, image_from_bytes, open_image};
use demist::model::Hints;

fn shipped(name: &str) -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

/// A shipped file's path and bytes.
fn with_bytes(name: &str) -> (std::path::PathBuf, Vec<u8>) {
    let path = shipped(name);
    let bytes = std::fs::read(&path).unwrap();
    (path, bytes)
}

#[test]
fn networks_are_the_same_from_bytes() {
    let (path, bytes) = with_bytes("assets/faces16.safetensors");
    assert_eq!(header_from_bytes(&path, &bytes).unwrap(), load_header(&path).unwrap());
    assert_eq!(info_from_bytes(&path, &bytes).unwrap(), read_info(&path).unwrap());
    let (info, tensors) = network_from_bytes(&path, &bytes).unwrap();
    assert_eq!(
        (&info, &tensors),
        (&read_network(&path).unwrap().0, &TensorFile::read(&path).unwrap())
    );
    let hints = Hints::default();
    assert_eq!(
        any_from_bytes(&path, &bytes, None, &hints).unwrap(),
        read_any(&path, None, &hints).unwrap()
    );
    let error = any_from_bytes(&path, &bytes, Some("64x64_diffusion"), &hints).unwrap_err();
    assert!(error.to_string().contains("give no preset"), "{error}");
}

#[test]
fn written_files_and_bytes_are_equal() {
    let (_, bytes) = with_bytes("assets/guide16.safetensors");
    let (info, tensors) = network_from_bytes("guide", &bytes).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.safetensors");
    for storage in [Storage::AsIs, Storage::F32, Storage::F16] {
        tensors.write_as(&path, storage).unwrap();
        assert_eq!(tensors.to_bytes(storage).unwrap(), std::fs::read(&path).unwrap());
    }
    let written = network_to_bytes(&info, tensors.clone(), false).unwrap();
    assert_eq!(network_from_bytes("written", &written).unwrap().0, info);
}

#[test]
fn checkpoints_of_pytorch_are_the_same_from_bytes() {
    for name in ["kinds_zip.pt", "kinds_legacy.pt", "model_fp32.pt", "model_legacy.pt"] {
        let (path, bytes) = with_bytes(&format!("tests/golden/pt/{name}"));
        let ours = tensors_from_bytes(&path, &bytes).unwrap();
        assert_eq!(ours, read_tensors(&path).unwrap(), "{name}");
        assert!(!ours.tensors.is_empty(), "{name}");
    }
    let (path, bytes) = with_bytes("tests/golden/pt/model_fp32.pt");
    let hints = Hints { image_size: Some(8), num_heads: Some(2), ..Hints::default() };
    assert_eq!(
        import_from_bytes(&path, &bytes, None, &hints).unwrap(),
        import(&path, None, &hints).unwrap()
    );
}

#[test]
fn damage_names_what_stands_for_the_file() {
    let (_, bytes) = with_bytes("assets/guide16.safetensors");
    for damaged in [&bytes[..0], &bytes[..7], &bytes[..bytes.len() - 1]] {
        match network_from_bytes("in memory", damaged).unwrap_err() {
            Error::File { path, .. } => assert_eq!(path, Path::new("in memory")),
            other => panic!("{other}"),
        }
    }
    let error = tensors_from_bytes("in memory", b"PK\x03\x04 no archive").unwrap_err();
    assert!(error.to_string().starts_with("in memory: not a sound PyTorch"), "{error}");
    let error = image_from_bytes("in memory", b"no image", 8, 3).unwrap_err();
    assert!(error.to_string().starts_with("in memory: "), "{error}");
}

#[test]
fn atlases_and_images_are_the_same_from_bytes() {
    let (path, png) = with_bytes("assets/faces16_test.png");
    let json = std::fs::read_to_string(path.with_extension("json")).unwrap();
    for image_size in [None, Some(12)] {
        let options = DataOptions { image_size, ..Default::default() };
        let ours = Dataset::from_atlas("faces", &png, &json, &options).unwrap();
        let theirs = Dataset::open(&path, &options).unwrap();
        assert_eq!((ours.labels(), ours.classes()), (theirs.labels(), theirs.classes()));
        for i in [0, ours.len() / 2, ours.len() - 1] {
            assert_eq!(ours.image(i).unwrap(), theirs.image(i).unwrap());
        }
    }
    assert_eq!(image_from_bytes("faces", &png, 32, 1).unwrap(), open_image(&path, 32, 1).unwrap());
}

#[test]
fn idx_files_are_read_from_bytes() {
    let words = |words: &[u32]| words.iter().flat_map(|w| w.to_be_bytes()).collect::<Vec<u8>>();
    let mut images = words(&[0x803, 2, 3, 3]);
    images.extend(0..18);
    let mut labels = words(&[0x801, 2]);
    labels.extend([4, 1]);
    let options = DataOptions::default();
    let set = Dataset::from_idx("digits", &images, &labels, &options).unwrap();
    assert_eq!((set.len(), set.size(), set.labels()), (2, 3, &[4, 1][..]));
    assert_eq!(set.image(1).unwrap(), (9..18).collect::<Vec<u8>>());
    labels.pop();
    let error = Dataset::from_idx("digits", &images, &labels, &options).unwrap_err();
    assert!(error.to_string().starts_with("digits: "), "{error}");
}
