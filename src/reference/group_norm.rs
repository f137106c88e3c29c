//! Twin of group normalisation with its fused AdaGN modulation and SiLU.
//!
//! Each sample's channels fall into `groups` runs of `c/groups`; over a group and
//! all pixels (Wu and He, "Group Normalization", 2018, biased variance):
//! `xhat = (x - mean) * rstd`, `rstd = 1/sqrt(var + eps)`, `norm = xhat*gamma + beta`,
//! `pre = norm*(1 + scale) + shift` where `emb[n,2c]` is given (scale is its first
//! half; AdaGN of Dhariwal and Nichol, 2021), `y = SiLU(pre)` or `pre`.

use super::{Real, expect_len, narrow, silu};

const OP: &str = "group_norm";

/// Sizes and options of a group norm.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GroupNormShape {
    /// Samples.
    pub n: usize,
    /// Pixels of a sample.
    pub hw: usize,
    /// Channels, a multiple of `groups`.
    pub c: usize,
    /// Groups the channels are cut into.
    pub groups: usize,
    /// Added to the variance; 1e-5 in these networks.
    pub eps: f64,
    /// Whether SiLU follows.
    pub silu: bool,
}

/// Results of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNormOutput<T> {
    /// `[n,hw,c]`.
    pub y: Vec<T>,
    /// Group means, `[n,groups]`.
    pub mean: Vec<T>,
    /// Group `1/sqrt(var + eps)`, `[n,groups]`.
    pub rstd: Vec<T>,
}

/// Results of [`backward`].
#[derive(Clone, Debug, PartialEq)]
pub struct GroupNormGradients<T> {
    /// `[n,hw,c]`.
    pub dx: Vec<T>,
    /// `[c]`, summed over samples and pixels.
    pub dgamma: Vec<T>,
    /// `[c]`, summed over samples and pixels.
    pub dbeta: Vec<T>,
    /// `[n,2c]` (scale, then shift), summed over pixels; where `emb` was given.
    pub demb: Option<Vec<T>>,
}

/// What turns one channel's `xhat` of one sample into `pre`.
struct Modulation {
    gamma: f64,
    beta: f64,
    scale: f64,
    shift: f64,
}

impl Modulation {
    fn norm(&self, xhat: f64) -> f64 {
        xhat * self.gamma + self.beta
    }

    fn pre(&self, xhat: f64) -> f64 {
        self.norm(xhat) * (1.0 + self.scale) + self.shift
    }
}

impl GroupNormShape {
    fn channels_per_group(&self) -> usize {
        let Self { c, groups, .. } = *self;
        assert!(groups > 0 && c % groups == 0, "{OP}: {c} channels in {groups} groups");
        c / groups
    }

    /// Flat indices of a group's elements of `[n,hw,c]`, with their channel.
    fn elements(&self, n: usize, group: usize) -> impl Iterator<Item = (usize, usize)> {
        let (hw, c, width) = (self.hw, self.c, self.channels_per_group());
        (0..hw).flat_map(move |pixel| {
            (group * width..(group + 1) * width)
                .map(move |channel| ((n * hw + pixel) * c + channel, channel))
        })
    }

    /// Mean and reciprocal deviation of a group; two passes, so a large mean
    /// does not cancel the variance.
    fn statistics<T: Real>(&self, x: &[T], n: usize, group: usize) -> (f64, f64) {
        let count = (self.hw * self.channels_per_group()) as f64;
        let mean = self.elements(n, group).map(|(i, _)| x[i].into()).sum::<f64>() / count;
        let square = |i: usize| (x[i].into() - mean) * (x[i].into() - mean);
        let variance = self.elements(n, group).map(|(i, _)| square(i)).sum::<f64>() / count;
        (mean, 1.0 / (variance + self.eps).sqrt())
    }

    fn modulation<T: Real>(
        &self,
        gamma: &[T],
        beta: &[T],
        emb: Option<&[T]>,
        n: usize,
        channel: usize,
    ) -> Modulation {
        let (scale, shift) = match emb {
            Some(emb) => {
                let row = &emb[n * 2 * self.c..];
                (row[channel].into(), row[self.c + channel].into())
            }
            None => (0.0, 0.0),
        };
        Modulation { gamma: gamma[channel].into(), beta: beta[channel].into(), scale, shift }
    }

