//! Small PyTorch checkpoints, sound and hostile, built byte by byte.

use std::io::{Cursor, Write};

use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

/// One tensor and the storage it is a view of.
#[derive(Debug, Clone)]
pub struct Entry {
    pub name: &'static str,
    /// Class of the storage.
    pub class: &'static str,
    /// Name of the storage.
    pub key: &'static str,
    /// Elements of the storage.
    pub count: i64,
    pub offset: i64,
    pub shape: Vec<i64>,
    pub stride: Vec<i64>,
}

/// A dense tensor of floats with a storage of its own.
pub fn floats(name: &'static str, key: &'static str, shape: &[i64]) -> Entry {
    let mut stride = vec![1; shape.len()];
    for axis in (1..shape.len()).rev() {
        stride[axis - 1] = stride[axis] * shape[axis];
    }
    let count = shape.iter().product();
    Entry { name, class: "FloatStorage", key, count, offset: 0, shape: shape.to_vec(), stride }
}

/// Writes opcodes of protocol 2.
#[derive(Default, Clone)]
pub struct Pickler(pub Vec<u8>);

impl Pickler {
    pub fn new() -> Pickler {
        Pickler(vec![0x80, 2])
    }

    pub fn op(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    pub fn global(self, module: &str, name: &str) -> Self {
        self.op(format!("c{module}\n{name}\n").as_bytes())
    }

    pub fn str(self, text: &str) -> Self {
        self.op(b"X").op(&(text.len() as u32).to_le_bytes()).op(text.as_bytes())
    }

    pub fn int(self, value: i64) -> Self {
        match i32::try_from(value) {
            Ok(small) => self.op(b"J").op(&small.to_le_bytes()),
            Err(_) => self.op(&[0x8a, 8]).op(&value.to_le_bytes()),
        }
    }

    pub fn ints(self, values: &[i64]) -> Self {
        values.iter().fold(self.op(b"("), |p, &v| p.int(v)).op(b"t")
    }

    pub fn ordered_dict(self) -> Self {
        self.global("collections", "OrderedDict").op(b")R")
    }

    pub fn storage(self, class: &str, key: &str, count: i64) -> Self {
        self.op(b"(")
            .str("storage")
            .global("torch", class)
            .str(key)
            .str("cuda:0")
            .int(count)
            .op(b"tQ")
    }

    pub fn tensor(self, e: &Entry) -> Self {
        self.global("torch._utils", "_rebuild_tensor_v2")
            .op(b"(")
            .storage(e.class, e.key, e.count)
            .int(e.offset)
            .ints(&e.shape)
            .ints(&e.stride)
            .op(b"\x89")
            .ordered_dict()
            .op(b"tR")
    }

    pub fn state_dict(self, entries: &[Entry]) -> Self {
        let open = self.ordered_dict().op(b"(");
        entries.iter().fold(open, |p, e| p.str(e.name).tensor(e)).op(b"u")
    }

    pub fn done(self) -> Vec<u8> {
        self.op(b".").0
    }
}

/// The pickle of a state_dict.
pub fn pickle(entries: &[Entry]) -> Vec<u8> {
    Pickler::new().state_dict(entries).done()
}

/// A storage by its key.
pub type Data = (&'static str, Vec<u8>);

/// Floats as a storage holds them.
pub fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|v| v.to_le_bytes()).collect()
}

/// The zip container around a pickle.
pub fn zipped(pickle: &[u8], storages: &[Data]) -> Vec<u8> {
    let mut files = vec![("a/data.pkl".to_owned(), pickle), ("a/byteorder".to_owned(), b"little")];
    files.extend(storages.iter().map(|(key, data)| (format!("a/data/{key}"), &data[..])));
    archive(&files)
}

/// A zip archive without compression.
pub fn archive(files: &[(String, &[u8])]) -> Vec<u8> {
    let mut writer = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for (name, data) in files {
        writer.start_file(name.as_str(), options).unwrap();
        writer.write_all(data).unwrap();
    }
    writer.finish().unwrap().into_inner()
}

/// The three pickles before the legacy container's own: magic number, version
/// and system.
pub fn legacy_head() -> Vec<u8> {
    let magic = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
    let mut head = Pickler::new().op(&[0x8a, 10]).op(&magic).done();
    head.extend(Pickler::new().int(1001).done());
    head.extend(Pickler::new().op(b"}(").str("little_endian").op(b"\x88u").done());
    head
}

/// The legacy container around a pickle; all storages are of `size` bytes an
/// element.
pub fn legacy(pickle: &[u8], storages: &[Data], size: usize) -> Vec<u8> {
    let mut file = legacy_head();
    file.extend(pickle);
    let keys = storages.iter().fold(Pickler::new().op(b"]("), |p, (key, _)| p.str(key));
    file.extend(keys.op(b"e").done());
    for (_, data) in storages {
        file.extend(((data.len() / size) as u64).to_le_bytes());
        file.extend(data);
    }
    file
}
