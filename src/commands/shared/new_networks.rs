//! What the networks that are trained have in common when they are described: the file
//! that they begin with, presets, and the places of attention.

use super::open_data;
use super::training_args::{DataArgs, RunArgs};
use demist::checkpoint::{Imported, read_any};
use demist::data::{DataOptions, Dataset};
use demist::model::{Hints, preset_names};
use demist::{Error, Result};
use std::path::Path;

/// The network to start from, if any, and the data in its size and channels.
pub fn open_both(
    run: &RunArgs,
    preset: Option<&str>,
    hints: Hints,
    data: &Path,
    d: &DataArgs,
) -> Result<(Option<Imported>, Dataset)> {
    let Some(path) = run.init.as_deref() else {
        return Ok((None, open_data(data, d.image_size, d.channels, d.random_crop)?));
    };
    let hints = Hints { image_size: d.image_size, ..hints };
    // Where neither file nor options tell the size of the images, the data does.
    let base = read_any(path, preset, &hints).or_else(|e| {
        let data = match d.image_size {
            None => Dataset::open(data, &DataOptions::default()).ok(),
            Some(_) => None,
        };
        let Some(data) = data else { return Err(e) };
        let hints = Hints { image_size: Some(data.size()), ..hints };
        read_any(path, preset, &hints).map_err(|_| e)
    })?;
    let size = d.image_size.unwrap_or(base.model.image_size());
    let channels = base.model.in_channels();
    if d.channels.is_some_and(|c| c != channels) {
        return Err(Error::file(
            path,
            format!("is for images of {channels} channels: leave out --channels"),
        ));
    }
    Ok((Some(base), open_data(data, Some(size), Some(channels), d.random_crop)?))
}

/// The presets of a kind.
pub fn preset_names_where(kind: impl Fn(&str) -> bool) -> String {
    let names: Vec<&str> = preset_names().iter().copied().filter(|name| kind(name)).collect();
    names.join(", ")
}

/// The downsampling factors of the image sizes at which blocks attend.
pub fn attention_factors(sizes: &[usize], image_size: usize, levels: usize) -> Result<Vec<usize>> {
    let factor = |s: &usize| match (*s > 0).then(|| image_size / s) {
        Some(d) if d > 0 && d.is_power_of_two() && image_size.is_multiple_of(*s) => {
            if d >> levels == 0 {
                return Ok(d);
            }
            Err(Error::Config(format!(
                "attention resolution {s} is below the smallest level of a network with {levels} levels"
            )))
        }
        _ => Err(Error::Config(format!(
            "attention resolution {s} is not the image size {image_size} halved a number of times"
        ))),
    };
    sizes.iter().map(factor).collect()
}
