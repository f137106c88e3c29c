//! PyTorch checkpoints (`.pt`, `.pth`, `.bin`): a pickle that tells names, shapes
//! and views, and the storages that they are views of. Two containers are in use:
//!
//! ```text
//! zip      NAME/data.pkl  NAME/data/0  NAME/data/1 ...  NAME/byteorder
//! legacy   magic number, version and system as three pickles, the pickle itself,
//!          a pickled list of keys, then for each key its element count and data
//! ```
//!
//! A file is never trusted: lengths are checked against its size before anything
//! is allocated for them, entries must not be compressed, and all tensors
//! together may not be more than a small multiple of the file.

use std::collections::{BTreeMap, HashMap};
#[cfg(feature = "files")]
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::path::Path;

use half::{bf16, f16};
use zip::read::ZipFile;
use zip::result::ZipError;
use zip::{CompressionMethod, ZipArchive};

use super::pickle::{Element, MAX_PICKLE, Pickle, StorageRef, TensorRef, Value, unpickle};
use super::tensor::{Tensor, TensorData};
use super::tensor_file::{TensorFile, decode};
use crate::{Error, Result};

/// The first number of the legacy format, as its pickle holds it.
const LEGACY_MAGIC: [u8; 10] = [0x6c, 0xfc, 0x9c, 0x46, 0xf9, 0x20, 0x6a, 0xa8, 0x50, 0x19];
/// Its only version.
const LEGACY_VERSION: i64 = 1001;
/// Bytes of all tensors for a byte of the file: 16-bit floats and small integers
/// grow, and a storage may serve several names.
const MAX_GROWTH: u64 = 8;
/// Names of the dict that holds the network where a file holds several.
const NETWORKS: [&str; 4] = ["state_dict", "model_state_dict", "model", "network"];

/// A problem that is not yet tied to the file's path.
enum Fault {
    Io(io::Error),
    File(String),
}

impl From<String> for Fault {
    fn from(why: String) -> Self {
        Fault::File(why)
    }
}

impl From<io::Error> for Fault {
    /// Contents that are too short or fail their checksum are the file's fault.
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Fault::File("it ends too early".into()),
            io::ErrorKind::InvalidData | io::ErrorKind::Other => Fault::File(error.to_string()),
            _ => Fault::Io(error),
        }
    }
}

impl From<ZipError> for Fault {
    fn from(error: ZipError) -> Self {
        match error {
            ZipError::Io(error) => error.into(),
            other => Fault::File(format!("zip archive: {other}")),
        }
    }
}

type Step<T> = std::result::Result<T, Fault>;

/// Reads the tensors of a PyTorch checkpoint: a dict of tensors by name, or a
/// dict that holds one ("state_dict", "model"). Floats become 32-bit floats;
/// integers become 64-bit integers, unsigned bytes and bools stay bytes.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] naming the fault if it is
/// not sound, refers to anything but tensors, or names none.
#[cfg(feature = "files")]
pub fn read_torch(path: &Path) -> Result<TensorFile> {
    let (mut file, size) = open(path)?;
    read_named(&mut file, size, path)
}

/// The tensors of a PyTorch checkpoint's bytes; `name` stands for the file in messages.
///
/// # Errors
/// [`Error::File`] as from [`read_torch`].
pub fn torch_from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<TensorFile> {
    read_named(&mut Cursor::new(bytes), bytes.len() as u64, name.as_ref())
}

fn read_named(file: &mut (impl Read + Seek), size: u64, path: &Path) -> Result<TensorFile> {
    read_open(file, size).map_err(|fault| match fault {
        Fault::Io(error) => Error::io("read", path, error),
        Fault::File(why) => Error::file(path, format!("not a sound PyTorch checkpoint: {why}")),
    })
}

/// Reads a file of tensors, whichever kind its first bytes say it is:
/// safetensors or a PyTorch checkpoint.
///
/// # Errors
/// As [`TensorFile::read`] and [`read_torch`].
#[cfg(feature = "files")]
pub fn read_tensors(path: &Path) -> Result<TensorFile> {
    let (mut file, _) = open(path)?;
    let start = first_bytes(&mut file).map_err(|e| Error::io("read", path, e))?;
    if is_torch(&start) { read_torch(path) } else { TensorFile::read(path) }
}

