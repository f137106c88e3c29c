//! Twin of channel means.

use super::{Real, expect_len, narrow};

const OP: &str = "mean_pool";

/// Sizes of one feature map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MeanPoolShape {
    /// Samples.
    pub n: usize,
    /// Pixels of a sample.
    pub hw: usize,
    /// Channels.
    pub c: usize,
}

impl MeanPoolShape {
    fn len(&self) -> usize {
        self.n * self.hw * self.c
    }
}

/// `x[n,hw,c]` to `y[n,c]`, the mean over `hw`.
pub fn forward<T: Real>(shape: &MeanPoolShape, x: &[T]) -> Vec<T> {
    expect_len(OP, "x", x, shape.len());
    let mut sums = vec![0f64; shape.n * shape.c];
    for (i, v) in x.iter().enumerate() {
        sums[i / (shape.hw * shape.c) * shape.c + i % shape.c] += (*v).into();
    }
    sums.iter_mut().for_each(|sum| *sum /= shape.hw as f64);
    narrow(&sums)
}

/// `dy[n,c]` to `dx[n,hw,c]`.
pub fn backward<T: Real>(shape: &MeanPoolShape, dy: &[T]) -> Vec<T> {
    expect_len(OP, "dy", dy, shape.n * shape.c);
    let share = |i: usize| dy[i / (shape.hw * shape.c) * shape.c + i % shape.c].into();
    (0..shape.len()).map(|i| T::from_f64(share(i) / shape.hw as f64)).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = MeanPoolShape { n: 2, hw: 2, c: 2 };
        let y = forward(&s, &[1f32, 10.0, 3.0, 30.0, -1.0, 0.0, 5.0, 4.0]);
        assert_eq!(y, [2.0, 20.0, 2.0, 2.0]);
        assert_eq!(backward(&s, &[2f32, 4.0, 6.0, 8.0]), [1.0, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let s = MeanPoolShape { n: 3, hw: 17 * 13, c: 33 };
        let x: Vec<f64> = test_values("x", s.len());
        let dy: Vec<f64> = test_values("dy", s.n * s.c);
        let error = gradient_error(|x| dot(&forward(&s, x), &dy), &x, &backward(&s, &dy));
        assert!(error < 1e-5, "{error}");
    }
}