    fn check<T>(&self, x: &[T], gamma: &[T], beta: &[T], emb: Option<&[T]>) {
        expect_len(OP, "x", x, self.n * self.hw * self.c);
        expect_len(OP, "gamma", gamma, self.c);
        expect_len(OP, "beta", beta, self.c);
        if let Some(emb) = emb {
            expect_len(OP, "emb", emb, self.n * 2 * self.c);
        }
    }
}

/// `x[n,hw,c]`, `gamma[c]`, `beta[c]`, optional `emb[n,2c]` to `y` and statistics.
pub fn forward<T: Real>(
    shape: &GroupNormShape,
    x: &[T],
    gamma: &[T],
    beta: &[T],
    emb: Option<&[T]>,
) -> GroupNormOutput<T> {
    shape.check(x, gamma, beta, emb);
    let mut y = vec![T::from_f64(0.0); x.len()];
    let (mut means, mut rstds) = (Vec::new(), Vec::new());
    for n in 0..shape.n {
        for group in 0..shape.groups {
            let (mean, rstd) = shape.statistics(x, n, group);
            for (i, channel) in shape.elements(n, group) {
                let pre =
                    shape.modulation(gamma, beta, emb, n, channel).pre((x[i].into() - mean) * rstd);
                y[i] = T::from_f64(if shape.silu { silu::value(pre) } else { pre });
            }
            means.push(mean);
            rstds.push(rstd);
        }
    }
    GroupNormOutput { y, mean: narrow(&means), rstd: narrow(&rstds) }
}

