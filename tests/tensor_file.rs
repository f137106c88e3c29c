//! Safetensors files: round trips, what other writers make, and broken files.

use std::fs;
use std::path::{Path, PathBuf};

use demist::Error;
use demist::checkpoint::{Storage, Tensor, TensorData, TensorFile, load_header};
use half::{bf16, f16};
use safetensors::tensor::{Dtype, TensorView};

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.safetensors");
    (dir, path)
}

/// One tensor of every type, a scalar and an empty one.
fn sample() -> TensorFile {
    let mut file = TensorFile::default();
    let mut put = |name: &str, shape: &[usize], data| {
        file.tensors.insert(name.into(), Tensor::new(shape, data).unwrap());
    };
    put("w.f32", &[2, 3], TensorData::F32(vec![1.5, -0.0, f32::MIN_POSITIVE, 3e4, 0.1, -7.0]));
    put("w.f16", &[3], TensorData::F16([0.5, 1e-7, f32::INFINITY].map(f16::from_f32).to_vec()));
    put("f64", &[1, 2], TensorData::F64(vec![std::f64::consts::PI, 1e300]));
    put("i64", &[2], TensorData::I64(vec![i64::MIN, 42]));
    put("u8", &[5], TensorData::U8(vec![0, 1, 2, 254, 255]));
    put("u32", &[1], TensorData::U32(vec![u32::MAX]));
    put("u64", &[2, 1], TensorData::U64(vec![u64::MAX, 3]));
    put("scalar", &[], TensorData::F32(vec![9.0]));
    put("empty", &[0, 4], TensorData::F32(vec![]));
    file.metadata = [("config", "{\"a\": 1}"), ("kind", "wörld ∞")]
        .map(|(k, v)| (k.to_string(), v.to_string()))
        .into();
    file
}

/// A file with the given header and data.
fn raw(path: &Path, header: &str, data: &[u8]) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.extend(data);
    fs::write(path, bytes).unwrap();
}

/// Both readers refuse `path` with an error that names it and says `what`.
fn assert_refused(path: &Path, what: &str) {
    for error in [load_header(path).unwrap_err(), TensorFile::read(path).unwrap_err()] {
        assert!(matches!(&error, Error::File { path: p, .. } if p == path), "{error:?}");
        assert!(error.to_string().contains(what), "{error} lacks {what:?}");
    }
}

#[test]
fn every_type_reads_back() {
    let (dir, path) = place();
    let file = sample();
    file.write(&path).unwrap();
    assert_eq!(TensorFile::read(&path).unwrap(), file);
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no temporary file is left");
}

#[test]
fn the_reference_reader_agrees() {
    let (_dir, path) = place();
    let file = sample();
    file.write(&path).unwrap();
    let bytes = fs::read(&path).unwrap();
    let theirs = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!(theirs.len(), file.tensors.len());
    for (name, view) in theirs.tensors() {
        let ours = &file.tensors[&name];
        assert_eq!((view.dtype(), view.shape()), (ours.data.dtype(), &ours.shape[..]), "{name}");
        // Each tensor starts at a multiple of its element size.
        let at = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
        assert_eq!(at % (view.dtype().bitsize() / 8), 0, "{name}");
    }
    let view = theirs.tensor("f64").unwrap();
    assert_eq!(view.data()[..8], std::f64::consts::PI.to_le_bytes());
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(meta.metadata().as_ref().unwrap()["kind"], "wörld ∞");
}

#[test]
fn files_of_the_reference_writer_are_read_and_bfloat16_becomes_f32() {
    let (_dir, path) = place();
    let values = [1.0f32, -2.5, 3.0e38, f32::INFINITY];
    let bytes: Vec<u8> = values.iter().flat_map(|&v| bf16::from_f32(v).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::BF16, vec![2, 2], &bytes).unwrap();
    std::fs::write(&path, safetensors::serialize([("b", view)], None).unwrap()).unwrap();
    assert_eq!(load_header(&path).unwrap().tensors["b"].dtype, Dtype::BF16);
    let file = TensorFile::read(&path).unwrap();
    let want: Vec<f32> = values.iter().map(|&v| bf16::from_f32(v).to_f32()).collect();
    assert_eq!(file.tensors["b"].data, TensorData::F32(want));
    assert!(file.metadata.is_empty());
}

