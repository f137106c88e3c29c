//! Named tensors in a safetensors file: an 8-byte header length, a JSON header
//! (dtype, shape and byte range of each tensor, and a string map), then the data,
//! little-endian. <https://github.com/huggingface/safetensors>
//!
//! A file is never trusted: its header is checked in full against its size before
//! anything is allocated for data, so memory is bounded by a multiple of the file's
//! own length and a broken file is an [`Error::File`] that names the fault.
//! The same tensors always make the same bytes, and files appear whole or not at all.

use std::collections::BTreeMap;
use std::io::{self, Cursor, Read, Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};

use super::tensor::count;
pub use super::tensor::{Tensor, TensorData};
#[cfg(feature = "files")]
use crate::files::atomic;
use crate::{Error, Result};

/// Longest header that is read; a network with 10,000 tensors needs about 1 MB.
const MAX_HEADER: u64 = 16 << 20;
/// The header key that is no tensor.
const METADATA_KEY: &str = "__metadata__";
/// Bytes converted at a time.
const CHUNK: usize = 1 << 20;

/// How 32-bit and 16-bit floats are written; other types stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// Each tensor in its own type.
    AsIs,
    /// As 32-bit floats.
    F32,
    /// As 16-bit floats, rounded to nearest even.
    F16,
}

/// What a file says about one tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// Element type in the file.
    pub dtype: Dtype,
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// First byte, counted from the start of the file.
    offset: u64,
    /// Bytes.
    bytes: u64,
}

/// A file without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The tensors by name.
    pub tensors: BTreeMap<String, TensorInfo>,
    /// The file's string map.
    pub metadata: BTreeMap<String, String>,
}

/// Reads and checks the header of `path`: names, types, shapes and metadata.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened, [`Error::File`] if it is not a sound
/// safetensors file.
#[cfg(feature = "files")]
pub fn load_header(path: &Path) -> Result<Header> {
    let (mut file, size) = open(path)?;
    read_header(&mut file, size, path)
}

/// Checks the header of a file's bytes; `name` stands for the file in messages.
///
/// # Errors
/// [`Error::File`] if it is not a sound safetensors file.
pub fn header_from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<Header> {
    read_header(&mut Cursor::new(bytes), bytes.len() as u64, name.as_ref())
}

/// All tensors and the metadata of one file.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct TensorFile {
    /// The tensors by name.
    pub tensors: BTreeMap<String, Tensor>,
    /// Free text by key.
    pub metadata: BTreeMap<String, String>,
}

