//! CPU twin of `ops::ema`.

use super::{Real, narrow, widen};

/// Moves `average` towards `weights` by the share `rate`, in float64.
pub fn ema<T: Real>(weights: &[T], average: &[T], rate: f64) -> Vec<T> {
    let moved: Vec<f64> =
        widen(average).iter().zip(widen(weights)).map(|(a, w)| a + rate * (w - a)).collect();
    narrow(&moved)
}
