//! Twin of the AdamW step (Loshchilov and Hutter, "Decoupled Weight Decay
//! Regularization", 2019, in PyTorch's order of operations) and of the EMA update.

use super::{Real, expect_len};

const OP: &str = "adamw";

/// Settings of one step. All in f64: `1 - beta2` from a beta rounded to f32 would
/// be off by 1e-5 of itself, so a kernel is best given the difference.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamwParams {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the root of the second moment.
    pub eps: f64,
    /// Decoupled weight decay; a step first shrinks parameters by `1 - lr*weight_decay`.
    pub weight_decay: f64,
    /// Number of this step, counted from 1 (bias corrections).
    pub step: u64,
    /// Multiplies the gradient first: gradient clipping times the inverse loss scale.
    pub grad_scale: f64,
}

/// One step in place on parameters `p`, moments `m` and `v`, with gradients `grad`;
/// all of one length.
pub fn step<T: Real>(params: &AdamwParams, p: &mut [T], m: &mut [T], v: &mut [T], grad: &[T]) {
    let AdamwParams { lr, beta1, beta2, eps, weight_decay, step, grad_scale } = *params;
    expect_len(OP, "m", m, p.len());
    expect_len(OP, "v", v, p.len());
    expect_len(OP, "grad", grad, p.len());
    let correction1 = 1.0 - beta1.powf(step as f64);
    let correction2 = 1.0 - beta2.powf(step as f64);
    for (((p, m), v), &grad) in p.iter_mut().zip(m).zip(v).zip(grad) {
        let g = grad.into() * grad_scale;
        let first = beta1 * (*m).into() + (1.0 - beta1) * g;
        let second = beta2 * (*v).into() + (1.0 - beta2) * g * g;
        let decayed = (*p).into() * (1.0 - lr * weight_decay);
        let denominator = second.sqrt() / correction2.sqrt() + eps;
        *p = T::from_f64(decayed - lr / correction1 * first / denominator);
        *m = T::from_f64(first);
        *v = T::from_f64(second);
    }
}

/// Exponential moving average in place: `ema = ema*rate + p*(1-rate)`.
pub fn ema_update<T: Real>(ema: &mut [T], p: &[T], rate: f64) {
    expect_len(OP, "ema", ema, p.len());
    for (ema, &p) in ema.iter_mut().zip(p) {
        *ema = T::from_f64((*ema).into() * rate + p.into() * (1.0 - rate));
    }
}

#[cfg(test)]
mod tests {
    use super::super::max_abs_error;
    use super::*;

    const PARAMS: AdamwParams = AdamwParams {
        lr: 0.1,
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        step: 1,
        grad_scale: 1.0,
    };

    #[test]
    fn first_step_is_the_sign_of_the_gradient() {
        let (mut p, mut m, mut v) = ([1f64, 1.0, 1.0], [0f64; 3], [0f64; 3]);
        step(&PARAMS, &mut p, &mut m, &mut v, &[3.0, -0.002, 0.0]);
        assert!(max_abs_error(&p, &[0.9, 1.1, 1.0]) < 1e-6, "{p:?}");
        assert!(max_abs_error(&m, &[0.3, -0.0002, 0.0]) < 1e-15);
        assert!(max_abs_error(&v, &[0.009, 4e-9, 0.0]) < 1e-15);
    }

    #[test]
    fn second_step_by_hand() {
        let params = AdamwParams { beta1: 0.5, beta2: 0.75, eps: 0.25, step: 2, ..PARAMS };
        // m = 0.5*2 + 0.5*4 = 3; v = 0.75*8 + 0.25*16 = 10; corrections 0.75, 0.4375.
        let (mut p, mut m, mut v) = ([1f64], [2f64], [8f64]);
        step(&params, &mut p, &mut m, &mut v, &[4.0]);
        assert_eq!((m, v), ([3.0], [10.0]));
        let want = 1.0 - 0.1 * (3.0 / 0.75) / ((10.0f64 / 0.4375).sqrt() + 0.25);
        assert!((p[0] - want).abs() < 1e-15);
    }

    #[test]
    fn decay_is_decoupled_and_the_gradient_is_scaled() {
        let params = AdamwParams { weight_decay: 0.5, ..PARAMS };
        let (mut p, mut m, mut v) = ([2f64], [0f64], [0f64]);
        step(&params, &mut p, &mut m, &mut v, &[0.0]);
        assert_eq!((p, m, v), ([1.9], [0.0], [0.0]));
        let scaled = AdamwParams { grad_scale: 0.25, ..params };
        let (mut a, mut b) = (([2f64], [1f64], [1f64]), ([2f64], [1f64], [1f64]));
        step(&scaled, &mut a.0, &mut a.1, &mut a.2, &[8.0]);
        step(&params, &mut b.0, &mut b.1, &mut b.2, &[2.0]);
        assert_eq!(a, b);
    }

    #[test]
    fn ema_moves_by_its_rate() {
        let mut ema = [1f32, -2.0];
        ema_update(&mut ema, &[3.0, 2.0], 0.75);
        assert_eq!(ema, [1.5, -1.0]);
    }
}
