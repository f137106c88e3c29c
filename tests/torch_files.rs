//! PyTorch checkpoints: files that PyTorch wrote, and files that nobody should.

mod common;
#[path = "torch_files/support.rs"]
mod support;

use std::fs;
use std::path::{Path, PathBuf};

use demist::Error;
use demist::checkpoint::{
    Storage, Tensor, TensorData, TensorFile, read_tensors, read_torch, write_reference,
};
use support::{Entry, Pickler, archive, bytes, floats, legacy, legacy_head, pickle, zipped};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pt").join(name)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.pt");
    (dir, path)
}

/// Reads `contents` as a file.
fn read(path: &Path, contents: &[u8]) -> demist::Result<TensorFile> {
    fs::write(path, contents).unwrap();
    read_tensors(path)
}

/// `contents` is refused with an error that names the file and says `what`.
fn assert_refused(path: &Path, contents: &[u8], what: &str) {
    let error = read(path, contents).expect_err(what);
    assert!(matches!(&error, Error::File { path: p, .. } if p == path), "{error:?}");
    assert!(error.to_string().contains(what), "{error} lacks {what:?}");
}

fn f32s(file: &TensorFile, name: &str) -> Vec<f32> {
    file.tensors[name].to_f32().unwrap().into_owned()
}

/// Two tensors of their own and two views of a shared storage, one transposed.
fn sample() -> (Vec<Entry>, Vec<support::Data>) {
    let shared = |name, offset, shape: &[i64], stride: &[i64]| Entry {
        name,
        class: "FloatStorage",
        key: "2",
        count: 7,
        offset,
        shape: shape.to_vec(),
        stride: stride.to_vec(),
    };
    let entries = vec![
        floats("w", "0", &[2, 3]),
        floats("b", "1", &[2]),
        shared("view", 1, &[2], &[1]),
        shared("turned", 1, &[3, 2], &[1, 3]),
    ];
    let storages = vec![
        ("0", bytes(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0])),
        ("1", bytes(&[0.5, -0.5])),
        ("2", bytes(&[9.0, 10.0, 11.0, 12.0, 20.0, 21.0, 22.0])),
    ];
    (entries, storages)
}

