//! Images as floats.

use crate::support::*;
use demist::data::Augment;
use image::RgbImage;
use tempfile::TempDir;

#[test]
fn floats_span_minus_one_to_one_and_flip_mirrors_columns() {
    let dir = TempDir::new().unwrap();
    let image = RgbImage::from_raw(2, 2, vec![0, 255, 51, 1, 2, 3, 4, 5, 6, 7, 8, 9]).unwrap();
    save(dir.path(), "a_1.png", image);
    let data = open(dir.path());
    let mut plain = vec![0.0; data.image_len()];
    data.write_floats(0, Augment::default(), &mut plain).unwrap();
    assert_eq!(plain[..3], [-1.0, 1.0, 51.0 / 127.5 - 1.0]);
    let mut flipped = plain.clone();
    data.write_floats(0, Augment { flip: true, crop: None }, &mut flipped).unwrap();
    let pixel = |v: &[f32], p: usize| v[p * 3..p * 3 + 3].to_vec();
    for (p, mirrored) in [1, 0, 3, 2].into_iter().enumerate() {
        assert_eq!(pixel(&flipped, p), pixel(&plain, mirrored));
    }
    assert!(data.write_floats(0, Augment::default(), &mut [0.0; 5]).is_err());
}
