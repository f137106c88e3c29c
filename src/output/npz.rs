//! Samples as NumPy archives, the exchange format of the reference and of its
//! evaluator: `arr_0` uint8 NHWC, and `arr_1` int64 labels if there are classes.

use std::fs::File;
use std::io::{self, BufReader, BufWriter, Cursor, Read, Seek, Write};
use std::path::Path;

use npyz::{AutoSerialize, NpyFile, Order, WriterBuilder};
use zip::result::ZipError;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, DateTime, ZipArchive, ZipWriter};

use crate::files::atomic;
use crate::{Error, Result};

/// Images with optional class labels.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Samples {
    /// NHWC bytes.
    pub images: Vec<u8>,
    /// `[n, height, width, channels]`.
    pub shape: [usize; 4],
    /// One class an image.
    pub labels: Option<Vec<i64>>,
}

/// Writes `images` (NHWC, `shape` = `[n, height, width, channels]`) as `arr_0` and
/// `labels` (n of them) as `arr_1`, uncompressed as `numpy.savez` does.
///
/// # Errors
/// [`Error::Shape`] if the sizes disagree, [`Error::Io`] if `path` cannot be written.
pub fn save_samples(
    path: &Path,
    images: &[u8],
    shape: [usize; 4],
    labels: Option<&[i64]>,
) -> Result<()> {
    let needed = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    if needed != Some(images.len()) {
        let detail = format!("{} bytes for {shape:?}", images.len());
        return Err(Error::shape("npz", detail));
    }
    if let Some(l) = labels.filter(|l| l.len() != shape[0]) {
        let detail = format!("{} labels for {} images", l.len(), shape[0]);
        return Err(Error::shape("npz", detail));
    }
    atomic::write_with(path, |file| {
        let mut zip = ZipWriter::new(file);
        write_array(&mut zip, "arr_0.npy", images, &shape)?;
        if let Some(labels) = labels {
            write_array(&mut zip, "arr_1.npy", labels, &[labels.len()])?;
        }
        zip.finish()?.flush()
    })
}

/// Writes one float32 array called `name`, uncompressed.
///
/// # Errors
/// [`Error::Shape`] if the sizes disagree, [`Error::Io`] if `path` cannot be written.
pub fn save_floats(path: &Path, name: &str, values: &[f32], shape: &[usize]) -> Result<()> {
    if shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)) != Some(values.len()) {
        return Err(Error::shape("npz", format!("{} values for {shape:?}", values.len())));
    }
    atomic::write_with(path, |file| {
        let mut zip = ZipWriter::new(file);
        write_array(&mut zip, &format!("{name}.npy"), values, shape)?;
        zip.finish()?.flush()
    })
}

/// Reads an archive as [`save_samples`] or `numpy.savez(_compressed)` write it.
///
/// # Errors
/// [`Error::Io`] if it cannot be opened; [`Error::File`] if it is no archive, has no
/// `arr_0`, or the arrays are not uint8 `[n, h, w, c]` and int64 `[n]`.
pub fn load_samples(path: &Path) -> Result<Samples> {
    let file = File::open(path).map_err(|e| Error::io("read", path, e))?;
    let bad = |e: io::Error| Error::file(path, format!("not a usable .npz archive: {e}"));
    let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|e| bad(e.into()))?;
    let images = read_array::<u8, _>(&mut archive, "arr_0").map_err(bad)?;
    let (images, dims) =
        images.ok_or_else(|| Error::file(path, "the archive holds no array `arr_0`"))?;
    let shape: [usize; 4] = dims.try_into().map_err(|d| {
        Error::file(
            path,
            format!("`arr_0` has the shape {d:?}; [n, height, width, channels] is needed"),
        )
    })?;
    let labels = match read_array::<i64, _>(&mut archive, "arr_1").map_err(bad)? {
        Some((labels, dims)) if dims == [shape[0]] => Some(labels),
        Some((_, dims)) => {
            let detail = format!("`arr_1` has the shape {dims:?}; [{}] is needed", shape[0]);
            return Err(Error::file(path, detail));
        }
        None => None,
    };
    Ok(Samples { images, shape, labels })
}