fn check_sample(file: &TensorFile) {
    assert_eq!(file.tensors.len(), 4);
    assert_eq!(file.tensors["w"].shape, [2, 3]);
    assert_eq!(f32s(file, "w"), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    assert_eq!(f32s(file, "b"), [0.5, -0.5]);
    assert_eq!(f32s(file, "view"), [10.0, 11.0]);
    assert_eq!(file.tensors["turned"].shape, [3, 2]);
    assert_eq!(f32s(file, "turned"), [10.0, 20.0, 11.0, 21.0, 12.0, 22.0]);
}

#[test]
fn published_shapes_of_files_hold_the_same_weights() {
    let config: serde_json::Value =
        serde_json::from_slice(&fs::read(golden("config.json")).unwrap()).unwrap();
    let salt = config["salt"].as_str().unwrap();
    for name in ["model_fp32.pt", "model_fp16.pt", "model_legacy.pt"] {
        let file = read_torch(&golden(name)).unwrap();
        assert_eq!(file.tensors.len(), 143, "{name}");
        for (key, tensor) in &file.tensors {
            let expected = common::weight(salt, key, &tensor.shape);
            assert!(tensor.data == TensorData::F32(expected), "{name}: {key} differs");
        }
        assert_eq!(read_tensors(&golden(name)).unwrap(), file);
    }
}

/// What PyTorch 2.15 wrote: every element type, views, a parameter, in both
/// containers and another pickle protocol.
#[test]
fn every_kind_of_tensor_is_read() {
    for name in ["kinds_zip.pt", "kinds_protocol4.pt", "kinds_legacy.pt"] {
        let file = read_torch(&golden(name)).unwrap();
        let shape = |key: &str| &file.tensors[key].shape[..];
        assert_eq!(f32s(&file, "half"), [0.0, 0.125, 0.25, 0.375, 0.5, 0.625], "{name}");
        assert_eq!(f32s(&file, "bfloat16"), [0.0, 0.25, 0.5, 0.75, 1.0, 1.25]);
        let thirds = [0.0, 1.0, 2.0, 3.0].map(|x: f64| (x / 3.0) as f32);
        assert_eq!(file.tensors["double"].data, TensorData::F32(thirds.to_vec()));
        // Row r, column c of the base are 6 r + c.
        let turned: Vec<f32> = (0..24).map(|i| (6 * (i % 4) + i / 4) as f32).collect();
        assert_eq!((f32s(&file, "transposed"), shape("transposed")), (turned, &[6, 4][..]));
        assert_eq!(f32s(&file, "slice"), [6.0, 8.0, 10.0, 12.0, 14.0, 16.0]);
        assert_eq!((f32s(&file, "expanded"), shape("expanded")), (vec![2.5; 3], &[3][..]));
        assert_eq!((f32s(&file, "scalar"), shape("scalar")), (vec![7.25], &[][..]));
        assert_eq!((f32s(&file, "empty"), shape("empty")), (vec![], &[0, 5][..]));
        assert_eq!(f32s(&file, "parameter"), [0.0, 1.0, 2.0]);
        for (key, values) in [
            ("long", vec![-(1 << 40), 5]),
            ("int", vec![-7, 1 << 30]),
            ("short", vec![-300]),
            ("char", vec![-5, 6]),
        ] {
            assert_eq!(file.tensors[key].data, TensorData::I64(values), "{name}: {key}");
        }
        assert_eq!(file.tensors["byte"].data, TensorData::U8(vec![250, 1]));
        assert_eq!(file.tensors["bool"].data, TensorData::U8(vec![1, 0, 1]));
        assert_eq!(file.tensors.len(), 15);
    }
}

#[test]
fn a_network_inside_a_checkpoint_is_found() {
    let file = read_torch(&golden("nested.pt")).unwrap();
    assert_eq!(file.tensors.keys().collect::<Vec<_>>(), ["bias", "weight"]);
    assert_eq!(f32s(&file, "weight"), [1.0, 2.0, 3.0, 4.0]);
    let error = read_torch(&golden("optimizer.pt")).unwrap_err().to_string();
    assert!(error.contains("names no tensors") && error.contains("optimizer"), "{error}");

    let (_dir, path) = place();
    let one = |key| [floats("w", key, &[1])];
    let nest = |names: [&str; 2]| {
        let p = Pickler::new().op(b"}(").str(names[0]).state_dict(&one("0"));
        p.str(names[1]).state_dict(&one("1")).op(b"u").done()
    };
    let storages = [("0", bytes(&[1.0])), ("1", bytes(&[2.0]))];
    let chosen = read(&path, &zipped(&nest(["ema", "model"]), &storages)).unwrap();
    assert_eq!(f32s(&chosen, "w"), [2.0]);
    assert_refused(&path, &zipped(&nest(["a", "b"]), &storages), "several sets of tensors (a, b)");
}

#[test]
fn both_containers_are_read_by_content() {
    let (_dir, path) = place();
    let (entries, storages) = sample();
    check_sample(&read(&path, &zipped(&pickle(&entries), &storages)).unwrap());
    check_sample(&read(&path, &legacy(&pickle(&entries), &storages, 4)).unwrap());
    let plain = read_torch(&path).unwrap();
    write_reference(&path, plain, "", Storage::F32).unwrap();
    check_sample(&read_tensors(&path).unwrap());
}

#[test]
fn the_reference_file_has_plain_names_and_no_configuration() {
    let (_dir, path) = place();
    let mut file = TensorFile::default();
    file.metadata.insert("demist".into(), "{}".into());
    for name in ["ema.w", "ema.b", "weights.w"] {
        let value = name.len() as f32;
        file.tensors.insert(name.into(), Tensor::f32([1], [value]).unwrap());
    }
    write_reference(&path, file, "ema.", Storage::F16).unwrap();
    let written = TensorFile::read(&path).unwrap();
    assert_eq!(written.tensors.keys().collect::<Vec<_>>(), ["b", "w"]);
    assert!(matches!(written.tensors["w"].data, TensorData::F16(_)));
    assert!(!written.metadata.contains_key("demist"));
}

#[test]
fn every_truncation_is_refused() {
    let (_dir, path) = place();
    let (entries, storages) = sample();
    for good in [zipped(&pickle(&entries), &storages), legacy(&pickle(&entries), &storages, 4)] {
        for n in 0..good.len() {
            let error = read(&path, &good[..n]).unwrap_err();
            assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{n}: {error:?}");
        }
    }
    // And of the pickle in a container that is whole.
    let good = pickle(&entries);
    for n in 0..good.len() {
        assert_refused(&path, &zipped(&good[..n], &storages), "pickle, byte");
    }
}

#[test]
fn views_outside_of_their_storage_are_refused() {
    let (_dir, path) = place();
    let huge = i64::MAX;
    for (offset, shape, stride) in [
        (1, vec![6], vec![1]),
        (0, vec![7], vec![1]),
        (6, vec![1], vec![1]),
        (-1, vec![1], vec![1]),
        (0, vec![-1], vec![1]),
        (0, vec![2], vec![-1]),
        (0, vec![2], vec![6]),
        (0, vec![2, 3], vec![3]),
        (0, vec![huge, huge], vec![0, 0]),
        (0, vec![2], vec![huge]),
        (huge, vec![1], vec![1]),
        (huge, vec![2], vec![huge]),
        (7, vec![0], vec![1]),
        (0, vec![1; 17], vec![1; 17]),
    ] {
        let what = format!("{offset} {shape:?} {stride:?}");
        let entry = Entry { offset, shape, stride, ..floats("w", "0", &[6]) };
        let storages = [("0", bytes(&[0.0; 6]))];
        let pickled = pickle(&[entry]);
        for contents in [zipped(&pickled, &storages), legacy(&pickled, &storages, 4)] {
            let error = read(&path, &contents).expect_err(&what);
            assert!(error.to_string().contains("pickle, byte"), "{what}: {error}");
        }
    }
    // Nothing of it is read, so an empty tensor may have any other extents.
    let empty = Entry {
        offset: 6,
        shape: vec![huge, 0, huge],
        stride: vec![huge; 3],
        ..floats("w", "0", &[6])
    };
    let file = read(&path, &zipped(&pickle(&[empty]), &[("0", bytes(&[0.0; 6]))])).unwrap();
    assert!(file.tensors["w"].data.is_empty());
}

#[test]
fn tensors_may_not_outgrow_the_file() {
    let (_dir, path) = place();
    // One stored element seen a billion times.
    let expanded = |shape: &[i64]| {
        let (shape, stride) = (shape.to_vec(), vec![0; shape.len()]);
        pickle(&[Entry { shape, stride, ..floats("w", "0", &[1]) }])
    };
    let storages = [("0", bytes(&[1.0]))];
    let billion = expanded(&[1 << 30]);
    for contents in [zipped(&billion, &storages), legacy(&billion, &storages, 4)] {
        assert_refused(&path, &contents, "its tensors would be 4294967296 bytes large");
    }
    let most = expanded(&[i64::MAX, 2]);
    assert_refused(&path, &zipped(&most, &storages), "its tensors would be");
    // Many names for one storage.
    let names: Vec<&'static str> =
        (0..64).map(|i| &*Box::leak(format!("w{i}").into_boxed_str())).collect();
    let many: Vec<Entry> = names.iter().map(|name| floats(name, "0", &[10_000])).collect();
    let storages = [("0", bytes(&[1.0; 10_000]))];
    assert_refused(&path, &zipped(&pickle(&many), &storages), "its tensors would be");
    assert_eq!(read(&path, &zipped(&pickle(&many[..4]), &storages)).unwrap().tensors.len(), 4);
}

#[test]
fn storages_must_be_what_is_announced() {
    let (_dir, path) = place();
    let one = [floats("w", "0", &[2])];
    let good = pickle(&one);
    for data in [bytes(&[]), bytes(&[1.0]), bytes(&[1.0, 2.0, 3.0])] {
        let storages = [("0", data)];
        assert_refused(&path, &zipped(&good, &storages), "2 elements of F32 are announced");
        assert_refused(&path, &legacy(&good, &storages, 4), "2 elements of F32 are announced");
    }
    let none = [("1", bytes(&[1.0, 2.0]))];
    assert_refused(&path, &zipped(&good, &none), "\"a/data/0\" is missing");
    assert_refused(&path, &legacy(&good, &none, 4), "belongs to no tensor");
    assert_refused(&path, &legacy(&good, &[], 4), "\"0\" is missing");
    let mut longer = legacy(&good, &[("0", bytes(&[1.0, 2.0]))], 4);
    longer.push(0);
    assert_refused(&path, &longer, "1 bytes are left over");
    // Half the elements of twice the size: the same bytes under two types.
    let double = Entry { class: "DoubleStorage", count: 1, ..floats("x", "0", &[1]) };
    let both = pickle(&[one[0].clone(), double]);
    let storages = [("0", bytes(&[1.0, 2.0]))];
    assert_refused(&path, &zipped(&both, &storages), "announced in two ways");
    assert!(read(&path, &legacy(&both, &storages, 4)).is_err());
    // Lengths far beyond the file.
    for count in [1 << 40, i64::MAX / 4, i64::MAX] {
        let entry = Entry { count, ..floats("w", "0", &[2]) };
        assert!(read(&path, &zipped(&pickle(std::slice::from_ref(&entry)), &storages)).is_err());
        let mut file = legacy_head();
        file.extend(pickle(&[entry]));
        file.extend(Pickler::new().op(b"](").str("0").op(b"e").done());
        file.extend(count.to_le_bytes());
        assert!(read(&path, &file).is_err());
    }
}

#[test]
fn code_is_refused_by_name() {
    let (_dir, path) = place();
    let system = Pickler::new().global("os", "system").op(b"(").str("echo owned").op(b"tR").done();
    assert_refused(&path, &zipped(&system, &[]), "`os.system`");
    let mut file = legacy_head();
    file.extend(system);
    assert_refused(&path, &file, "`os.system`");
    for (module, name) in [
        ("builtins", "eval"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_sparse_tensor"),
        ("torch.nn.modules.linear", "Linear"),
        ("collections", "Counter"),
    ] {
        let contents = Pickler::new().global(module, name).done();
        assert_refused(&path, &zipped(&contents, &[]), &format!("`{module}.{name}`"));
        // The same through the opcode of protocol 4.
        let contents = Pickler::new().str(module).str(name).op(b"\x93").done();
        assert_refused(&path, &zipped(&contents, &[]), &format!("`{module}.{name}`"));
    }
    // Opcodes that make objects or leave the pickle are not there at all.
    for op in [b'i', b'o', 0x81, 0x92, 0x82, b'P', b'S', b'V', 0x97] {
        let contents = Pickler::new().op(&[op]).done();
        assert_refused(&path, &zipped(&contents, &[]), &format!("opcode 0x{op:02x}"));
    }
}

#[test]
fn pickles_that_make_no_sense_are_refused() {
    let (_dir, path) = place();
    let p = Pickler::new;
    let storage = || p().storage("FloatStorage", "0", 1);
    let cases: [(&str, Pickler, &str); 26] = [
        ("nothing", p(), "empty stack"),
        ("pop of nothing", p().op(b"0"), "empty stack"),
        ("no mark", p().op(b"t"), "no mark"),
        ("below the mark", p().op(b"N(0"), "empty stack"),
        ("unknown memo", p().op(b"h\x05"), "never remembered"),
        ("memo of nothing", p().op(b"q\x05"), "empty stack"),
        ("odd dict", p().op(b"}(Nu"), "key without a value"),
        ("items of a list", p().op(b"](NNu"), "added to a list"),
        ("append to a dict", p().op(b"}Na"), "added to a dict"),
        ("append to a tuple", p().op(b")Na"), "added to a tuple"),
        ("call of a string", p().str("x").op(b")R"), "call of a string"),
        ("arguments no tuple", p().global("collections", "OrderedDict").op(b"NR"), "no tuple"),
        ("dict with arguments", p().global("collections", "OrderedDict").op(b"N\x85R"), "called"),
        ("call of a type", p().global("torch", "FloatStorage").op(b")R"), "called"),
        (
            "tensor of nothing",
            p().global("torch._utils", "_rebuild_tensor_v2").op(b"(NNNNtR"),
            "without a storage",
        ),
        ("few arguments", p().global("torch._utils", "_rebuild_tensor_v2").op(b")R"), "called"),
        (
            "parameter of a string",
            p().global("torch._utils", "_rebuild_parameter").str("x").op(b"\x85R"),
            "parameter made of a string",
        ),
        ("attributes of a tuple", p().op(b")Nb"), "attributes of a tuple"),
        ("persistent string", p().str("x").op(b"Q"), "no tuple"),
        ("short persistent id", p().op(b"N\x85Q"), "of 1 parts"),
        ("persistent module", p().op(b"(").str("module").op(b"NNNNtQ"), "no storage"),
        ("negative storage", p().storage("FloatStorage", "0", -1), "where a count belongs"),
        ("unknown type", p().storage("QInt8Storage", "0", 1), "`torch.QInt8Storage`"),
        ("a storage alone", storage(), "names no tensors"),
        ("not UTF-8", p().op(b"X\x02\0\0\0\xff\xfe"), "UTF-8"),
        ("huge string", p().op(b"\x8d").op(&u64::MAX.to_le_bytes()), "middle"),
    ];
    for (what, pickler, fault) in cases {
        assert_refused(&path, &zipped(&pickler.clone().done(), &[]), fault);
        let mut file = legacy_head();
        file.extend(pickler.done());
        assert!(read(&path, &file).is_err(), "{what}");
    }
}

#[test]
fn cycles_and_deep_nesting_are_refused() {
    let (_dir, path) = place();
    let p = Pickler::new;
    for (what, pickler) in [
        ("a list in itself", p().op(b"]q\0h\0a")),
        ("a dict in itself", p().op(b"}q\0").str("x").op(b"h\0s")),
        ("two lists", p().op(b"]q\0]q\x01h\0aa")),
        ("through a tuple", p().op(b"]q\0h\0\x85a")),
    ] {
        let error = read(&path, &zipped(&pickler.done(), &[])).expect_err(what).to_string();
        assert!(error.contains("contains itself"), "{what}: {error}");
    }
    let wrap = |depth: usize, op: &[u8]| p().op(b"N").op(&op.repeat(depth)).done();
    for op in [&b"\x85"[..], b"]q\0"] {
        let deep = if op == b"\x85" {
            wrap(1_000_000, op)
        } else {
            p().op(&b"]".repeat(1_000_000)).op(&b"a".repeat(999_999)).done()
        };
        assert_refused(&path, &zipped(&deep, &[]), "nest deeper");
    }
    assert_refused(&path, &zipped(&wrap(60, b"\x85"), &[]), "names no tensors");
    // Shared but not cyclic: as many paths as 2 to the 50, each value seen once.
    let shared = p().op(b"N").op(&b"q\0h\0\x86".repeat(50)).done();
    assert_refused(&path, &zipped(&shared, &[]), "names no tensors");
    // More values than any checkpoint has.
    let many = p().op(b"(").op(&b"N".repeat(3 << 20)).op(b"t").done();
    assert_refused(&path, &zipped(&many, &[]), "more than 2097152 values");
}

#[test]
fn archives_that_torch_save_never_writes_are_refused() {
    let (_dir, path) = place();
    let (entries, storages) = sample();
    let good = pickle(&entries);
    let file = |name: &str, data: &'static [u8]| (name.to_owned(), data);
    assert_refused(&path, &archive(&[file("a/version", b"3")]), "without data.pkl");
    let two = [file("a/data.pkl", b"N."), file("b/data.pkl", b"N.")];
    assert_refused(&path, &archive(&two), "several data.pkl");
    let big = [("a/data.pkl".to_owned(), &good[..]), ("a/byteorder".to_owned(), &b"big"[..])];
    assert_refused(&path, &archive(&big), "byte order");
    assert_refused(&path, b"PK\x03\x04 and no more", "zip archive");

    // A flipped bit fails the checksum, wherever it is.
    let sound = zipped(&good, &storages);
    for needle in [&bytes(&[0.5, -0.5])[..], b"cuda:0"] {
        let at = sound.windows(needle.len()).position(|w| w == needle).unwrap();
        let mut broken = sound.clone();
        broken[at + 2] ^= 4;
        assert!(read(&path, &broken).is_err());
    }
    // Claims of compression, in both headers of an entry.
    let mut packed = sound.clone();
    for (magic, method) in [(b"PK\x03\x04", 8), (b"PK\x01\x02", 10)] {
        let starts: Vec<usize> =
            (0..packed.len() - 4).filter(|&i| packed[i..i + 4] == magic[..]).collect();
        starts.into_iter().for_each(|at| packed[at + method] = 8);
    }
    assert!(read(&path, &packed).is_err());
    // A pickle beyond the limit is not read.
    let long = vec![b'N'; (16 << 20) + 1];
    assert_refused(&path, &zipped(&long, &[]), "is beyond 16777216");

    assert_refused(&path, b"\x80\x02\x8a\x01\x05.", "magic number");
    assert_refused(&path, b"\x80\x04N.", "magic number");
    let mut other = legacy_head();
    let at = other.windows(4).position(|w| w == 1001i32.to_le_bytes()).unwrap();
    other[at] = 7;
    assert_refused(&path, &other, "not version 1001");
    fs::write(&path, "neither").unwrap();
    let error = read_torch(&path).unwrap_err().to_string();
    assert!(error.contains("neither as a zip archive nor as a pickle"), "{error}");
}

/// Linear congruential numbers.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }

    /// A few bytes changed, inserted or cut.
    fn mutate(&mut self, good: &[u8]) -> Vec<u8> {
        let mut bad = good.to_vec();
        for _ in 0..1 + self.below(4) {
            let at = self.below(bad.len());
            match self.below(10) {
                0..=2 => bad[at] = self.below(256) as u8,
                // Extremes of lengths and counts.
                3 => bad[at] = [0, 1, 127, 128, 255][self.below(5)],
                4 => bad[at] = b"(t.eusabR0qhXcQ)}]N"[self.below(19)],
                5..=6 => bad[at] ^= 1 << self.below(8),
                7 => {
                    let part = bad[at..(at + 8).min(bad.len())].to_vec();
                    let to = self.below(bad.len());
                    drop(bad.splice(to..to, part));
                }
                8 => drop(bad.splice(at..at, [255; 4])),
                _ => drop(bad.drain(at..(at + 4).min(bad.len()))),
            }
            if bad.is_empty() {
                bad.push(0);
            }
        }
        bad
    }
}

/// Bytes of address space that this process has ever had, where that is told.
fn peak_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmPeak:"));
    let kilobytes = line.and_then(|rest| rest.trim().split(' ').next()?.parse::<u64>().ok());
    kilobytes.unwrap_or(0) << 10
}

