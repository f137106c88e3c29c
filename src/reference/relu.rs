//! Twin of ReLU: `y = max(x, 0)`.

use super::{Real, zip_map};

/// `x` to `y`, any shape.
pub fn forward<T: Real>(x: &[T]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(x.into().max(0.0))).collect()
}

/// `x` and `dy` to `dx`; the slope at 0 is 0.
pub fn backward<T: Real>(x: &[T], dy: &[T]) -> Vec<T> {
    zip_map("relu", x, dy, |x, dy| if x > 0.0 { dy } else { 0.0 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(forward(&[-2f32, 0.0, 3.0]), [0.0, 0.0, 3.0]);
        assert_eq!(backward(&[-2f32, 0.0, 3.0], &[5.0, 6.0, 7.0]), [0.0, 0.0, 7.0]);
    }
}
