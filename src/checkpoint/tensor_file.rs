//! Named tensors in a safetensors file: an 8-byte header length, a JSON header
//! (dtype, shape and byte range of each tensor, and a string map), then the data,
//! little-endian. <https://github.com/huggingface/safetensors>
//!
//! A file is never trusted: its header is checked in full against its size before
//! anything is allocated for data, so memory is bounded by a multiple of the file's
//! own length and a broken file is an [`Error::File`] that names the fault.
//! The same tensors always make the same bytes, and files appear whole or not at all.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::Path;

use half::{bf16, f16};
use safetensors::tensor::{Dtype, Metadata};

use crate::files::atomic;
use crate::{Error, Result};

/// Longest header that is read; a network with 10,000 tensors needs about 1 MB.
const MAX_HEADER: u64 = 16 << 20;
/// The header key that is no tensor.
const METADATA_KEY: &str = "__metadata__";
/// Bytes converted at a time.
const CHUNK: usize = 1 << 20;

/// The elements of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 32-bit floats; bfloat16 files are read as these.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Bytes.
    U8(Vec<u8>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::F16(v) => v.len(),
            TensorData::F64(v) => v.len(),
            TensorData::I64(v) => v.len(),
            TensorData::U8(v) => v.len(),
            TensorData::U32(v) => v.len(),
            TensorData::U64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements are floats, of any width.
    pub fn is_float(&self) -> bool {
        matches!(self, TensorData::F32(_) | TensorData::F16(_) | TensorData::F64(_))
    }

    /// The element type, as safetensors names it.
    pub fn dtype(&self) -> Dtype {
        match self {
            TensorData::F32(_) => Dtype::F32,
            TensorData::F16(_) => Dtype::F16,
            TensorData::F64(_) => Dtype::F64,
            TensorData::I64(_) => Dtype::I64,
            TensorData::U8(_) => Dtype::U8,
            TensorData::U32(_) => Dtype::U32,
            TensorData::U64(_) => Dtype::U64,
        }
    }
}

/// A tensor: a shape and as many elements as its product (1 for a scalar, []).
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: TensorData,
}

impl Tensor {
    /// A tensor from its parts.
    ///
    /// # Errors
    /// [`Error::Shape`] if `shape` and the number of elements disagree.
    pub fn new(shape: impl Into<Vec<usize>>, data: TensorData) -> Result<Self> {
        let tensor = Tensor { shape: shape.into(), data };
        tensor.check("tensor")?;
        Ok(tensor)
    }

    /// A tensor of 32-bit floats; see [`Tensor::new`].
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn f32(shape: impl Into<Vec<usize>>, data: impl Into<Vec<f32>>) -> Result<Self> {
        Self::new(shape, TensorData::F32(data.into()))
    }

    /// The elements as 32-bit floats, from any float type, without a copy if they
    /// are already.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is a tensor of integers.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match &self.data {
            TensorData::F32(v) => Ok(Cow::Borrowed(v)),
            TensorData::F16(v) => Ok(Cow::Owned(v.iter().map(|x| x.to_f32()).collect())),
            TensorData::F64(v) => Ok(Cow::Owned(v.iter().map(|&x| x as f32).collect())),
            other => Err(Error::shape(
                "to_f32",
                format!("a tensor of {:?} {:?}; floats are needed", other.dtype(), self.shape),
            )),
        }
    }

    fn check(&self, name: &str) -> Result<()> {
        if count(&self.shape) == Some(self.data.len()) {
            return Ok(());
        }
        let detail = format!("{name}: {} elements for the shape {:?}", self.data.len(), self.shape);
        Err(Error::shape("tensor_file", detail))
    }
}

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
pub fn load_header(path: &Path) -> Result<Header> {
    open(path).map(|(_, header)| header)
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
    pub fn read(path: &Path) -> Result<Self> {
        Self::read_where(path, |_| true)
    }

    /// Reads the tensors whose name `wanted` accepts, and the metadata.
    ///
    /// # Errors
    /// As [`TensorFile::read`].
    pub fn read_where(path: &Path, wanted: impl Fn(&str) -> bool) -> Result<Self> {
        let (mut file, header) = open(path)?;
        let mut tensors = BTreeMap::new();
        for (name, info) in header.tensors {
            if wanted(&name) {
                let data = read_data(&mut file, &info).map_err(|e| match e.kind() {
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
    pub fn write_as(&self, path: &Path, storage: Storage) -> Result<()> {
        for (name, tensor) in &self.tensors {
            check_writable(name, tensor, storage)?;
        }
        let mut order: Vec<(&String, &Tensor)> = self.tensors.iter().collect();
        // Wide elements first: then each tensor starts at a multiple of its own size.
        order.sort_by_key(|(_, t)| std::cmp::Reverse(stored(t, storage).bitsize()));
        let header = self.header(&order, storage);
        if header.len() as u64 > MAX_HEADER {
            let detail = format!("a header of {} bytes is longer than can be read", header.len());
            return Err(Error::file(path, detail));
        }
        atomic::write_with(path, |w| {
            w.write_all(&(header.len() as u64).to_le_bytes())?;
            w.write_all(&header)?;
            order.iter().try_for_each(|(_, t)| write_data(w, &t.data, storage))
        })
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

/// Opens a file and checks all that its header says.
fn open(path: &Path) -> Result<(File, Header)> {
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
    let mut file = File::open(path).map_err(read)?;
    let size = meta.len();
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
    let header = check_header(&parsed, 8 + length, size).map_err(refuse)?;
    Ok((file, header))
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
    let metadata: HashMap<String, String> = parsed.metadata().clone().unwrap_or_default();
    Ok(Header { tensors, metadata: metadata.into_iter().collect() })
}

fn read_data(file: &mut File, info: &TensorInfo) -> io::Result<TensorData> {
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

/// The product of a shape, unless it overflows.
fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
