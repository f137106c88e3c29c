//! Twin of SiLU: `y = x * sigmoid(x)`.

use super::{Real, zip_map};

/// `1 / (1 + exp(-x))`.
fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// SiLU of one value.
pub fn value(x: f64) -> f64 {
    x * sigmoid(x)
}

/// Derivative of SiLU at `x`: `s * (1 + x * (1 - s))`, `s = sigmoid(x)`.
pub fn slope(x: f64) -> f64 {
    let s = sigmoid(x);
    s * (1.0 + x * (1.0 - s))
}

/// `x` to `y`, any shape.
pub fn forward<T: Real>(x: &[T]) -> Vec<T> {
    x.iter().map(|&x| T::from_f64(value(x.into()))).collect()
}

/// `x` and `dy` to `dx`.
pub fn backward<T: Real>(x: &[T], dy: &[T]) -> Vec<T> {
    zip_map("silu", x, dy, |x, dy| dy * slope(x))
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, max_abs_error, test_values};
    use super::*;

    #[test]
    fn known_values() {
        let e = std::f64::consts::E;
        let y = forward(&[0f64, 1.0, -1.0]);
        assert!(max_abs_error(&y, &[0.0, e / (e + 1.0), -1.0 / (e + 1.0)]) < 1e-15);
        assert_eq!(slope(0.0), 0.5);
        // Saturated ends are finite: the exponential overflows on the left.
        assert_eq!(forward(&[-1000f32, 1000.0]), [0.0, 1000.0]);
        assert_eq!(backward(&[-1000f32, 1000.0], &[3.0, 3.0]), [0.0, 3.0]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let x: Vec<f64> = test_values("x", 221).iter().map(|v: &f64| v * 6.0).collect();
        let dy: Vec<f64> = test_values("dy", 221);
        assert!(gradient_error(|x| dot(&forward(x), &dy), &x, &backward(&x, &dy)) < 1e-5);
    }
}