impl TensorFile {
    /// Reads a whole file.
    ///
    /// # Errors
    /// As [`load_header`]; [`Error::File`] also for an element type that is not in
    /// [`TensorData`].
    #[cfg(feature = "files")]
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_where(path, |_| true)
    }

    /// The contents of a file's bytes; `name` stands for the file in messages.
    ///
    /// # Errors
    /// [`Error::File`] as from [`TensorFile::read`].
    pub fn from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<Self> {
        let size = bytes.len() as u64;
        Self::read_from(&mut Cursor::new(bytes), size, name.as_ref(), |_| true)
    }

    /// Reads the tensors whose name `wanted` accepts, and the metadata.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    #[cfg(feature = "files")]
    pub fn read_where(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let (mut file, size) = open(path)?;
        Self::read_from(&mut file, size, path, wanted)
    }

    /// Reads from something of `size` bytes, which `path` names in messages.
    fn read_from(
        file: &mut (impl Read + Seek),
        size: u64,
        path: &Path,
        wanted: impl Fn(&str) -> bool,
    ) -> Result<Self> {
        let header = read_header(file, size, path)?;
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors {
            if wanted(&name) {
                let data = read_data(file, &info).map_err(|e| match e.kind() {
                    io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => {
                        Error::file(path, format!("tensor {name:?}: {e}"))
                    }
                    _ => Error::io("read", path, e),
                })?;
                tensors.insert(name, Tensor { shape: info.shape, data });
            }
        }
        Ok(TensorFile { tensors, metadata: header.metadata })
    }

    /// Writes the file, every tensor in its own type.
    ///
    /// # Errors
    /// As [`TensorFile::write_as`].
    #[cfg(feature = "files")]
    pub fn write(&self, path: &Path) -> Result<()> {
        self.write_as(path, Storage::AsIs)
    }

    /// Writes the file with its floats stored as `storage` says. The data is
    /// converted piece by piece: no second copy is held.
    ///
    /// # Errors
    /// [`Error::Shape`] if a tensor contradicts its shape, [`Error::Config`] for the
    /// reserved name `__metadata__` or a value beyond what 16 bits hold,
    /// [`Error::Io`] if `path` cannot be written.
    #[cfg(feature = "files")]
    pub fn write_as(&self, path: &Path, storage: Storage) -> Result<()> {
        let parts = self.parts(storage)?;
        if parts.header.len() as u64 > MAX_HEADER {
            let bytes = parts.header.len();
            let detail = format!("a header of {bytes} bytes is longer than can be read");
            return Err(Error::file(path, detail));
        }
        atomic::write_with(path, |w| parts.write(w, storage))
    }

    /// The bytes of the file that [`TensorFile::write_as`] writes.
    ///
    /// # Errors
    /// As [`TensorFile::write_as`], except for the path.
    pub fn to_bytes(&self, storage: Storage) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let written = self.parts(storage)?.write(&mut bytes, storage);
        written.map_err(|e| Error::Memory(e.to_string()))?;
        Ok(bytes)
    }

    /// Checks the tensors and orders them.
    fn parts(&self, storage: Storage) -> Result<Parts<'_>> {
        for (name, tensor) in &self.tensors {
            check_writable(name, tensor, storage)?;
        }
        let mut order: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        // Wide elements first: then each tensor starts at a multiple of its own size.
        order.sort_by_key(|(_, t)| std::cmp::Reverse(stored(t, storage).bitsize()));
        let header = self.header(&order, storage);
        Ok(Parts { header, tensors: order.into_iter().map(|(_, t)| t).collect() })
    }

    /// The JSON header, padded with spaces to a multiple of 8 bytes. Keys are
    /// sorted, so that equal contents are equal files.
    fn header(&self, order: &[(&String, &Tensor)], storage: Storage) -> Vec<u8> {
        let mut json = serde_json::Map::new();
        if !self.metadata.is_empty() {
            json.insert(METADATA_KEY.into(), serde_json::json!(self.metadata));
        }
        let mut start = 0;
        for (name, tensor) in order {
            let dtype = stored(tensor, storage);
            let end = start + tensor.data.len() * dtype.bitsize() / 8;
            let info = serde_json::json!({
                "dtype": dtype, "shape": tensor.shape, "data_offsets": [start, end],
            });
            json.insert(name.to_string(), info);
            start = end;
        }
        let mut header = serde_json::Value::Object(json).to_string().into_bytes();
        header.resize(header.len().next_multiple_of(8), b' ');
        header
    }
}

/// A file that is about to be written.
struct Parts<'a> {
    header: Vec<u8>,
    /// In the order of their data.
    tensors: Vec<&'a Tensor>,
}

impl Parts<'_> {
    fn write(&self, w: &mut impl Write, storage: Storage) -> io::Result<()> {
        w.write_all(&(self.header.len() as u64).to_le_bytes())?;
        w.write_all(&self.header)?;
        self.tensors.iter().try_for_each(|t| write_data(w, &t.data, storage))
    }
}

/// Opens an ordinary file and tells its size in bytes.
#[cfg(feature = "files")]
fn open(path: &Path) -> Result<(std::fs::File, u64)> {
    let read = |e| Error::io("read", path, e);
    // Looked at before opening: opening a pipe would wait for its other end.
    let meta = std::fs::metadata(path).map_err(read)?;
    if !meta.is_file() {
        let network = path.join("network.safetensors");
        let what = match meta.is_dir() {
            true if network.is_file() => format!("a folder; did you mean {}?", network.display()),
            true => "a folder; a safetensors file is needed".into(),
            false => "not an ordinary file; a safetensors file is needed".into(),
        };
        return Err(Error::file(path, what));
    }
    Ok((std::fs::File::open(path).map_err(read)?, meta.len()))
}

