//! Twin of channel concatenation, `y = [a, b]` along the last axis.

use super::{Real, expect_len};

const OP: &str = "concat";

/// Sizes of a concatenation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConcatShape {
    /// Samples.
    pub n: usize,
    /// Pixels of a sample.
    pub hw: usize,
    /// Channels of the first tensor.
    pub ca: usize,
    /// Channels of the second tensor.
    pub cb: usize,
}

/// `a[n,hw,ca]` and `b[n,hw,cb]` to `y[n,hw,ca+cb]`.
pub fn forward<T: Real>(shape: &ConcatShape, a: &[T], b: &[T]) -> Vec<T> {
    let ConcatShape { n, hw, ca, cb } = *shape;
    expect_len(OP, "a", a, n * hw * ca);
    expect_len(OP, "b", b, n * hw * cb);
    a.chunks_exact(ca).zip(b.chunks_exact(cb)).flat_map(|(a, b)| [a, b].concat()).collect()
}

/// `dy[n,hw,ca+cb]` to `(da[n,hw,ca], db[n,hw,cb])`.
pub fn backward<T: Real>(shape: &ConcatShape, dy: &[T]) -> (Vec<T>, Vec<T>) {
    let ConcatShape { n, hw, ca, cb } = *shape;
    expect_len(OP, "dy", dy, n * hw * (ca + cb));
    let pixels = || dy.chunks_exact(ca + cb);
    let da = pixels().flat_map(|pixel| &pixel[..ca]).copied().collect();
    let db = pixels().flat_map(|pixel| &pixel[ca..]).copied().collect();
    (da, db)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = ConcatShape { n: 1, hw: 2, ca: 1, cb: 2 };
        let (a, b) = ([1f32, 2.0], [3f32, 4.0, 5.0, 6.0]);
        let y = forward(&s, &a, &b);
        assert_eq!(y, [1.0, 3.0, 4.0, 2.0, 5.0, 6.0]);
        assert_eq!(backward(&s, &y), (a.to_vec(), b.to_vec()));
    }

    #[test]
    fn gradients_match_finite_differences() {
        let s = ConcatShape { n: 3, hw: 17 * 13, ca: 33, cb: 5 };
        let pixels = s.n * s.hw;
        let a: Vec<f64> = test_values("a", pixels * s.ca);
        let b: Vec<f64> = test_values("b", pixels * s.cb);
        let dy: Vec<f64> = test_values("dy", pixels * (s.ca + s.cb));
        let (da, db) = backward(&s, &dy);
        assert!(gradient_error(|v| dot(&forward(&s, v, &b), &dy), &a, &da) < 1e-5);
        assert!(gradient_error(|v| dot(&forward(&s, &a, v), &dy), &b, &db) < 1e-5);
    }
}
