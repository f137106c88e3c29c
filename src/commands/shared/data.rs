//! Opening data sets.

use demist::Result;
use demist::data::{DataOptions, Dataset, first_names};
use std::path::Path;

/// Opens a data set, reporting what had to be skipped.
pub fn open_data(
    path: &Path,
    image_size: Option<usize>,
    channels: Option<usize>,
    random_crop: bool,
) -> Result<Dataset> {
    let options = DataOptions { image_size, channels, random_crop, ..Default::default() };
    let dataset = Dataset::open(path, &options)?;
    for (file, reason) in dataset.skipped() {
        note!("skipped {}: {reason}", file.display());
    }
    let skipped = match dataset.skipped().len() {
        0 => String::new(),
        n => format!(", {n} skipped"),
    };
    note!(
        "data: {} images of {}x{}x{} in {} classes ({}){skipped}",
        dataset.len(),
        dataset.size(),
        dataset.size(),
        dataset.channels(),
        dataset.classes().len(),
        first_names(dataset.classes()),
    );
    Ok(dataset)
}