#[test]
fn equal_contents_make_equal_bytes() {
    let (dir, path) = place();
    let again = dir.path().join("b.safetensors");
    let mut file = sample();
    for i in 0..40 {
        file.metadata.insert(format!("key{i}"), i.to_string());
    }
    file.write(&path).unwrap();
    file.clone().write(&again).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(&again).unwrap());
}

#[test]
fn the_header_alone_tells_names_types_and_shapes() {
    let (_dir, path) = place();
    let file = sample();
    file.write(&path).unwrap();
    let header = load_header(&path).unwrap();
    assert_eq!(header.metadata, file.metadata);
    assert_eq!(header.tensors.len(), file.tensors.len());
    for (name, info) in &header.tensors {
        let tensor = &file.tensors[name];
        assert_eq!((info.dtype, &info.shape), (tensor.data.dtype(), &tensor.shape));
    }
}

#[test]
fn some_tensors_can_be_read_alone() {
    let (_dir, path) = place();
    let file = sample();
    file.write(&path).unwrap();
    let some = TensorFile::read_where(&path, |name| name.starts_with("w.")).unwrap();
    assert_eq!(some.tensors.keys().collect::<Vec<_>>(), ["w.f16", "w.f32"]);
    assert_eq!(some.tensors["w.f32"], file.tensors["w.f32"]);
    assert_eq!(some.metadata, file.metadata);
}

#[test]
fn floats_can_be_stored_in_half_and_back() {
    let (_dir, path) = place();
    let file = sample();
    file.write_as(&path, Storage::F16).unwrap();
    let half = TensorFile::read(&path).unwrap();
    for (name, tensor) in &half.tensors {
        let original = &file.tensors[name];
        match &original.data {
            TensorData::F32(v) => {
                let want: Vec<f16> = v.iter().map(|&x| f16::from_f32(x)).collect();
                assert_eq!(tensor.data, TensorData::F16(want), "{name}");
            }
            _ => assert_eq!(tensor, original, "{name}"),
        }
    }
    let near = half.tensors["w.f32"].to_f32().unwrap()[4];
    assert!((near - 0.1).abs() < 1e-4 && near != 0.1);

    half.write_as(&path, Storage::F32).unwrap();
    let wide = TensorFile::read(&path).unwrap();
    assert_eq!(wide.tensors["w.f16"].data.dtype(), Dtype::F32);
    for name in ["w.f32", "w.f16", "scalar"] {
        assert_eq!(wide.tensors[name].to_f32().unwrap(), half.tensors[name].to_f32().unwrap());
    }
}

#[test]
fn values_beyond_half_are_an_error_and_nothing_is_written() {
    let (_dir, path) = place();
    let mut file = TensorFile::default();
    file.tensors.insert("big".into(), Tensor::f32([2], [1.0, 70000.0]).unwrap());
    let error = file.write_as(&path, Storage::F16).unwrap_err();
    assert!(error.to_string().contains("big") && error.to_string().contains("70000"), "{error}");
    assert!(!path.exists());
    let special = Tensor::f32([2], [f32::INFINITY, f32::NAN]).unwrap();
    file.tensors.insert("big".into(), special);
    file.write_as(&path, Storage::F16).unwrap();
    let back = TensorFile::read(&path).unwrap().tensors["big"].to_f32().unwrap().into_owned();
    assert!(back[0] == f32::INFINITY && back[1].is_nan());
}

