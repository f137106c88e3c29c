//! Batches prepared on threads.

use crate::support::*;
use demist::data::{Augment, Batch, DataOptions, DataOrder, Dataset, Loader, LoaderOptions};
use std::sync::Arc;
use tempfile::TempDir;

fn faces() -> Arc<Dataset> {
    Arc::new(open(&shipped("faces16_test.png")))
}

fn take(data: &Arc<Dataset>, options: LoaderOptions, batches: usize) -> Vec<Batch> {
    let mut loader = Loader::new(data.clone(), options).unwrap();
    (0..batches).map(|_| loader.next().unwrap()).collect()
}

#[test]
fn the_loader_delivers_the_stream_for_any_number_of_workers() {
    let data = faces();
    // 30 batches of 96 go past the end of the first epoch of 2000.
    let options = LoaderOptions { batch_size: 96, seed: 7, flip: true, ..Default::default() };
    let mut sampler = DataOrder::new(data.len(), 7).unwrap();
    let expected: Vec<Batch> = (0..30u64)
        .map(|b| {
            let mut images = vec![0.0; 96 * data.image_len()];
            let mut labels = Vec::new();
            for (k, out) in (b * 96..).zip(images.chunks_exact_mut(data.image_len())) {
                let i = sampler.index(k);
                data.write_floats(i, Augment { flip: sampler.flip(k), crop: None }, out).unwrap();
                labels.push(data.label(i));
            }
            Batch { images, labels, start: b * 96 }
        })
        .collect();
    for workers in [0, 1, 2, 3, 7] {
        let got = take(&data, LoaderOptions { workers, ..options.clone() }, 30);
        assert!(got == expected, "{workers} workers");
    }
}

#[test]
fn resuming_by_the_counter_equals_never_having_stopped() {
    let data = faces();
    let options = LoaderOptions { batch_size: 64, seed: 1, flip: true, ..Default::default() };
    let whole = take(&data, options.clone(), 40);
    let resumed = take(&data, LoaderOptions { start: 25 * 64, workers: 3, ..options.clone() }, 15);
    assert!(resumed == whole[25..]);
    // Another batch size sees the same images.
    let halves = take(&data, LoaderOptions { batch_size: 32, ..options.clone() }, 80);
    assert!(halves.iter().flat_map(|b| &b.labels).eq(whole.iter().flat_map(|b| &b.labels)));
    let unflipped = take(&data, LoaderOptions { flip: false, ..options }, 1);
    assert_eq!(unflipped[0].labels, whole[0].labels);
    assert!(unflipped[0].images != whole[0].images);
}

#[test]
fn a_batch_may_be_larger_than_the_set() {
    let dir = TempDir::new().unwrap();
    save(dir.path(), "a_1.png", rgb(4, 4, 1));
    save(dir.path(), "b_1.png", rgb(4, 4, 2));
    let options = LoaderOptions { batch_size: 6, ..Default::default() };
    let batch = take(&Arc::new(open(dir.path())), options, 1).remove(0);
    assert_eq!(batch.images.len(), 6 * 48);
    assert_eq!(batch.labels.iter().sum::<u32>(), 3, "each epoch holds both: {:?}", batch.labels);
}

#[test]
fn dropping_the_loader_joins_its_threads() {
    let data = faces();
    for workers in [1, 4] {
        for taken in [0, 1, 5] {
            let options = LoaderOptions { batch_size: 256, workers, ..Default::default() };
            assert_eq!(take(&data, options, taken).len(), taken);
            // The workers held their own references.
            assert_eq!(Arc::strong_count(&data), 1);
        }
    }
}

#[test]
fn errors_of_workers_come_out_of_next() {
    let dir = TempDir::new().unwrap();
    let path = save(dir.path(), "a_1.png", rgb(4, 4, 1));
    let opts = DataOptions { cache_bytes: 0, ..DataOptions::default() };
    let data = Arc::new(Dataset::open(dir.path(), &opts).unwrap());
    save(dir.path(), "a_1.png", rgb(5, 5, 1));
    let resized = data.image(0).unwrap_err().to_string();
    assert!(resized.contains("5x5 now, was 4x4"), "{resized}");
    std::fs::remove_file(&path).unwrap();
    let options = LoaderOptions { batch_size: 2, workers: 2, ..Default::default() };
    let mut loader = Loader::new(data.clone(), options).unwrap();
    assert!(loader.next().unwrap_err().to_string().contains("a_1.png"));
    assert!(loader.next().unwrap_err().to_string().contains("stopped"));

    let faces = faces();
    let make = |batch_size, start| {
        Loader::new(faces.clone(), LoaderOptions { batch_size, start, ..Default::default() })
    };
    assert!(make(0, 0).is_err());
    assert!(make(usize::MAX, 0).is_err());
    assert!(make(usize::MAX / 16384, 0).unwrap().next().is_err());
    assert!(make(8, u64::MAX - 4).unwrap().next().is_err());
}