/// The forward inputs and `dy[n,hw,c]` to every gradient.
///
/// With `dxhat` the gradient at `xhat` and averages over the group:
/// `dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))`.
pub fn backward<T: Real>(
    shape: &GroupNormShape,
    x: &[T],
    gamma: &[T],
    beta: &[T],
    emb: Option<&[T]>,
    dy: &[T],
) -> GroupNormGradients<T> {
    shape.check(x, gamma, beta, emb);
    expect_len(OP, "dy", dy, x.len());
    let c = shape.c;
    let mut dx = vec![0f64; x.len()];
    let (mut dgamma, mut dbeta) = (vec![0f64; c], vec![0f64; c]);
    let mut demb = vec![0f64; shape.n * 2 * c];
    let count = (shape.hw * shape.channels_per_group()) as f64;
    for n in 0..shape.n {
        for group in 0..shape.groups {
            let (mean, rstd) = shape.statistics(x, n, group);
            let (mut sum, mut sum_xhat) = (0f64, 0f64);
            for (i, channel) in shape.elements(n, group) {
                let m = shape.modulation(gamma, beta, emb, n, channel);
                let xhat = (x[i].into() - mean) * rstd;
                let slope = if shape.silu { silu::slope(m.pre(xhat)) } else { 1.0 };
                let dpre = dy[i].into() * slope;
                demb[n * 2 * c + channel] += dpre * m.norm(xhat);
                demb[n * 2 * c + c + channel] += dpre;
                let dnorm = dpre * (1.0 + m.scale);
                dgamma[channel] += dnorm * xhat;
                dbeta[channel] += dnorm;
                // Parked here until the group's averages are known.
                dx[i] = dnorm * m.gamma;
                sum += dx[i];
                sum_xhat += dx[i] * xhat;
            }
            for (i, _) in shape.elements(n, group) {
                let xhat = (x[i].into() - mean) * rstd;
                dx[i] = rstd * (dx[i] - sum / count - xhat * sum_xhat / count);
            }
        }
    }
    GroupNormGradients {
        dx: narrow(&dx),
        dgamma: narrow(&dgamma),
        dbeta: narrow(&dbeta),
        demb: emb.map(|_| narrow(&demb)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, max_abs_error, test_values};
    use super::*;

    const ODD: GroupNormShape =
        GroupNormShape { n: 3, hw: 17 * 13, c: 33, groups: 3, eps: 1e-5, silu: false };

    #[test]
    fn by_hand() {
        // Two groups of two channels. The first holds 1 3 5 7: mean 4, variance 5.
        let s = GroupNormShape { n: 1, hw: 2, c: 4, groups: 2, eps: 0.0, silu: false };
        let x = [1f64, 3.0, 2.0, 2.5, 5.0, 7.0, 3.5, 4.0];
        let gamma = [1f64, 2.0, 1.0, 1.0];
        let beta = [0f64, 1.0, 0.0, 0.0];
        let out = forward(&s, &x, &gamma, &beta, None);
        let root = 5f64.sqrt();
        // The second holds 2, 2.5, 3.5, 4: mean 3, variance 0.625.
        let r = 0.625f64.sqrt();
        let want = [
            -3.0 / root,
            1.0 - 2.0 / root,
            -1.0 / r,
            -0.5 / r,
            1.0 / root,
            1.0 + 6.0 / root,
            0.5 / r,
            1.0 / r,
        ];
        assert!(max_abs_error(&out.y, &want) < 1e-14, "{:?}", out.y);
        assert_eq!(out.mean, [4.0, 3.0]);
        assert!(max_abs_error(&out.rstd, &[1.0 / root, 1.0 / r]) < 1e-15);
    }

    #[test]
    fn modulation_scales_first_and_silu_follows() {
        let s = GroupNormShape { n: 1, hw: 2, c: 1, groups: 1, eps: 0.0, silu: false };
        let run =
            |s: &GroupNormShape| forward(s, &[-2f64, 2.0], &[1.0], &[0.5], Some(&[2.0, 10.0]));
        // xhat = -1, 1; norm = -0.5, 1.5; times 1 + 2, plus 10.
        assert_eq!(run(&s).y, [8.5, 14.5]);
        let want = [8.5 / (1.0 + (-8.5f64).exp()), 14.5 / (1.0 + (-14.5f64).exp())];
        assert!(max_abs_error(&run(&GroupNormShape { silu: true, ..s }).y, &want) < 1e-14);
    }

    #[test]
    fn eps_and_a_large_mean() {
        let s = GroupNormShape { n: 1, hw: 3, c: 1, groups: 1, eps: 1e-5, silu: false };
        let out = forward(&s, &[7f64; 3], &[3.0], &[0.25], None);
        assert_eq!(out.y, [0.25; 3]);
        assert!((out.rstd[0] - 1e5f64.sqrt()).abs() < 1e-9);
        let out = forward(&s, &[1e6f32, 1e6 + 1.0, 1e6 + 2.0], &[1.0], &[0.0], None);
        assert!((out.y[2] - 1.224_735_7).abs() < 1e-6, "{:?}", out.y);
    }

    fn check_gradients(s: &GroupNormShape, with_emb: bool) {
        let len = s.n * s.hw * s.c;
        let x: Vec<f64> = test_values("x", len);
        let gamma: Vec<f64> = test_values("gamma", s.c);
        let beta: Vec<f64> = test_values("beta", s.c);
        let emb: Vec<f64> = test_values("emb", s.n * 2 * s.c);
        let dy: Vec<f64> = test_values("dy", len);
        let run = |x: &[f64], g: &[f64], b: &[f64], e: &[f64]| {
            dot(&forward(s, x, g, b, with_emb.then_some(e)).y, &dy)
        };
        let grads = backward(s, &x, &gamma, &beta, with_emb.then_some(&emb[..]), &dy);
        let mut errors = vec![
            gradient_error(|v| run(v, &gamma, &beta, &emb), &x, &grads.dx),
            gradient_error(|v| run(&x, v, &beta, &emb), &gamma, &grads.dgamma),
            gradient_error(|v| run(&x, &gamma, v, &emb), &beta, &grads.dbeta),
        ];
        assert_eq!(grads.demb.is_some(), with_emb);
        if let Some(demb) = grads.demb {
            errors.push(gradient_error(|v| run(&x, &gamma, &beta, v), &emb, &demb));
        }
        assert!(errors.iter().all(|&e| e < 1e-5), "{s:?}: {errors:?}");
    }

    #[test]
    fn gradients_match_finite_differences() {
        for silu in [false, true] {
            for with_emb in [false, true] {
                check_gradients(&GroupNormShape { silu, ..ODD }, with_emb);
                // One token, as after the last downsampling.
                check_gradients(&GroupNormShape { silu, hw: 1, ..ODD }, with_emb);
            }
        }
        check_gradients(&GroupNormShape { groups: 1, hw: 5, n: 1, silu: true, ..ODD }, true);
    }

    #[test]
    #[should_panic(expected = "33 channels in 32 groups")]
    fn groups_divide_the_channels() {
        let s = GroupNormShape { groups: 32, ..ODD };
        forward(&s, &vec![0f32; 3 * 221 * 33], &[1.0; 33], &[0.0; 33], None);
    }
}