/// The tensors in a file's bytes, of either kind that [`read_tensors`] reads; `name`
/// stands for the file in messages.
///
/// # Errors
/// [`Error::File`] as from [`read_tensors`].
pub fn tensors_from_bytes(name: impl AsRef<Path>, bytes: &[u8]) -> Result<TensorFile> {
    if is_torch(bytes) {
        torch_from_bytes(name, bytes)
    } else {
        TensorFile::from_bytes(name, bytes)
    }
}

/// Whether a file that starts with these bytes is a PyTorch checkpoint. A safetensors
/// file starts with the length of its header, whose first byte cannot be mistaken: its
/// ninth is a brace.
fn is_torch(start: &[u8]) -> bool {
    container(start).is_some() && start.get(8) != Some(&b'{')
}

/// Opens an ordinary file and tells its size.
#[cfg(feature = "files")]
fn open(path: &Path) -> Result<(File, u64)> {
    let read = |e| Error::io("read", path, e);
    // Looked at before opening: opening a pipe would wait for its other end.
    let meta = std::fs::metadata(path).map_err(read)?;
    if !meta.is_file() {
        let what = if meta.is_dir() { "a folder" } else { "not an ordinary file" };
        return Err(Error::file(path, format!("{what}; a file of tensors is needed")));
    }
    Ok((File::open(path).map_err(read)?, meta.len()))
}

/// Up to 16 bytes from the start.
fn first_bytes(file: &mut (impl Read + Seek)) -> io::Result<Vec<u8>> {
    let mut start = Vec::new();
    file.seek(SeekFrom::Start(0))?;
    file.take(16).read_to_end(&mut start)?;
    Ok(start)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Container {
    Zip,
    Legacy,
}

fn container(start: &[u8]) -> Option<Container> {
    match start {
        [b'P', b'K', 3, 4, ..] => Some(Container::Zip),
        // A pickle of protocol 2 or later.
        [0x80, 2..=5, ..] => Some(Container::Legacy),
        _ => None,
    }
}

fn read_open(file: &mut (impl Read + Seek), size: u64) -> Step<TensorFile> {
    match container(&first_bytes(file)?) {
        Some(Container::Zip) => read_zip(file, size),
        Some(Container::Legacy) => read_legacy(file, size),
        None => Err(Fault::File("it starts neither as a zip archive nor as a pickle".into())),
    }
}

fn read_zip(file: &mut (impl Read + Seek), size: u64) -> Step<TensorFile> {
    let mut archive = ZipArchive::new(file)?;
    let folder = pickle_folder(&archive)?;
    let order = format!("{folder}byteorder");
    if archive.index_for_name(&order).is_some() {
        let order = read_entry(&mut archive, &order, 16)?;
        if order != b"little" {
            let order = String::from_utf8_lossy(&order);
            return Err(Fault::File(format!("its byte order is {order:?}, only little is read")));
        }
    }
    let bytes = read_entry(&mut archive, &format!("{folder}data.pkl"), MAX_PICKLE as u64)?;
    let pickle = unpickle(&bytes)?;
    read_views(&pickle, size, |storage, take| {
        let name = format!("{folder}data/{}", storage.key);
        let (mut entry, bytes) = open_entry(&mut archive, &name)?;
        check_bytes(storage, bytes)?;
        take(&mut entry)?;
        // Reading to the end checks the checksum.
        io::copy(&mut entry, &mut io::sink())?;
        Ok(())
    })
}

/// The folder of the archive that holds the pickle, with its slash.
fn pickle_folder<R: Read + Seek>(archive: &ZipArchive<R>) -> Step<String> {
    let named = archive.file_names().filter_map(|name| name.strip_suffix("data.pkl"));
    let folders: Vec<&str> = named.filter(|f| f.is_empty() || f.ends_with('/')).collect();
    match folders[..] {
        [folder] => Ok(folder.to_owned()),
        [] => Err(Fault::File("a zip archive without data.pkl".into())),
        _ => Err(Fault::File("a zip archive with several data.pkl".into())),
    }
}

/// An entry and its length in bytes.
fn open_entry<'a, R: Read + Seek>(
    archive: &'a mut ZipArchive<R>,
    name: &str,
) -> Step<(ZipFile<'a, R>, u64)> {
    let entry = archive.by_name(name).map_err(|error| match error {
        ZipError::FileNotFound => Fault::File(format!("its entry {name:?} is missing")),
        other => other.into(),
    })?;
    // torch.save never compresses; without compression no entry outgrows the file.
    if entry.compression() != CompressionMethod::Stored || entry.size() != entry.compressed_size() {
        return Err(Fault::File(format!("its entry {name:?} is compressed")));
    }
    let size = entry.size();
    Ok((entry, size))
}

