//! Twin of the variational bound: each image's term in bits per dimension, by
//! the formulas of Ho et al. (2020) and Nichol and Dhariwal (2021) as they stand.
//!
//! An image's coefficients are `[first, sqrt(1/abar), sqrt(1/abar - 1), coef1, coef2,
//! 1/s, a, b]`: `first` is non-zero at t = 0, `s` the posterior's standard deviation,
//! and the model's log variance is `2 ln s + a + b*v` with the variance channel `v`.

use super::{Real, expect_len, narrow};
use std::f64::consts::{LN_2, PI};

const OP: &str = "vlb";

/// Coefficients of an image.
pub const COEFS: usize = 8;

/// Sizes and choices of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VlbShape {
    /// Images.
    pub n: usize,
    /// Pixels of an image.
    pub hw: usize,
    /// Channels of an image.
    pub c: usize,
    /// Whether `out` has `c` further channels for the variance.
    pub learned: bool,
    /// Whether the model predicts `x0` rather than the noise.
    pub predicts_x0: bool,
    /// Whether the predicted `x0` is clamped to [-1, 1].
    pub clip: bool,
}

/// Everything one element's term depends on.
struct Element {
    coefs: [f64; COEFS],
    out: f64,
    v: f64,
    x0: f64,
    x_t: f64,
}

/// A term in nats and its derivatives by `out` and `v`.
struct Term {
    nats: f64,
    by_out: f64,
    by_v: f64,
}

impl VlbShape {
    fn check<T>(&self, out: &[T], x0: &[T], x_t: &[T], coefs: &[T]) {
        let len = self.n * self.hw * self.c;
        expect_len(OP, "out", out, if self.learned { 2 * len } else { len });
        expect_len(OP, "x0", x0, len);
        expect_len(OP, "x_t", x_t, len);
        expect_len(OP, "coefs", coefs, self.n * COEFS);
    }

    /// Elements that an image's mean runs over.
    fn count(&self) -> f64 {
        (self.hw * self.c) as f64
    }

    /// Where element `i` of the images lies in `out`.
    fn at(&self, i: usize) -> usize {
        if self.learned { i / self.c * 2 * self.c + i % self.c } else { i }
    }

    fn element<T: Real>(&self, i: usize, out: &[T], x0: &[T], x_t: &[T], coefs: &[T]) -> Element {
        let image = i / (self.hw * self.c);
        let at = self.at(i);
        Element {
            coefs: std::array::from_fn(|k| coefs[image * COEFS + k].into()),
            out: out[at].into(),
            v: if self.learned { out[at + self.c].into() } else { 0.0 },
            x0: x0[i].into(),
            x_t: x_t[i].into(),
        }
    }

    /// The predicted clean image and its derivative by `out`.
    fn predicted(&self, e: &Element) -> (f64, f64) {
        let [_, recip, recipm1, ..] = e.coefs;
        let (px0, slope) = match self.predicts_x0 {
            true => (e.out, 1.0),
            false => (recip * e.x_t - recipm1 * e.out, -recipm1),
        };
        if self.clip && px0.abs() > 1.0 { (px0.signum(), 0.0) } else { (px0, slope) }
    }

    fn term(&self, e: &Element) -> Term {
        let [first, _, _, coef1, coef2, inverse, offset, slope] = e.coefs;
        let (px0, px0_by_out) = self.predicted(e);
        let posterior = -2.0 * inverse.ln();
        let log_variance = posterior + offset + slope * e.v;
        let mean = coef1 * px0 + coef2 * e.x_t;
        let (nats, by_mean, by_log_variance) = if first != 0.0 {
            let (log_p, by_mean, by_log_scale) = log_likelihood(e.x0, mean, 0.5 * log_variance);
            (-log_p, -by_mean, -0.5 * by_log_scale)
        } else {
            normal_kl(coef1 * e.x0 + coef2 * e.x_t, posterior, mean, log_variance)
        };
        let by_out = by_mean * coef1 * px0_by_out;
        Term { nats, by_out, by_v: by_log_variance * slope }
    }
}

/// KL of the normal distribution 1 from 2, and its derivatives by the mean and
/// the log variance of 2.
fn normal_kl(mean1: f64, log_variance1: f64, mean2: f64, log_variance2: f64) -> (f64, f64, f64) {
    let ratio = (log_variance1 - log_variance2).exp();
    let square = (mean1 - mean2).powi(2) * (-log_variance2).exp();
    (
        0.5 * (-1.0 + log_variance2 - log_variance1 + ratio + square),
        (mean2 - mean1) * (-log_variance2).exp(),
        0.5 * (1.0 - ratio - square),
    )
}

