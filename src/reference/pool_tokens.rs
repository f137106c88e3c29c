//! Twins of the ends of an attention pool: the tokens that it attends over,
//! and the one that it returns.

use super::mean_pool::{self, MeanPoolShape};
use super::{Real, expect_len, narrow};

const OP: &str = "pool_tokens";

/// Sizes: samples, positions (without the mean's token) and channels.
pub type PoolTokensShape = MeanPoolShape;

/// `x[n,hw,c]` and `positional[1+hw,c]` to `y[n,1+hw,c]`: the mean, then all
/// positions, each plus its embedding.
pub fn forward<T: Real>(shape: &PoolTokensShape, x: &[T], positional: &[T]) -> Vec<T> {
    let PoolTokensShape { n, hw, c } = *shape;
    expect_len(OP, "positional", positional, (1 + hw) * c);
    let means = mean_pool::forward(shape, x);
    let mut y = Vec::with_capacity(n * (1 + hw) * c);
    for (mean, image) in means.chunks_exact(c).zip(x.chunks_exact(hw * c)) {
        let tokens = mean.iter().chain(image).zip(positional);
        y.extend(tokens.map(|(&v, &e)| T::from_f64(v.into() + e.into())));
    }
    y
}

/// `dy[n,1+hw,c]` to `(dx[n,hw,c], dpositional[1+hw,c])`.
pub fn backward<T: Real>(shape: &PoolTokensShape, dy: &[T]) -> (Vec<T>, Vec<T>) {
    let PoolTokensShape { n, hw, c } = *shape;
    expect_len(OP, "dy", dy, n * (1 + hw) * c);
    let mut dpositional = vec![0f64; (1 + hw) * c];
    let mut dx = Vec::with_capacity(n * hw * c);
    for image in dy.chunks_exact((1 + hw) * c) {
        for (sum, &dy) in dpositional.iter_mut().zip(image) {
            *sum += dy.into();
        }
        let mean = |channel: usize| image[channel].into() / hw as f64;
        let tokens = image[c..].iter().enumerate();
        dx.extend(tokens.map(|(i, &dy)| T::from_f64(dy.into() + mean(i % c))));
    }
    (dx, narrow(&dpositional))
}

/// `x[n,tokens,c]` to `y[n,c]`, the first token.
pub fn first_forward<T: Real>(n: usize, c: usize, x: &[T]) -> Vec<T> {
    x.chunks_exact(x.len() / n).flat_map(|image| image[..c].to_vec()).collect()
}

/// `dy[n,c]` to `dx[n,tokens,c]`: zero but for the first token.
pub fn first_backward<T: Real>(n: usize, tokens: usize, dy: &[T]) -> Vec<T> {
    let c = dy.len() / n;
    let image = |dy: &[T]| {
        let mut dx = dy.to_vec();
        dx.resize(tokens * c, T::from_f64(0.0));
        dx
    };
    dy.chunks_exact(c).flat_map(image).collect()
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = PoolTokensShape { n: 1, hw: 2, c: 2 };
        let y = forward(&s, &[1f32, 10.0, 3.0, 30.0], &[0.5, 0.25, 100.0, 200.0, 1000.0, 2000.0]);
        assert_eq!(y, [2.5, 20.25, 101.0, 210.0, 1003.0, 2030.0]);
        assert_eq!(first_forward(1, 2, &y), [2.5, 20.25]);
        assert_eq!(first_backward(1, 3, &[7f32, 8.0]), [7.0, 8.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let s = PoolTokensShape { n: 3, hw: 5 * 7, c: 33 };
        let x: Vec<f64> = test_values("x", s.n * s.hw * s.c);
        let positional: Vec<f64> = test_values("positional", (1 + s.hw) * s.c);
        let dy: Vec<f64> = test_values("dy", s.n * (1 + s.hw) * s.c);
        let (dx, dpositional) = backward(&s, &dy);
        let error = gradient_error(|v| dot(&forward(&s, v, &positional), &dy), &x, &dx);
        assert!(error < 1e-5, "x: {error}");
        let f = |v: &[f64]| dot(&forward(&s, &x, v), &dy);
        let error = gradient_error(f, &positional, &dpositional);
        assert!(error < 1e-5, "positional: {error}");
        let dy = &dy[..s.n * s.c];
        let dx = first_backward(s.n, s.hw, dy);
        let error = gradient_error(|v| dot(&first_forward(s.n, s.c, v), dy), &x, &dx);
        assert!(error < 1e-5, "first: {error}");
    }
}