#[test]
fn many_elements_pass_the_chunk_boundary() {
    let (_dir, path) = place();
    let n = (1 << 20) + 13;
    let mut file = TensorFile::default();
    let values: Vec<f32> = (0..n).map(|i| i as f32 * 0.25).collect();
    file.tensors.insert("v".into(), Tensor::f32([n], values).unwrap());
    let bytes: Vec<u8> = (0..n).map(|i| (i % 251) as u8).collect();
    file.tensors.insert("b".into(), Tensor::new([n], TensorData::U8(bytes)).unwrap());
    file.write(&path).unwrap();
    assert!(TensorFile::read(&path).unwrap() == file);
}

#[test]
fn contradictions_are_refused_before_writing() {
    let (_dir, path) = place();
    assert!(matches!(Tensor::f32([2, 3], [0.0; 5]), Err(Error::Shape { .. })));
    assert!(matches!(Tensor::f32([usize::MAX, 2], []), Err(Error::Shape { .. })));
    let mut file = sample();
    file.tensors.get_mut("u8").unwrap().shape = vec![7];
    let error = file.write(&path).unwrap_err();
    assert!(error.to_string().contains("u8") && error.to_string().contains("[7]"), "{error}");
    let mut file = TensorFile::default();
    file.tensors.insert("__metadata__".into(), Tensor::f32([], [0.0]).unwrap());
    assert!(matches!(file.write(&path), Err(Error::Config(_))));
    assert!(!path.exists());
    let integers = Tensor::new([1], TensorData::I64(vec![1])).unwrap();
    let error = integers.to_f32().unwrap_err().to_string();
    assert!(error.contains("I64") && error.contains("floats"), "{error}");
}

#[test]
fn files_that_are_none_are_named_with_their_fault() {
    let (dir, path) = place();
    fs::write(&path, "").unwrap();
    assert_refused(&path, "0 bytes are too short");
    fs::write(&path, "PK\x03\x04 a zip archive, say").unwrap();
    assert_refused(&path, "looks like a PyTorch checkpoint");
    fs::write(&path, [255; 64]).unwrap();
    assert_refused(&path, "18446744073709551615 bytes long");
    fs::write(&path, 0u64.to_le_bytes()).unwrap();
    assert_refused(&path, "bad header");
    raw(&path, "not json", &[]);
    assert_refused(&path, "bad header");
    raw(&path, "[1, 2]", &[]);
    assert_refused(&path, "bad header");
    raw(&path, &"[".repeat(100_000), &[]);
    assert_refused(&path, "bad header");
    assert_refused(dir.path(), "a folder");
    let missing = dir.path().join("none");
    assert!(matches!(load_header(&missing), Err(Error::Io { path: p, .. }) if p == missing));
}

#[test]
fn a_header_beyond_the_limit_is_not_read() {
    let (_dir, path) = place();
    // 17 MiB long and truthful about it; sparse, so the test writes little.
    let length = 17u64 << 20;
    fs::write(&path, length.to_le_bytes()).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(length + 8).unwrap();
    assert_refused(&path, "beyond the limit");
}