fn read_entry<R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
    limit: u64,
) -> Step<Vec<u8>> {
    let (entry, size) = open_entry(archive, name)?;
    if size > limit {
        return Err(Fault::File(format!("its entry {name:?} of {size} bytes is beyond {limit}")));
    }
    let mut bytes = Vec::new();
    // One more than there are: only reading on at the end checks the checksum.
    entry.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 != size {
        return Err(Fault::File(format!("its entry {name:?} ends too early")));
    }
    Ok(bytes)
}

fn read_legacy(file: &mut (impl Read + Seek), size: u64) -> Step<TensorFile> {
    // The pickles come first and are short beside the data.
    let limit = size.min(MAX_PICKLE as u64);
    file.seek(SeekFrom::Start(0))?;
    let mut head = Vec::new();
    file.take(limit).read_to_end(&mut head)?;

    let magic = unpickle(&head)?;
    if *magic.root() != Value::Long(&LEGACY_MAGIC) {
        return Err(Fault::File("a pickle, but without the magic number of torch.save".into()));
    }
    let mut at = magic.length;
    let version = unpickle(&head[at..])?;
    if *version.root() != Value::Int(LEGACY_VERSION) {
        return Err(Fault::File(format!("its format is not version {LEGACY_VERSION}")));
    }
    at += version.length;
    let system = unpickle(&head[at..])?;
    let little = system.entries(system.root()).find(|(name, _)| *name == "little_endian");
    if little.is_some_and(|(_, value)| *value != Value::Bool(true)) {
        return Err(Fault::File("its byte order is not little-endian".into()));
    }
    at += system.length;
    let pickle = unpickle(&head[at..])?;
    at += pickle.length;
    let keys = unpickle(&head[at..])?;
    at += keys.length;
    let places = legacy_places(file, size, at as u64, &pickle, &keys)?;
    read_views(&pickle, size, |storage, take| {
        let missing = || Fault::File(format!("its storage {:?} is missing", storage.key));
        file.seek(SeekFrom::Start(*places.get(storage.key).ok_or_else(missing)?))?;
        take(&mut file.take(storage.count as u64 * storage.element.size() as u64))
    })
}

/// Where the data of each storage starts. They follow one another in the order
/// of `keys`, each after its element count.
fn legacy_places<'a>(
    file: &mut (impl Read + Seek),
    size: u64,
    start: u64,
    pickle: &Pickle<'a>,
    keys: &Pickle<'a>,
) -> Step<HashMap<&'a str, u64>> {
    let known: HashMap<&str, StorageRef> = pickle.storages().map(|s| (s.key, s)).collect();
    let Value::List(list) = keys.root() else {
        return Err(Fault::File("its storages are not listed".into()));
    };
    let mut places = HashMap::new();
    let mut at = start;
    for &id in list {
        let Value::Str(key) = keys.get(id) else {
            return Err(Fault::File("a storage's key is no string".into()));
        };
        let Some(storage) = known.get(key) else {
            return Err(Fault::File(format!("its storage {key:?} belongs to no tensor")));
        };
        let mut count = [0; 8];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut count)?;
        let bytes = u64::from_le_bytes(count).checked_mul(storage.element.size() as u64);
        check_bytes(*storage, bytes.unwrap_or(u64::MAX))?;
        at += 8;
        // Checked against the count just now, but not yet against the file.
        let end = bytes.and_then(|bytes| at.checked_add(bytes)).filter(|&end| end <= size);
        places.insert(*key, at);
        at = end.ok_or_else(|| Fault::File(format!("its storage {key:?} ends too early")))?;
    }
    if at != size {
        return Err(Fault::File(format!("{} bytes are left over", size - at)));
    }
    Ok(places)
}

