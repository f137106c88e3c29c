//! IDX files, the layout of MNIST and Fashion-MNIST: `*-images-idx3-ubyte[.gz]`
//! with `*-labels-idx1-ubyte[.gz]` beside it.
//!
//! An images file is magic 2051, count, rows, columns (big-endian u32), then the
//! grey bytes; a labels file is magic 2049, count, then one byte each
//! (<http://yann.lecun.com/exdb/mnist/>).

#[cfg(feature = "files")]
use std::fs::File;
#[cfg(feature = "files")]
use std::io::BufReader;
use std::io::{BufRead, Read};
use std::path::Path;
#[cfg(feature = "files")]
use std::path::PathBuf;

use flate2::read::GzDecoder;

use super::set::{DataOptions, Dataset};
use crate::{Error, Result};

const IMAGES_MAGIC: u32 = 0x0803;
const LABELS_MAGIC: u32 = 0x0801;

/// The training images file inside `folder`, if there is one.
#[cfg(feature = "files")]
pub(super) fn images_in(folder: &Path) -> Result<Option<PathBuf>> {
    let fail = |e| Error::io("read", folder, e);
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        let path = entry.map_err(fail)?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with("train-images") && name.contains("idx3") && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found.into_iter().next())
}

/// Opens an images file together with its labels file.
#[cfg(feature = "files")]
pub(super) fn open(images: &Path, opts: &DataOptions) -> Result<Dataset> {
    let open = |path: &Path| match File::open(path) {
        Ok(file) => Ok(BufReader::new(file)),
        Err(e) => Err(Error::io("read", path, e)),
    };
    let read_images = read::<3>(&mut open(images)?, images, IMAGES_MAGIC, "images")?;
    let labels = labels_beside(images)?;
    let read_labels = read::<1>(&mut open(&labels)?, &labels, LABELS_MAGIC, "labels")?;
    assemble(images, read_images, &labels, read_labels, opts)
}

impl Dataset {
    /// A set in IDX files (see [`Dataset::open`]) from the bytes of both, gzipped or not;
    /// `name` stands for them in messages.
    ///
    /// # Errors
    /// [`Error::File`] if they are not sound or do not fit each other.
    pub fn from_idx(
        name: impl AsRef<Path>,
        images: &[u8],
        labels: &[u8],
        opts: &DataOptions,
    ) -> Result<Dataset> {
        opts.check()?;
        let (name, mut images, mut labels) = (name.as_ref(), images, labels);
        let images = read::<3>(&mut images, name, IMAGES_MAGIC, "images")?;
        let labels = read::<1>(&mut labels, name, LABELS_MAGIC, "labels")?;
        assemble(name, images, name, labels, opts)
    }
}

/// The extents of an IDX file and its bytes.
type Idx<const N: usize> = ([usize; N], Vec<u8>);

fn assemble(
    images: &Path,
    ([count, height, width], pixels): Idx<3>,
    labels_path: &Path,
    ([label_count], labels): Idx<1>,
    opts: &DataOptions,
) -> Result<Dataset> {
    if label_count != count {
        return Err(Error::file(
            labels_path,
            format!("has {label_count} labels for {count} images"),
        ));
    }
    if width == 0 || height == 0 {
        return Err(Error::file(images, format!("images are {width}x{height}")));
    }
    // Labels are the class numbers themselves, so the names keep their order.
    let highest = labels.iter().copied().max().unwrap_or(0);
    let classes = (0..=highest.max(9)).map(|class| class.to_string()).collect();
    let labels = labels.into_iter().map(u32::from).collect();
    Dataset::from_flat(images, opts, pixels, [width, height, 1], classes, labels)
}

/// The labels file that belongs to an images file, by name.
#[cfg(feature = "files")]
fn labels_beside(images: &Path) -> Result<PathBuf> {
    let name = images.file_name().unwrap_or_default().to_string_lossy();
    let labels = images.with_file_name(name.replace("images", "labels").replace("idx3", "idx1"));
    if labels.is_file() {
        return Ok(labels);
    }
    Err(Error::file(images, format!("its labels file {} is missing", labels.display())))
}

/// Reads an IDX file of unsigned bytes with `N` dimensions. Memory grows with
/// the bytes that are really there, whatever the header promises.
fn read<const N: usize>(
    file: &mut impl BufRead,
    path: &Path,
    magic: u32,
    what: &str,
) -> Result<Idx<N>> {
    let start = file.fill_buf().map_err(|e| Error::io("read", path, e))?;
    let mut reader: Box<dyn Read> = if start.starts_with(&[0x1F, 0x8B]) {
        Box::new(GzDecoder::new(file))
    } else {
        Box::new(file)
    };
    let broken = |e: std::io::Error| Error::file(path, format!("truncated or damaged: {e}"));
    let mut word = || {
        let mut bytes = [0; 4];
        reader.read_exact(&mut bytes).map_err(broken)?;
        Ok(u32::from_be_bytes(bytes))
    };
    let found = word()?;
    if found != magic {
        return Err(Error::file(
            path,
            format!("not IDX {what}: magic number {found:#010x}, expected {magic:#010x}"),
        ));
    }
    let mut shape = [0u32; N];
    for extent in &mut shape {
        *extent = word()?;
    }
    let promised = shape
        .iter()
        .try_fold(1u64, |product, &n| product.checked_mul(n.into()))
        .filter(|&n| n < u64::MAX)
        .ok_or_else(|| Error::file(path, format!("impossible shape {shape:?}")))?;
    let mut data = Vec::new();
    // One byte more than promised also makes the gzip checksum be verified.
    reader.take(promised + 1).read_to_end(&mut data).map_err(broken)?;
    if data.len() as u64 != promised {
        let held = if data.len() as u64 > promised { "more" } else { "fewer" };
        return Err(Error::file(
            path,
            format!("its header promises {promised} bytes of {what} ({shape:?}), it holds {held}"),
        ));
    }
    Ok((shape.map(|n| n as usize), data))
}
