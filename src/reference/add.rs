//! Twin of the residual addition, `y = a + b` with equal shapes.

use super::{Real, zip_map};

/// `a` and `b` to `y`.
pub fn forward<T: Real>(a: &[T], b: &[T]) -> Vec<T> {
    zip_map("add", a, b, |a, b| a + b)
}

/// `dy` to `(da, db)`, both of them `dy`.
pub fn backward<T: Real>(dy: &[T]) -> (Vec<T>, Vec<T>) {
    (dy.to_vec(), dy.to_vec())
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(forward(&[1f32, 2.0], &[0.5, -2.0]), [1.5, 0.0]);
    }

    #[test]
    #[should_panic(expected = "add: second operand has 2 elements, its shape needs 1")]
    fn shapes_are_equal() {
        forward(&[1f32], &[1.0, 2.0]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let [a, b, dy]: [Vec<f64>; 3] = ["a", "b", "dy"].map(|name| test_values(name, 3 * 221));
        let (da, db) = backward(&dy);
        assert!(gradient_error(|v| dot(&forward(v, &b), &dy), &a, &da) < 1e-5);
        assert!(gradient_error(|v| dot(&forward(&a, v), &dy), &b, &db) < 1e-5);
    }
}
