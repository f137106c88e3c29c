//! A folder of images: the walk, the classes and the one-time verification.
//!
//! Every file is fully decoded once at opening, on all cores. That makes the
//! length, the labels and the list of skipped files final before training
//! starts, and fills the cache on the way.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed};

use super::decode::{Pixels, decode_file};
use super::set::{DataOptions, Dataset, Store, UNLABELLED};
use crate::{Error, Result};

/// What is remembered of a decoded file.
struct Seen {
    width: usize,
    height: usize,
    channels: usize,
    /// The image, fitted, if the cache had room.
    kept: Option<Pixels>,
}

/// Opens `root`; see [`Dataset::open`] for the rules.
pub(super) fn open(
    root: &Path,
    opts: &DataOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Result<Dataset> {
    let found = list_images(root)?;
    if found.is_empty() {
        return Err(Error::Data(format!("{}: no .png, .jpg or .jpeg images", root.display())));
    }
    let outcomes = verify(&found, opts, progress);

    let (mut paths, mut seen, mut skipped) = (Vec::new(), Vec::new(), Vec::new());
    for (path, outcome) in found.into_iter().zip(outcomes) {
        match outcome {
            Some(Ok(image)) => {
                paths.push(path);
                seen.push(image);
            }
            Some(Err(reason)) => skipped.push((path, reason)),
            // Not reached by the threads: the sizes had disagreed before.
            None => {}
        }
    }
    if let (true, Some((path, reason))) = (paths.is_empty(), skipped.first()) {
        return Err(Error::Data(format!(
            "{}: none of the {} images can be read (the first, {}: {reason})",
            root.display(),
            skipped.len(),
            path.display()
        )));
    }
    let size = match opts.image_size {
        Some(size) => size,
        None => common_size(&paths, &seen)?,
    };
    let all_grey = seen.iter().all(|s| s.channels == 1);
    let (classes, labels) = classify(root, &paths);
    Ok(Dataset {
        size,
        channels: opts.channels.unwrap_or(if all_grey { 1 } else { 3 }),
        resized: opts.image_size.is_some(),
        classes,
        labels,
        store: Store::Files { paths, cache: seen.into_iter().map(|s| s.kept).collect() },
        skipped,
    })
}

/// All image files below `root`, in sorted order, folders descended into where
/// their names sort. Links are followed, each folder once.
fn list_images(root: &Path) -> Result<Vec<PathBuf>> {
    let (mut images, mut visited) = (Vec::new(), HashSet::new());
    walk(root, &mut visited, &mut images)?;
    Ok(images)
}

fn walk(folder: &Path, visited: &mut HashSet<PathBuf>, images: &mut Vec<PathBuf>) -> Result<()> {
    let fail = |e| Error::io("read", folder, e);
    if !visited.insert(folder.canonicalize().map_err(fail)?) {
        return Ok(());
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        names.push(entry.map_err(fail)?.file_name());
    }
    names.sort();
    for name in names {
        if name.to_string_lossy().starts_with('.') {
            continue;
        }
        let path = folder.join(&name);
        if path.is_dir() {
            walk(&path, visited, images)?;
        } else if has_image_extension(&path) && (path.is_file() || !path.exists()) {
            // A dangling link is listed too: verification names it as skipped.
            images.push(path);
        }
    }
    Ok(())
}

fn has_image_extension(path: &Path) -> bool {
    let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
    matches!(extension.as_str(), "png" | "jpg" | "jpeg")
}

/// Decodes every file once, on all cores. A `None` was not looked at because
/// images of different sizes had already been met where one size is needed.
fn verify(
    paths: &[PathBuf],
    opts: &DataOptions,
    progress: &(dyn Fn(usize, usize) + Sync),
) -> Vec<Option<std::result::Result<Seen, String>>> {
    let (next, done, used) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicU64::new(0));
    let (stop, first_size) = (AtomicBool::new(false), OnceLock::new());
    let work = || {
        let mut results = Vec::new();
        while !stop.load(Relaxed) {
            let i = next.fetch_add(1, Relaxed);
            let Some(path) = paths.get(i) else { break };
            let outcome = decode_file(path).map(|pixels| look_at(pixels, opts, &used));
            if let (None, Ok(seen)) = (opts.image_size, &outcome) {
                let size = (seen.width, seen.height);
                if size.0 != size.1 || *first_size.get_or_init(|| size) != size {
                    stop.store(true, Relaxed);
                }
            }
            results.push((i, outcome));
            progress(done.fetch_add(1, Relaxed) + 1, paths.len());
        }
        results
    };
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get()).min(paths.len());
    let mut outcomes: Vec<_> = paths.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let handles: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        for handle in handles {
            // A panic can only come from the caller's progress function.
            let results = handle.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            for (i, outcome) in results {
                outcomes[i] = Some(outcome);
            }
        }
    });
    outcomes
}