/// The approximated cumulative distribution of a standard normal, and its slope.
fn cdf(u: f64) -> (f64, f64) {
    let scale = (2.0 / PI).sqrt();
    let tanh = (scale * (u + 0.044715 * u.powi(3))).tanh();
    let slope = 0.5 * (1.0 - tanh * tanh) * scale * (1.0 + 3.0 * 0.044715 * u * u);
    (0.5 * (1.0 + tanh), slope)
}

/// Log probability of the level `x` of 256 in [-1, 1], and its derivatives by
/// the mean and the logarithm of the standard deviation.
fn log_likelihood(x: f64, mean: f64, log_scale: f64) -> (f64, f64, f64) {
    let inverse = (-log_scale).exp();
    let (plus, minus) = (inverse * (x - mean + 1.0 / 255.0), inverse * (x - mean - 1.0 / 255.0));
    let ((cdf_plus, slope_plus), (cdf_minus, slope_minus)) = (cdf(plus), cdf(minus));
    let (p, slope_plus, slope_minus) = if x < -0.999 {
        (cdf_plus, slope_plus, 0.0)
    } else if x > 0.999 {
        (1.0 - cdf_minus, 0.0, slope_minus)
    } else {
        (cdf_plus - cdf_minus, slope_plus, slope_minus)
    };
    if p < 1e-12 {
        return (1e-12f64.ln(), 0.0, 0.0);
    }
    let by_mean = -inverse * (slope_plus - slope_minus) / p;
    let by_log_scale = -(slope_plus * plus - slope_minus * minus) / p;
    (p.ln(), by_mean, by_log_scale)
}

/// `out[n,hw,c or 2c]`, `x0` and `x_t[n,hw,c]`, `coefs[n,8]` to the bits per
/// dimension `[n]`.
pub fn forward<T: Real>(s: &VlbShape, out: &[T], x0: &[T], x_t: &[T], coefs: &[T]) -> Vec<T> {
    s.check(out, x0, x_t, coefs);
    let mut bits = vec![0f64; s.n];
    for i in 0..x0.len() {
        let nats = s.term(&s.element(i, out, x0, x_t, coefs)).nats;
        bits[i / (s.hw * s.c)] += nats / (LN_2 * s.count());
    }
    narrow(&bits)
}

/// Gradient by `out` for `dy[n]`; zero in the image channels without `mean_gradient`.
pub fn backward<T: Real>(
    s: &VlbShape,
    [out, x0, x_t, coefs, dy]: [&[T]; 5],
    mean_gradient: bool,
) -> Vec<T> {
    s.check(out, x0, x_t, coefs);
    expect_len(OP, "dy", dy, s.n);
    let mut dout = vec![0f64; out.len()];
    for i in 0..x0.len() {
        let term = s.term(&s.element(i, out, x0, x_t, coefs));
        let factor = dy[i / (s.hw * s.c)].into() / (LN_2 * s.count());
        if mean_gradient {
            dout[s.at(i)] = factor * term.by_out;
        }
        if s.learned {
            dout[s.at(i) + s.c] = factor * term.by_v;
        }
    }
    narrow(&dout)
}

