//! Twin of the squared error, per sample, and of a weighted sum of it, whose
//! gradient it is.
//!
//! `mse_i = mean((pred - target)^2)` over the pixels and the first `c_used` channels
//! of sample `i` (a model with learned variance predicts more than the target has);
//! `total = sum_i weights_i * mse_i`, where the caller's weights hold the importance
//! weights, the division by the batch size and any loss scale.

use super::{Real, expect_len, narrow};

const OP: &str = "loss";

/// Sizes of a loss.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LossShape {
    /// Samples.
    pub n: usize,
    /// Pixels of a sample.
    pub hw: usize,
    /// Channels of `pred`.
    pub c_pred: usize,
    /// Channels of `target`, compared with the first ones of `pred`.
    pub c_used: usize,
}

/// Results of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct LossOutput<T> {
    /// Mean squared error of each sample, `[n]`.
    pub mse: Vec<T>,
    /// `sum_i weights_i * mse_i`.
    pub total: T,
}

impl LossShape {
    fn check<T>(&self, pred: &[T], target: &[T], weights: &[T]) {
        let Self { n, hw, c_pred, c_used } = *self;
        assert!(c_used <= c_pred, "{OP}: {c_used} target channels, only {c_pred} predicted");
        expect_len(OP, "pred", pred, n * hw * c_pred);
        expect_len(OP, "target", target, n * hw * c_used);
        expect_len(OP, "weights", weights, n);
    }

    /// Elements that one sample's mean runs over.
    fn count(&self) -> f64 {
        (self.hw * self.c_used) as f64
    }

    /// `(sample, index in pred, index in target)` of every compared element.
    fn elements(&self) -> impl Iterator<Item = (usize, usize, usize)> {
        let Self { n, hw, c_pred, c_used } = *self;
        (0..n * hw).flat_map(move |pixel| {
            (0..c_used).map(move |c| (pixel / hw, pixel * c_pred + c, pixel * c_used + c))
        })
    }
}

/// `pred[n,hw,c_pred]`, `target[n,hw,c_used]`, `weights[n]` to the losses.
pub fn forward<T: Real>(
    shape: &LossShape,
    pred: &[T],
    target: &[T],
    weights: &[T],
) -> LossOutput<T> {
    shape.check(pred, target, weights);
    let mut mse = vec![0f64; shape.n];
    for (sample, p, t) in shape.elements() {
        let difference = pred[p].into() - target[t].into();
        mse[sample] += difference * difference;
    }
    mse.iter_mut().for_each(|sum| *sum /= shape.count());
    LossOutput { total: T::from_f64(super::dot(weights, &mse)), mse: narrow(&mse) }
}

/// Gradient of `total`: `dpred = weights_i * 2 (pred - target) / (hw * c_used)`,
/// zero in the channels the loss does not look at. `[n,hw,c_pred]`.
pub fn backward<T: Real>(shape: &LossShape, pred: &[T], target: &[T], weights: &[T]) -> Vec<T> {
    shape.check(pred, target, weights);
    let mut dpred = vec![0f64; pred.len()];
    for (sample, p, t) in shape.elements() {
        let difference = pred[p].into() - target[t].into();
        dpred[p] = weights[sample].into() * 2.0 * difference / shape.count();
    }
    narrow(&dpred)
}

#[cfg(test)]
mod tests {
    use super::super::{gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = LossShape { n: 2, hw: 2, c_pred: 2, c_used: 1 };
        let pred = [1f32, 99.0, 2.0, 99.0, 3.0, 99.0, 4.0, 99.0];
        let target = [0f32, 0.0, 3.0, 2.0];
        let weights = [0.5f32, 10.0];
        let loss = forward(&s, &pred, &target, &weights);
        assert_eq!(loss.mse, [2.5, 2.0]);
        assert_eq!(loss.total, 21.25);
        let dpred = backward(&s, &pred, &target, &weights);
        assert_eq!(dpred, [0.5, 0.0, 1.0, 0.0, 0.0, 0.0, 20.0, 0.0]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        for c_pred in [3, 6] {
            let s = LossShape { n: 3, hw: 17 * 13, c_pred, c_used: 3 };
            let pred: Vec<f64> = test_values("pred", 3 * s.hw * c_pred);
            let target: Vec<f64> = test_values("target", 3 * s.hw * 3);
            let weights: Vec<f64> = test_values("weights", 3);
            let dpred = backward(&s, &pred, &target, &weights);
            let error = gradient_error(|v| forward(&s, v, &target, &weights).total, &pred, &dpred);
            assert!(error < 1e-5, "{c_pred}: {error}");
        }
    }
}