/// Fits one decoded image and keeps it if the budget has room.
fn look_at(pixels: Pixels, opts: &DataOptions, used: &AtomicU64) -> Seen {
    let (width, height, channels) = (pixels.width, pixels.height, pixels.channels);
    // Without a size or a channel count to fit to, it is kept as it is.
    let wanted = opts.channels.unwrap_or(channels);
    let fit_to = opts.image_size.filter(|_| !opts.random_crop);
    let side = |s: usize| fit_to.unwrap_or(s);
    let bytes = (side(width) * side(height) * wanted.min(channels)) as u64;
    let has_room = used.fetch_add(bytes, Relaxed).saturating_add(bytes) <= opts.cache_bytes;
    let kept = has_room.then(|| match fit_to {
        Some(size) => pixels.fit(size, wanted),
        None if wanted == 1 => pixels.with_channels(1),
        None => pixels,
    });
    Seen { width, height, channels, kept }
}

/// The one size of all images, or an error naming two that disagree.
fn common_size(paths: &[PathBuf], seen: &[Seen]) -> Result<usize> {
    let describe = |i: usize| {
        let (path, s): (&PathBuf, &Seen) = (&paths[i], &seen[i]);
        format!("{} is {}x{}", path.display(), s.width, s.height)
    };
    let advice = "give --image-size to resize and crop";
    if let Some(i) = seen.iter().position(|s| s.width != s.height) {
        return Err(Error::Data(format!("{}, not square: {advice}", describe(i))));
    }
    if let Some(i) = seen.iter().position(|s| s.width != seen[0].width) {
        let (a, b) = (describe(0), describe(i));
        return Err(Error::Data(format!("images differ in size ({a}, {b}): {advice}")));
    }
    Ok(seen[0].width)
}

/// Sorted class names and each image's index into them.
fn classify(root: &Path, paths: &[PathBuf]) -> (Vec<String>, Vec<u32>) {
    let by_folder: Option<Vec<String>> = paths.iter().map(|p| subfolder(root, p)).collect();
    let names = by_folder.unwrap_or_else(|| paths.iter().map(|p| prefix(p)).collect());
    let mut classes = names.clone();
    classes.sort();
    classes.dedup();
    // Every name is in `classes`, so the search always succeeds.
    let label = |name| classes.binary_search(name).unwrap_or_else(|at| at) as u32;
    let labels = names.iter().map(label).collect();
    (classes, labels)
}

/// Name of the folder directly below `root` that `path` lies in, if any.
fn subfolder(root: &Path, path: &Path) -> Option<String> {
    let mut parts = path.strip_prefix(root).ok()?.components();
    let first = parts.next()?.as_os_str().to_string_lossy().into_owned();
    parts.next().map(|_| first)
}

/// File name before its first underscore.
fn prefix(path: &Path) -> String {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    match stem.split_once('_') {
        Some((prefix, _)) if !prefix.is_empty() => prefix.to_owned(),
        _ => UNLABELLED.to_owned(),
    }
}
