//! Images given on the command line: an .npz archive of samples, a folder or
//! atlas, or a single picture.

use super::open_data;
use demist::checkpoint::NetworkInfo;
use demist::data::{Augment, first_names, open_image};
use demist::output::image::from_u8;
use demist::output::npz::load_samples;
use demist::{Error, Result};
use std::path::Path;

/// Images of one size with their labels, where they have any.
pub struct GivenImages {
    /// [count, size, size, channels] in [-1, 1].
    pub pixels: Vec<f32>,
    pub count: usize,
    /// Class number of each, in the network's classes, or why there are none.
    pub labels: std::result::Result<Vec<u32>, String>,
}

impl GivenImages {
    /// The labels that `info`'s network needs, none if it is unconditional;
    /// `remedy` follows the error.
    pub fn needed_labels(&self, path: &Path, info: &NetworkInfo, remedy: &str) -> Result<Vec<u32>> {
        match (&self.labels, info.model.classes()) {
            (_, None) => Ok(Vec::new()),
            (Ok(labels), Some(_)) => Ok(labels.clone()),
            (Err(why), Some(classes)) => Err(Error::file(
                path,
                format!("{why}, and the network needs one of {classes} classes{remedy}"),
            )),
        }
    }
}

/// Reads up to `most` images of `size` and `channels`; labels are translated to
/// the classes of `info` by name (by number if it has no names), or are numbers in
/// an archive.
pub fn read_images(
    path: &Path,
    size: usize,
    channels: usize,
    most: usize,
    info: &NetworkInfo,
) -> Result<GivenImages> {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or("").to_lowercase();
    if extension == "npz" {
        return from_archive(path, size, channels, most, info);
    }
    let single = path.is_file()
        && matches!(extension.as_str(), "png" | "jpg" | "jpeg")
        && !path.with_extension("json").is_file();
    if single {
        let pixels = from_u8(&open_image(path, size, channels)?);
        let labels = Err("a picture does not tell its class".into());
        return Ok(GivenImages { pixels, count: 1, labels });
    }
    let set = open_data(path, Some(size), Some(channels), false)?;
    let count = set.len().min(most);
    let mut pixels = vec![0.0; count * set.image_len()];
    // Spread over the set, which may be sorted by class.
    let at = |i: usize| (i as u64 * set.len() as u64 / count as u64) as usize;
    for (i, out) in pixels.chunks_mut(set.image_len()).enumerate() {
        set.write_floats(at(i), Augment::default(), out)?;
    }
    let known = &info.data.classes;
    let by_number = known.is_empty() && info.model.classes() == Some(set.classes().len());
    let class = |i: usize| {
        let label = set.label(at(i));
        let name = &set.classes()[label as usize];
        match known.iter().position(|c| c == name) {
            Some(class) => Ok(class as u32),
            None if by_number => Ok(label),
            None if known.is_empty() => {
                Err(format!("has {} classes, the network's have no names", set.classes().len()))
            }
            None => Err(format!(
                "has images of the class {name}, which the network does not know ({})",
                first_names(known)
            )),
        }
    };
    let labels = match set.classes().len() {
        1 if !known.contains(&set.classes()[0]) => Err("does not tell classes".into()),
        _ => (0..count).map(class).collect(),
    };
    Ok(GivenImages { pixels, count, labels })
}

fn from_archive(
    path: &Path,
    size: usize,
    channels: usize,
    most: usize,
    info: &NetworkInfo,
) -> Result<GivenImages> {
    let samples = load_samples(path)?;
    let [n, h, w, c] = samples.shape;
    if [h, w, c] != [size, size, channels] {
        return Err(Error::file(
            path,
            format!("holds images of {w}x{h}x{c}, {size}x{size}x{channels} are needed"),
        ));
    }
    if n == 0 {
        return Err(Error::file(path, "holds no images"));
    }
    let count = n.min(most);
    let pixels = from_u8(&samples.images[..count * h * w * c]);
    let classes = info.model.classes();
    let label = |l: &i64| {
        let fits = classes.is_none_or(|n| (0..n as i64).contains(l));
        if fits && *l >= 0 {
            Ok(*l as u32)
        } else {
            Err(Error::file(path, format!("label {l} is no class of the network")))
        }
    };
    let labels = match samples.labels {
        Some(labels) => Ok(labels[..count].iter().map(label).collect::<Result<_>>()?),
        None => Err("holds no labels (arr_1)".into()),
    };
    Ok(GivenImages { pixels, count, labels })
}