/// As [`forward`] with `noise[n,hw,c]` to `[n,3]`: the bits per dimension and the
/// mean squared errors of the predicted image and of the noise.
pub fn likelihood_terms<T: Real>(s: &VlbShape, [out, x0, x_t, noise, coefs]: [&[T]; 5]) -> Vec<T> {
    s.check(out, x0, x_t, coefs);
    expect_len(OP, "noise", noise, x0.len());
    let mut terms = vec![0f64; s.n * 3];
    for (i, &z) in noise.iter().enumerate() {
        let e = s.element(i, out, x0, x_t, coefs);
        let [_, recip, recipm1, ..] = e.coefs;
        let px0 = s.predicted(&e).0;
        let eps = (recip * e.x_t - px0) / recipm1;
        let of_image = i / (s.hw * s.c) * 3;
        terms[of_image] += s.term(&e).nats / LN_2 / s.count();
        terms[of_image + 1] += (px0 - e.x0).powi(2) / s.count();
        terms[of_image + 2] += (eps - z.into()).powi(2) / s.count();
    }
    narrow(&terms)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;
    use crate::diffusion::{Tables, VarType};

    fn shape(learned: bool) -> VlbShape {
        VlbShape { n: 3, hw: 35, c: 3, learned, predicts_x0: false, clip: false }
    }

    /// Coefficients of steps `t`, all of them with wide variances.
    fn coefs(t: [usize; 3], var_type: VarType) -> Vec<f64> {
        let tables = Tables::new(&[0.3, 0.4, 0.5, 0.6]).unwrap();
        t.iter().flat_map(|t| tables.vlb_coefs(*t, var_type)).map(f64::from).collect()
    }

    #[test]
    fn kl_by_hand() {
        // Equal variances 1/4: (0.5 * 0.25)^2 * 4 / 2 nats.
        let s = VlbShape { n: 1, hw: 1, c: 1, learned: false, predicts_x0: true, clip: false };
        let coefs = [0f64, 2.0, 1.5, 0.25, 0.75, 2.0, 0.0, 0.0];
        let bits = forward(&s, &[0.5], &[1.0], &[7.0], &coefs)[0];
        assert!((bits - 0.03125 / LN_2).abs() < 1e-14, "{bits}");
        // Four times the variance and the same mean: (ln 4 - 1 + 1/4) / 2.
        let coefs = [0f64, 2.0, 1.5, 0.25, 0.75, 2.0, 4f64.ln(), 0.0];
        let bits = forward(&s, &[1.0], &[1.0], &[7.0], &coefs)[0];
        assert!((bits - 0.5 * (4f64.ln() - 0.75) / LN_2).abs() < 1e-14, "{bits}");
    }

    #[test]
    fn levels_are_a_distribution() {
        let s = VlbShape { n: 1, hw: 1, c: 1, learned: false, predicts_x0: true, clip: false };
        let coefs = [1f64, 1.0, 0.1, 1.0, 0.0, 5.0, 0.0, 0.0];
        let bits = |k: usize, out| {
            let level = (2.0 * k as f64 - 255.0) / 255.0;
            forward(&s, &[out], &[level], &[0.0], &coefs)[0]
        };
        for out in [-1.1, 0.3, 0.9] {
            let total: f64 = (0..256).map(|k| (-bits(k, out)).exp2()).sum();
            assert!((total - 1.0).abs() < 1e-9, "{total}");
        }
        // A level far from the mean keeps the least probability there is.
        assert_eq!(bits(0, 30.0), -1e-12f64.log2());
    }

    #[test]
    fn gradients_match_finite_differences() {
        for var_type in [VarType::FixedLarge, VarType::Learned, VarType::LearnedRange] {
            for (predicts_x0, clip) in [(false, false), (true, false), (false, true)] {
                let s = VlbShape { predicts_x0, clip, ..shape(var_type.is_learned()) };
                let len = s.n * s.hw * s.c;
                let coefs = coefs([0, 1, 3], var_type);
                // Near enough for probabilities far above the rounding errors
                // of cumulative ones.
                let half = |name, len| -> Vec<f64> {
                    test_values::<f64>(name, len).iter().map(|v| 0.5 * v).collect()
                };
                let (x0, x_t) = (half("x0", len), half("x_t", len));
                let out = half("out", if s.learned { 2 * len } else { len });
                let dy = [0.7, -1.3, 2.0];
                let dout = backward(&s, [&out, &x0, &x_t, &coefs, &dy], true);
                let loss = |v: &[f64]| dot(&forward(&s, v, &x0, &x_t, &coefs), &dy);
                let error = gradient_error(loss, &out, &dout);
                assert!(error < 1e-5, "{var_type:?} {predicts_x0} {clip}: {error}");
            }
        }
    }

    #[test]
    fn likelihood_terms_by_hand() {
        let s = VlbShape { n: 1, hw: 2, c: 1, learned: false, predicts_x0: true, clip: true };
        let coefs = [0f64, 2.0, 0.5, 0.25, 0.75, 2.0, 0.0, 0.0];
        // px0 = (1, 0.5), eps = (2 x_t - px0) / 0.5 = (-2, 1).
        let (out, x0, x_t, noise) = ([3.0, 0.5], [0.0, 0.5], [0.0, 0.5], [-1.0, 1.0]);
        let terms = likelihood_terms(&s, [&out, &x0, &x_t, &noise, &coefs]);
        assert_eq!(terms[1..], [0.5, 0.5]);
        assert_eq!(terms[0], forward(&s, &out, &x0, &x_t, &coefs)[0]);
    }
}