#[test]
fn ten_thousand_mutations_never_panic() {
    let (_dir, path) = place();
    let (entries, storages) = sample();
    let good = pickle(&entries);
    let zip = zipped(&good, &storages);
    let old = legacy(&good, &storages, 4);
    let plain = {
        read(&path, &zip).unwrap().write(&path).unwrap();
        fs::read(&path).unwrap()
    };
    let before = peak_bytes();
    let mut random = Random(1);
    let mut outcomes = [[0; 2]; 4];
    for round in 0..10_000 {
        let kind = round % 4;
        let contents = match kind {
            0 => random.mutate(&zip),
            // The pickle alone, in a container whose checksums are right.
            1 => zipped(&random.mutate(&good), &storages),
            2 => random.mutate(&old),
            _ => random.mutate(&plain),
        };
        match read(&path, &contents) {
            Ok(file) => {
                // What is accepted is consistent and no larger than the bound.
                for (name, tensor) in &file.tensors {
                    Tensor::new(tensor.shape.clone(), tensor.data.clone())
                        .unwrap_or_else(|e| panic!("{name}: {e}"));
                }
                let held: usize = file.tensors.values().map(|t| 4 * t.data.len()).sum();
                assert!(held <= 8 * contents.len());
                outcomes[kind][0] += 1;
            }
            Err(error) => {
                assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error:?}");
                outcomes[kind][1] += 1;
            }
        }
    }
    for (kind, [read, refused]) in outcomes.into_iter().enumerate() {
        assert!(read > 20 && refused > 1000, "kind {kind}: {read} read, {refused} refused");
    }
    let grown = peak_bytes() - before;
    assert!(grown < 4 << 30, "{grown} more bytes were asked for");
}