/// Reads a header and checks all that it says; `size` is that of the whole file.
fn read_header(file: &mut (impl Read + Seek), size: u64, path: &Path) -> Result<Header> {
    let read = |e| Error::io("read", path, e);
    let refuse = |why: String| Error::file(path, format!("not a sound safetensors file: {why}"));

    if size < 8 {
        return Err(refuse(format!("{size} bytes are too short for a header")));
    }
    let mut length = [0; 8];
    file.read_exact(&mut length).map_err(read)?;
    // A zip archive, or a pickle of protocol 2 and later; a header begins with a brace.
    let torch = length.starts_with(b"PK\x03\x04") || matches!(length[..2], [0x80, 2..=5]);
    let length = u64::from_le_bytes(length);
    let mut ninth = [0];
    if length > size - 8 && torch && file.read_exact(&mut ninth).is_ok() && ninth != *b"{" {
        return Err(Error::file(
            path,
            "looks like a PyTorch checkpoint; make a network of it with `demist import`",
        ));
    }
    if length > size - 8 {
        let why = format!("the header is said to be {length} bytes long, the file is {size}");
        return Err(refuse(why));
    }
    if length > MAX_HEADER {
        let why = format!("a header of {length} bytes is beyond the limit of {MAX_HEADER}");
        return Err(refuse(why));
    }
    let mut json = vec![0; length as usize];
    file.read_exact(&mut json).map_err(read)?;
    let parsed: Metadata =
        serde_json::from_slice(&json).map_err(|e| refuse(format!("bad header: {e}")))?;
    check_header(&parsed, 8 + length, size).map_err(refuse)
}

/// Checks that the tensors lie one after the other, have the sizes that their
/// shapes ask for, and end where the file ends.
fn check_header(
    parsed: &Metadata,
    data_start: u64,
    size: u64,
) -> std::result::Result<Header, String> {
    let mut ranges: Vec<(usize, usize, String)> = Vec::new();
    let mut tensors = BTreeMap::new();
    for (name, info) in parsed.tensors() {
        let (start, end) = info.data_offsets;
        let bits = count(&info.shape).and_then(|n| n.checked_mul(info.dtype.bitsize()));
        let stored = end.checked_sub(start);
        if bits.filter(|b| b % 8 == 0).map(|b| b / 8) != stored {
            return Err(format!(
                "tensor {name:?} of {:?} {:?} has the byte range {start}..{end}",
                info.dtype, info.shape
            ));
        }
        let bytes = (end - start) as u64;
        // The end is checked against the file below.
        let offset = data_start.saturating_add(start as u64);
        let shape = info.shape.clone();
        tensors.insert(name.clone(), TensorInfo { dtype: info.dtype, shape, offset, bytes });
        ranges.push((start, end, name));
    }
    ranges.sort();
    let mut at = 0;
    for (start, end, name) in ranges {
        if start != at {
            return Err(format!(
                "tensor {name:?} starts at byte {start}, the one before it ends at {at}"
            ));
        }
        at = end;
    }
    let held = size - data_start;
    if at as u64 != held {
        return Err(format!("its tensors need {at} bytes, the file holds {held}"));
    }
    let metadata = parsed.metadata().clone().unwrap_or_default();
    Ok(Header { tensors, metadata: metadata.into_iter().collect() })
}