#[test]
fn headers_that_lie_about_the_data_are_refused() {
    let (_dir, path) = place();
    let tensor = |dtype: &str, shape: &str, start: u64, end: u64| {
        format!(r#"{{"dtype":"{dtype}","shape":{shape},"data_offsets":[{start},{end}]}}"#)
    };
    let one = |t: String| format!(r#"{{"t":{t}}}"#);
    let two = |a: String, b: String| format!(r#"{{"a":{a},"b":{b}}}"#);
    let max = u64::MAX;
    let cases = [
        ("out of range", one(tensor("F32", "[4]", 0, 16)), 8),
        ("cut short", one(tensor("F32", "[2]", 0, 8)), 7),
        ("data left over", one(tensor("F32", "[2]", 0, 8)), 9),
        ("no room for the shape", one(tensor("F32", "[3]", 0, 8)), 8),
        ("backwards", one(tensor("F32", "[2]", 8, 0)), 8),
        ("a hole at the start", one(tensor("F32", "[1]", 4, 8)), 8),
        ("overlap", two(tensor("U8", "[6]", 0, 6), tensor("U8", "[4]", 4, 8)), 8),
        ("the same bytes", two(tensor("U8", "[8]", 0, 8), tensor("U8", "[8]", 0, 8)), 8),
        ("a gap", two(tensor("U8", "[2]", 0, 2), tensor("U8", "[4]", 4, 8)), 8),
        ("overflowing shape", one(tensor("F32", &format!("[{max},{max}]"), 0, 8)), 8),
        ("overflowing product", one(tensor("F64", "[4294967296,4294967296]", 0, 8)), 8),
        ("overflowing offsets", one(tensor("U8", "[8]", max - 7, max)), 8),
        ("a negative extent", one(tensor("U8", "[-8]", 0, 8)), 8),
        ("an unknown type", one(tensor("F33", "[2]", 0, 8)), 8),
        ("no type", r#"{"t":{"shape":[8],"data_offsets":[0,8]}}"#.into(), 8),
        ("a nested map", r#"{"t":{"t":{"t":{}}}}"#.into(), 8),
        ("metadata of numbers", r#"{"__metadata__":{"a":1}}"#.into(), 0),
    ];
    for (what, header, bytes) in cases {
        raw(&path, &header, &vec![0; bytes]);
        let result = load_header(&path);
        assert!(matches!(result, Err(Error::File { .. })), "{what}: {result:?}");
        assert_refused(&path, "not a sound safetensors file");
    }
    // The same header with honest data is fine.
    raw(&path, &two(tensor("U8", "[4]", 0, 4), tensor("F32", "[1]", 4, 8)), &[0; 8]);
    assert_eq!(TensorFile::read(&path).unwrap().tensors.len(), 2);
}

#[test]
fn a_type_that_cannot_be_held_is_named_when_it_is_read() {
    let (_dir, path) = place();
    raw(&path, r#"{"mask":{"dtype":"BOOL","shape":[3],"data_offsets":[0,3]}}"#, &[0, 1, 1]);
    assert_eq!(load_header(&path).unwrap().tensors["mask"].dtype, Dtype::BOOL);
    let error = TensorFile::read(&path).unwrap_err();
    assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error:?}");
    let text = error.to_string();
    assert!(text.contains("mask") && text.contains("BOOL") && text.contains("BF16"), "{text}");
    assert!(TensorFile::read_where(&path, |_| false).unwrap().tensors.is_empty());
}

#[test]
fn every_truncation_is_refused() {
    let (_dir, path) = place();
    sample().write(&path).unwrap();
    let good = fs::read(&path).unwrap();
    for n in 0..good.len() {
        fs::write(&path, &good[..n]).unwrap();
        let error = TensorFile::read(&path).unwrap_err();
        assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{n}: {error:?}");
    }
}

#[test]
fn thousands_of_mutations_never_panic() {
    let (_dir, path) = place();
    sample().write(&path).unwrap();
    let good = fs::read(&path).unwrap();
    let header_end = 8 + u64::from_le_bytes(good[..8].try_into().unwrap()) as usize;
    let mut state = 1u64;
    let mut random = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    let (mut read, mut refused) = (0, 0);
    for round in 0..4000 {
        let mut bytes = good.clone();
        for _ in 0..1 + random(4) {
            let at = random(if round % 8 == 0 { bytes.len() } else { header_end });
            match random(8) {
                0..=2 => bytes[at] = random(256) as u8,
                3..=4 => bytes[at] = b"0123456789[]{},:\"- "[random(19)],
                5..=6 => bytes[at] ^= 1 << random(8),
                _ => drop(bytes.splice(at..at, *b"999")),
            }
        }
        if round % 5 == 0 {
            bytes.truncate(random(bytes.len()));
        }
        fs::write(&path, &bytes).unwrap();
        match TensorFile::read(&path) {
            Ok(file) => {
                // What is accepted must be consistent enough to be written again.
                file.write(&path).unwrap();
                read += 1;
            }
            Err(error) => {
                assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 2000 && read > 50, "{read} read, {refused} refused");
}