/// A storage must hold as many bytes as its elements need.
fn check_bytes(storage: StorageRef, bytes: u64) -> Step<()> {
    let needed = (storage.count as u64).checked_mul(storage.element.size() as u64);
    if needed == Some(bytes) {
        return Ok(());
    }
    let StorageRef { key, count, element } = storage;
    Err(Fault::File(format!(
        "its storage {key:?} holds {bytes} bytes, {count} elements of {element:?} are announced"
    )))
}

/// The named tensors of a pickle: its own, or those of the one dict in it that
/// holds any.
fn named<'p, 'a>(pickle: &'p Pickle<'a>) -> Step<BTreeMap<&'a str, &'p TensorRef<'a>>> {
    let root = pickle.root();
    let own: BTreeMap<_, _> = pickle.named_tensors(root).collect();
    if !own.is_empty() {
        return Ok(own);
    }
    let mut inner: BTreeMap<&str, BTreeMap<_, _>> = pickle
        .entries(root)
        .map(|(name, value)| (name, pickle.named_tensors(value).collect()))
        .collect();
    inner.retain(|_, tensors| !tensors.is_empty());
    let names: Vec<&str> = inner.keys().copied().collect();
    let chosen = match names[..] {
        [] => None,
        [one] => Some(one),
        _ => NETWORKS.into_iter().find(|name| inner.contains_key(name)),
    };
    match chosen.and_then(|name| inner.remove(name)) {
        Some(tensors) => Ok(tensors),
        None if names.is_empty() => Err(Fault::File(
            "it names no tensors, so it is no network (an optimizer's state?)".into(),
        )),
        None => Err(Fault::File(format!(
            "it holds several sets of tensors ({}); save the one that is meant",
            names.join(", ")
        ))),
    }
}

/// Hands the data of one storage to a function that takes what it needs of it.
type Take<'t> = &'t mut dyn FnMut(&mut dyn Read) -> Step<()>;

/// Reads all named tensors, storage after storage. `open` opens one.
fn read_views(
    pickle: &Pickle,
    size: u64,
    mut open: impl FnMut(StorageRef, Take) -> Step<()>,
) -> Step<TensorFile> {
    let mut by_storage: BTreeMap<&str, (StorageRef, Vec<View>)> = BTreeMap::new();
    let mut total = 0u64;
    for (name, tensor) in named(pickle)? {
        let storage = tensor.storage;
        total = total.saturating_add((tensor.len as u64).saturating_mul(held(storage.element)));
        let (first, views) = by_storage.entry(storage.key).or_insert_with(|| (storage, Vec::new()));
        if *first != storage {
            let why = format!("its storage {:?} is announced in two ways", storage.key);
            return Err(Fault::File(why));
        }
        views.push(View { name, tensor });
    }
    let stored: u64 = by_storage
        .values()
        .map(|(s, _)| (s.count as u64).saturating_mul(s.element.size() as u64))
        .fold(0, u64::saturating_add);
    if stored > size {
        return Err(Fault::File(format!(
            "its storages are said to be {stored} bytes long, the file is {size}"
        )));
    }
    if total > size.saturating_mul(MAX_GROWTH) {
        return Err(Fault::File(format!(
            "its tensors would be {total} bytes large, the file is {size}"
        )));
    }
    let mut result = TensorFile::default();
    for (storage, mut views) in by_storage.into_values() {
        let tensors = &mut result.tensors;
        let key = storage.key;
        open(storage, &mut |data| extract(storage, &mut views, data, tensors)).map_err(
            |fault| match fault {
                Fault::File(why) => Fault::File(format!("storage {key:?}: {why}")),
                io => io,
            },
        )?;
    }
    Ok(result)
}

