//! Twin of the global gradient norm, and the factor that clips to it.

use super::{Real, dot};

/// Sum of squares of one tensor, in f64.
pub fn sum_squares<T: Real>(grad: &[T]) -> f64 {
    dot(grad, grad)
}

/// Euclidean norm over all tensors together; not finite if any element is not,
/// which is how a step with overflown gradients is recognised.
pub fn forward<T: Real>(grads: &[&[T]]) -> f64 {
    grads.iter().map(|grad| sum_squares(grad)).sum::<f64>().sqrt()
}

/// What to multiply gradients of norm `norm` by so that it is at most `max_norm`
/// (as `torch.nn.utils.clip_grad_norm_`): `min(1, max_norm / (norm + 1e-6))`.
pub fn clip_scale(norm: f64, max_norm: f64) -> f64 {
    (max_norm / (norm + 1e-6)).min(1.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_all_tensors() {
        assert_eq!(forward(&[&[1f32, -2.0][..], &[], &[4.0, 10.0]]), 11.0);
        // Squares that overflow f32.
        assert!((forward(&[&[3e30f32, 4e30][..]]) / 5e30 - 1.0).abs() < 1e-6);
        assert!(forward(&[&[1f32][..], &[f32::NAN]]).is_nan());
        assert_eq!(forward(&[&[1f32, f32::NEG_INFINITY][..]]), f64::INFINITY);
    }

    #[test]
    fn clips_only_what_is_too_long() {
        assert_eq!(clip_scale(0.5, 1.0), 1.0);
        assert_eq!(clip_scale(0.0, 1.0), 1.0);
        assert!((clip_scale(4.0, 1.0) - 0.25).abs() < 1e-6);
    }
}
