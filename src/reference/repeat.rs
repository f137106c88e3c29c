//! Twin of the repetition of a batch: `times` copies one after the other.

use super::{Real, narrow};

/// `x` to its copies.
pub fn forward<T: Real>(x: &[T], times: usize) -> Vec<T> {
    x.repeat(times)
}

/// `dy` of all copies to `dx`, their sum.
pub fn backward<T: Real>(dy: &[T], times: usize) -> Vec<T> {
    let len = dy.len() / times;
    let sum = |i: usize| (0..times).map(|k| dy[k * len + i].into()).sum();
    narrow(&(0..len).map(sum).collect::<Vec<f64>>())
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(forward(&[1f32, 2.0], 3), [1.0, 2.0, 1.0, 2.0, 1.0, 2.0]);
        assert_eq!(backward(&[1f32, 2.0, 10.0, 20.0], 2), [11.0, 22.0]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let x: Vec<f64> = test_values("x", 55);
        let dy: Vec<f64> = test_values("dy", 165);
        let dx = backward(&dy, 3);
        assert!(gradient_error(|v| dot(&forward(v, 3), &dy), &x, &dx) < 1e-5);
    }
}
