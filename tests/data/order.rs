//! The order in which training sees the images.

use demist::data::DataOrder;
use std::collections::HashSet;

#[test]
fn every_epoch_is_another_permutation() {
    let mut order = DataOrder::new(50, 3).unwrap();
    let mut epochs = HashSet::new();
    for epoch in 0..20 {
        let epoch_order: Vec<usize> =
            (epoch * 50..epoch * 50 + 50).map(|k| order.index(k)).collect();
        let mut sorted = epoch_order.clone();
        sorted.sort();
        assert_eq!(sorted, (0..50).collect::<Vec<_>>());
        assert!(epochs.insert(epoch_order), "epoch {epoch} repeats an earlier one");
    }
    // Position 0 is not drawn towards any image.
    let mut firsts = [0u32; 10];
    let mut ten = DataOrder::new(10, 1).unwrap();
    (0..10_000).for_each(|epoch| firsts[ten.index(epoch * 10)] += 1);
    assert!(firsts.iter().all(|&n| (800..1200).contains(&n)), "{firsts:?}");
}

#[test]
fn the_stream_is_a_function_of_seed_and_index() {
    let mut forward = DataOrder::new(37, 9).unwrap();
    let stream: Vec<_> = (0..200).map(|k| (forward.index(k), forward.flip(k))).collect();
    let mut backward = DataOrder::new(37, 9).unwrap();
    for k in (0..200).rev() {
        assert_eq!((backward.index(k), backward.flip(k)), stream[k as usize], "{k}");
    }
    let mut other = DataOrder::new(37, 10).unwrap();
    let different = (0..200).filter(|&k| other.index(k) != stream[k as usize].0).count();
    assert!(different > 150, "{different}");
    assert!(backward.index(u64::MAX) < 37);
    assert!(DataOrder::new(0, 1).is_err());
}

#[test]
fn the_order_never_changes_between_versions() {
    // A saved run resumes by its counter alone, so the order is a format. The
    // values come from an independent implementation.
    let mut order = DataOrder::new(10, 42).unwrap();
    let images: Vec<_> = (0..20).map(|k| order.index(k)).collect();
    let flips: Vec<_> = (0..12).map(|k| u8::from(order.flip(k))).collect();
    assert_eq!(images, [6, 2, 5, 1, 7, 3, 4, 8, 0, 9, 2, 6, 5, 3, 9, 4, 8, 7, 1, 0]);
    assert_eq!(flips, [0, 0, 1, 0, 1, 0, 1, 1, 1, 1, 0, 1]);
}

#[test]
fn flips_are_fair_and_independent_of_the_order() {
    let order = DataOrder::new(1000, 4).unwrap();
    let heads = (0..10_000).filter(|&k| order.flip(k)).count();
    assert!((4700..5300).contains(&heads), "{heads}");
    let alternations = (0..10_000).filter(|&k| order.flip(k) != order.flip(k + 1)).count();
    assert!((4700..5300).contains(&alternations), "{alternations}");
}