fn read_data(file: &mut (impl Read + Seek), info: &TensorInfo) -> io::Result<TensorData> {
    file.seek(SeekFrom::Start(info.offset))?;
    let bytes = info.bytes as usize;
    Ok(match info.dtype {
        Dtype::F32 => TensorData::F32(decode(file, bytes, f32::from_le_bytes)?),
        Dtype::F16 => TensorData::F16(decode(file, bytes, f16::from_le_bytes)?),
        Dtype::BF16 => TensorData::F32(decode(file, bytes, |b| bf16::from_le_bytes(b).to_f32())?),
        Dtype::F64 => TensorData::F64(decode(file, bytes, f64::from_le_bytes)?),
        Dtype::I64 => TensorData::I64(decode(file, bytes, i64::from_le_bytes)?),
        Dtype::U8 => TensorData::U8(decode(file, bytes, u8::from_le_bytes)?),
        Dtype::U32 => TensorData::U32(decode(file, bytes, u32::from_le_bytes)?),
        Dtype::U64 => TensorData::U64(decode(file, bytes, u64::from_le_bytes)?),
        other => {
            let why = format!(
                "elements of type {other:?} cannot be read; \
                 F32, F16, BF16, F64, I64, U8, U32 and U64 can"
            );
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
    })
}

/// Reads `bytes` bytes as elements of N bytes each.
pub(super) fn decode<const N: usize, T>(
    file: &mut impl Read,
    bytes: usize,
    from: impl Fn([u8; N]) -> T,
) -> io::Result<Vec<T>> {
    let mut values = Vec::with_capacity(bytes / N);
    let mut buffer = vec![0; bytes.min(CHUNK)];
    let mut left = bytes;
    while left > 0 {
        // CHUNK is a multiple of every element size.
        let part = &mut buffer[..left.min(CHUNK)];
        file.read_exact(part)?;
        values.extend(part.as_chunks::<N>().0.iter().map(|&b| from(b)));
        left -= part.len();
    }
    Ok(values)
}

fn write_data(w: &mut impl Write, data: &TensorData, storage: Storage) -> io::Result<()> {
    match (data, storage) {
        (TensorData::F32(v), Storage::F16) => encode(w, v, |x| f16::from_f32(x).to_le_bytes()),
        (TensorData::F16(v), Storage::F32) => encode(w, v, |x| x.to_f32().to_le_bytes()),
        (TensorData::F32(v), _) => encode(w, v, f32::to_le_bytes),
        (TensorData::F16(v), _) => encode(w, v, f16::to_le_bytes),
        (TensorData::F64(v), _) => encode(w, v, f64::to_le_bytes),
        (TensorData::I64(v), _) => encode(w, v, i64::to_le_bytes),
        (TensorData::U8(v), _) => w.write_all(v),
        (TensorData::U32(v), _) => encode(w, v, u32::to_le_bytes),
        (TensorData::U64(v), _) => encode(w, v, u64::to_le_bytes),
    }
}

fn encode<const N: usize, T: Copy>(
    w: &mut impl Write,
    values: &[T],
    to: impl Fn(T) -> [u8; N],
) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(CHUNK.min(values.len() * N));
    for part in values.chunks(CHUNK / N) {
        buffer.clear();
        part.iter().for_each(|&v| buffer.extend_from_slice(&to(v)));
        w.write_all(&buffer)?;
    }
    Ok(())
}

/// The type that a tensor has in a file written with `storage`.
fn stored(tensor: &Tensor, storage: Storage) -> Dtype {
    match (tensor.data.dtype(), storage) {
        (Dtype::F32 | Dtype::F16, Storage::F32) => Dtype::F32,
        (Dtype::F32 | Dtype::F16, Storage::F16) => Dtype::F16,
        (own, _) => own,
    }
}

fn check_writable(name: &str, tensor: &Tensor, storage: Storage) -> Result<()> {
    if name == METADATA_KEY {
        return Err(Error::Config(format!("no tensor can have the reserved name {METADATA_KEY}")));
    }
    tensor.check(name)?;
    if let (TensorData::F32(values), Storage::F16) = (&tensor.data, storage) {
        let lost = |x: &&f32| x.is_finite() && f16::from_f32(**x).is_infinite();
        if let Some(x) = values.iter().find(lost) {
            return Err(Error::Config(format!(
                "tensor {name:?} holds {x}, which 16-bit floats (up to 65504) cannot: \
                 store it as 32-bit floats"
            )));
        }
    }
    Ok(())
}