fn write_array<W: Write + Seek, T: AutoSerialize + Copy>(
    zip: &mut ZipWriter<W>,
    name: &str,
    values: &[T],
    shape: &[usize],
) -> io::Result<()> {
    // 50,000 images of 256x256 pass the 4 GiB that a plain zip entry can hold.
    let large = size_of_val(values) >= (u32::MAX as usize) - (1 << 16);
    // A fixed date: the same samples are the same file.
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .last_modified_time(DateTime::default())
        .large_file(large);
    zip.start_file(name, options)?;
    let shape: Vec<u64> = shape.iter().map(|&d| d as u64).collect();
    let mut writer = npyz::WriteOptions::new()
        .default_dtype()
        .shape(&shape)
        .writer(BufWriter::with_capacity(1 << 18, zip))
        .begin_nd()?;
    writer.extend(values.iter().copied())?;
    writer.finish()
}

/// An array and its shape, or `None` if the archive has none of that name.
fn read_array<T: npyz::Deserialize, R: Read + Seek>(
    archive: &mut ZipArchive<R>,
    name: &str,
) -> io::Result<Option<(Vec<T>, Vec<usize>)>> {
    let refuse = |what: &str| invalid(format!("`{name}` {what}"));
    let mut entry = match archive.by_name(&format!("{name}.npy")) {
        Ok(entry) => entry,
        Err(ZipError::FileNotFound) => return Ok(None),
        Err(e) => return Err(refuse(&e.to_string())),
    };
    let header = screened_header(&mut entry).map_err(|e| refuse(&e.to_string()))?;
    let mut reader = Cursor::new(header).chain(entry);
    let array = NpyFile::new(&mut reader)?;
    let shape: Vec<usize> = array.shape().iter().map(|&d| d as usize).collect();
    if array.order() != Order::C && shape.len() > 1 {
        return Err(refuse("is in Fortran order; C order is needed"));
    }
    let values = read_values(array, &refuse)?;
    // The checksum is compared at the end of the entry only.
    match reader.read(&mut [0]) {
        Ok(0) => Ok(Some((values, shape))),
        Ok(_) => Err(refuse("goes on beyond its shape")),
        Err(e) => Err(refuse(&e.to_string())),
    }
}

/// Reads the header of an array (magic, version, length, a Python dictionary) and
/// passes it on only if it is as plain as that of a simple array: the library's
/// parser is not made for nested or overflowing ones.
/// <https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html>
fn screened_header(entry: &mut impl Read) -> io::Result<Vec<u8>> {
    let mut header = vec![0; 10];
    entry.read_exact(&mut header)?;
    if !header.starts_with(b"\x93NUMPY\x01") {
        return Err(invalid("is not an array in the .npy format, version 1".into()));
    }
    let length = usize::from(u16::from_le_bytes([header[8], header[9]]));
    header.resize(10 + length, 0);
    entry.read_exact(&mut header[10..])?;
    let text = String::from_utf8_lossy(&header[10..]);
    let shape = text.split_once('(').and_then(|(_, rest)| rest.split_once(')'));
    let elements = shape.and_then(|(shape, _)| {
        let mut extents = shape.split(',').map(str::trim).filter(|d| !d.is_empty());
        // At least 1 each: partial products are formed even if an extent is 0.
        extents.try_fold(8usize, |n, d| n.checked_mul(d.parse::<usize>().ok()?.max(1)))
    });
    // One pair of parentheses, one of braces, no list: nothing nests.
    let plain = |c| text.matches(c).count() <= 1;
    if elements.is_none() || !plain('(') || !plain('{') || text.contains('[') {
        return Err(invalid("has a header that is not that of a plain array".into()));
    }
    Ok(header)
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Reads element by element, so that memory follows what is really in the file
/// and not the shape that its header claims.
fn read_values<T: npyz::Deserialize, R: Read>(
    array: NpyFile<R>,
    refuse: &dyn Fn(&str) -> io::Error,
) -> io::Result<Vec<T>> {
    let wrong = format!(
        "has the dtype {}; {} is needed",
        array.dtype().descr(),
        if size_of::<T>() == 1 { "uint8" } else { "int64" }
    );
    let mut values = Vec::new();
    for value in array.data::<T>().map_err(|_| refuse(&wrong))? {
        values.push(value.map_err(|e| refuse(&e.to_string()))?);
    }
    Ok(values)
}
