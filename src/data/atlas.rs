//! An atlas: one PNG holding equal square cells, with a JSON file beside it.
//!
//! The JSON is `{"size": S, "cols": C, "channels": 1|3, "classes": [{"name":
//! .., "count": ..}, ..]}`. Cell i lies at ((i mod C) * S, (i div C) * S); the
//! classes are runs of consecutive cells.

use std::path::Path;

use serde::Deserialize;

use super::decode::{Pixels, decode};
use super::set::{DataOptions, Dataset};
use crate::{Error, Result};

/// The JSON beside the image.
#[derive(Deserialize)]
struct Layout {
    size: usize,
    cols: usize,
    channels: usize,
    classes: Vec<Run>,
}

/// `count` consecutive cells of one class.
#[derive(Deserialize)]
struct Run {
    name: String,
    count: usize,
}

/// Opens the atlas `png` described by `json`.
#[cfg(feature = "files")]
pub(super) fn open(png: &Path, json: &Path, opts: &DataOptions) -> Result<Dataset> {
    let text = std::fs::read_to_string(json).map_err(|e| Error::io("read", json, e))?;
    let layout = parse(&text, json)?;
    if !png.is_file() {
        return Err(Error::file(json, format!("the atlas {} is not beside it", png.display())));
    }
    cut_cells(super::decode::decode_file(png), &layout, png, json, opts)
}

impl Dataset {
    /// An atlas from the bytes of its PNG file and the text of its JSON file (see
    /// [`Dataset::open`]); `name` stands for both in messages.
    ///
    /// # Errors
    /// [`Error::File`] if they are not sound or do not fit each other.
    pub fn from_atlas(
        name: impl AsRef<Path>,
        png: &[u8],
        json: &str,
        opts: &DataOptions,
    ) -> Result<Dataset> {
        opts.check()?;
        let (png_name, json_name) =
            (name.as_ref().with_extension("png"), name.as_ref().with_extension("json"));
        cut_cells(decode(png), &parse(json, &json_name)?, &png_name, &json_name, opts)
    }
}

fn parse(text: &str, json: &Path) -> Result<Layout> {
    serde_json::from_str(text)
        .map_err(|e| Error::file(json, format!("not an atlas description: {e}")))
}

/// Cuts the cells out of the decoded image.
fn cut_cells(
    image: std::result::Result<Pixels, String>,
    layout: &Layout,
    png: &Path,
    json: &Path,
    opts: &DataOptions,
) -> Result<Dataset> {
    let image = image.map_err(|reason| Error::file(png, reason))?;
    let count = check(layout, json, png, image.width, image.height)?;

    let image = image.with_channels(layout.channels);
    let (size, cell_row) = (layout.size, layout.size * layout.channels);
    let mut pixels = Vec::with_capacity(count * size * cell_row);
    for cell in 0..count {
        let (x, y) = (cell % layout.cols * size, cell / layout.cols * size);
        for row in y..y + size {
            let start = (row * image.width + x) * layout.channels;
            pixels.extend_from_slice(&image.data[start..start + cell_row]);
        }
    }
    let (classes, labels) = labels(layout, json)?;
    Dataset::from_flat(png, opts, pixels, [size, size, layout.channels], classes, labels)
}

/// Checks that the image holds all cells; returns their number.
fn check(layout: &Layout, json: &Path, png: &Path, width: usize, height: usize) -> Result<usize> {
    let Layout { size, cols, channels, .. } = *layout;
    if size == 0 || cols == 0 || !matches!(channels, 1 | 3) {
        return Err(Error::file(
            json,
            format!(
                "size {size}, cols {cols}, channels {channels}: need size and cols of at least 1, channels 1 or 3"
            ),
        ));
    }
    let count = layout.classes.iter().try_fold(0usize, |sum, run| sum.checked_add(run.count));
    // Columns in use: a single short row need not be as wide as `cols`.
    let needed = count.and_then(|n| {
        let (across, down) = (cols.min(n), n.div_ceil(cols));
        Some((n, across.checked_mul(size)?, down.checked_mul(size)?))
    });
    match needed {
        Some((count, w, h)) if w <= width && h <= height => Ok(count),
        Some((count, w, h)) => Err(Error::file(
            png,
            format!(
                "is {width}x{height}, its json's {count} cells of {size}x{size} in {cols} columns need {w}x{h}"
            ),
        )),
        None => Err(Error::file(json, "its counts and sizes are impossibly large")),
    }
}

/// Sorted class names and the label of each cell.
fn labels(layout: &Layout, json: &Path) -> Result<(Vec<String>, Vec<u32>)> {
    let mut classes: Vec<String> = layout.classes.iter().map(|run| run.name.clone()).collect();
    classes.sort();
    if let Some(twice) = classes.windows(2).find(|pair| pair[0] == pair[1]) {
        return Err(Error::file(json, format!("class {:?} is listed twice", twice[0])));
    }
    let mut labels = Vec::new();
    for run in &layout.classes {
        // Every name is in `classes`, so the search always succeeds.
        let label = classes.binary_search(&run.name).unwrap_or_else(|at| at) as u32;
        labels.extend(std::iter::repeat_n(label, run.count));
    }
    Ok((classes, labels))
}