struct View<'p, 'a> {
    name: &'a str,
    tensor: &'p TensorRef<'a>,
}

/// Takes the views out of a storage. Usually each is a run of its own, and the
/// storage need not be held as a whole.
fn extract(
    storage: StorageRef,
    views: &mut [View],
    data: &mut dyn Read,
    into: &mut BTreeMap<String, Tensor>,
) -> Step<()> {
    views.sort_by_key(|view| view.tensor.offset);
    let mut end = 0;
    let runs = views.iter().all(|View { tensor, .. }| {
        let after = tensor.offset >= end;
        end = tensor.offset + tensor.len;
        after && tensor.is_dense()
    });
    let whole = if runs { None } else { Some(elements(data, storage.element, storage.count)?) };
    let mut at = 0;
    for View { name, tensor } in views {
        let values = match &whole {
            Some(all) => gather(all, tensor),
            None => {
                let skipped = (tensor.offset - at) as u64 * storage.element.size() as u64;
                io::copy(&mut data.take(skipped), &mut io::sink())?;
                at = tensor.offset + tensor.len;
                elements(data, storage.element, tensor.len)?
            }
        };
        into.insert((*name).to_owned(), Tensor { shape: tensor.shape.clone(), data: values });
    }
    Ok(())
}

/// Bytes of one element in memory, as [`elements`] converts it.
fn held(element: Element) -> u64 {
    match element {
        Element::F16 | Element::Bf16 | Element::F32 | Element::F64 => 4,
        Element::I8 | Element::I16 | Element::I32 | Element::I64 => 8,
        Element::U8 | Element::Bool => 1,
    }
}

/// The next `count` elements, converted.
fn elements(mut data: &mut dyn Read, element: Element, count: usize) -> Step<TensorData> {
    let bytes = count * element.size();
    let data = &mut data;
    Ok(match element {
        Element::F32 => TensorData::F32(decode(data, bytes, f32::from_le_bytes)?),
        Element::F64 => TensorData::F32(decode(data, bytes, |b| f64::from_le_bytes(b) as f32)?),
        Element::F16 => TensorData::F32(decode(data, bytes, |b| f16::from_le_bytes(b).to_f32())?),
        Element::Bf16 => TensorData::F32(decode(data, bytes, |b| bf16::from_le_bytes(b).to_f32())?),
        Element::I64 => TensorData::I64(decode(data, bytes, i64::from_le_bytes)?),
        Element::I32 => TensorData::I64(decode(data, bytes, |b| i32::from_le_bytes(b).into())?),
        Element::I16 => TensorData::I64(decode(data, bytes, |b| i16::from_le_bytes(b).into())?),
        Element::I8 => TensorData::I64(decode(data, bytes, |b| i8::from_le_bytes(b).into())?),
        Element::U8 | Element::Bool => TensorData::U8(decode(data, bytes, u8::from_le_bytes)?),
    })
}

/// The elements of a view, row-major.
fn gather(all: &TensorData, view: &TensorRef) -> TensorData {
    match all {
        TensorData::F32(values) => TensorData::F32(gather_from(values, view)),
        TensorData::I64(values) => TensorData::I64(gather_from(values, view)),
        TensorData::U8(values) => TensorData::U8(gather_from(values, view)),
        // `elements` makes no others.
        other => other.clone(),
    }
}

fn gather_from<T: Copy>(values: &[T], view: &TensorRef) -> Vec<T> {
    let mut gathered = Vec::with_capacity(view.len);
    let mut index = vec![0; view.shape.len()];
    let mut at = view.offset;
    while gathered.len() < view.len {
        gathered.push(values[at]);
        // Counts up; the innermost axis turns first.
        for axis in (0..index.len()).rev() {
            index[axis] += 1;
            if index[axis] < view.shape[axis] {
                at += view.stride[axis];
                break;
            }
            at -= (index[axis] - 1) * view.stride[axis];
            index[axis] = 0;
        }
    }
    gathered
}
