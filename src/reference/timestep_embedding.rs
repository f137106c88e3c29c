//! Twin of the sinusoidal timestep embedding.
//!
//! `half = dim/2`, `f_i = exp(-ln(10000) * i / half)`; a row is `[cos(t f), sin(t f)]`
//! (cosines first), with one zero appended where `dim` is odd. `t` is data and may
//! be fractional, so there is no backward.

use super::Real;

/// Longest wavelength of the embedding, over 2 pi.
pub const MAX_PERIOD: f64 = 10_000.0;

/// `t[n]` to `y[n,dim]`.
pub fn forward<T: Real>(t: &[T], dim: usize) -> Vec<T> {
    let half = dim / 2;
    let mut y = Vec::with_capacity(t.len() * dim);
    for &t in t {
        let angle = |i: usize| t.into() * (-MAX_PERIOD.ln() * i as f64 / half as f64).exp();
        y.extend((0..half).map(|i| T::from_f64(angle(i).cos())));
        y.extend((0..half).map(|i| T::from_f64(angle(i).sin())));
        if dim % 2 == 1 {
            y.push(T::from_f64(0.0));
        }
    }
    y
}

#[cfg(test)]
mod tests {
    use super::super::max_abs_error;
    use super::*;

    #[test]
    fn by_hand() {
        // half = 2: frequencies 1 and 1/100.
        let y = forward(&[0f64, 2.5], 5);
        let want = [
            [1.0, 1.0, 0.0, 0.0, 0.0],
            [2.5f64.cos(), 0.025f64.cos(), 2.5f64.sin(), 0.025f64.sin(), 0.0],
        ]
        .concat();
        assert!(max_abs_error(&y, &want) < 1e-15, "{y:?}");
    }

    #[test]
    fn narrow_widths() {
        assert_eq!(forward(&[7f32], 1), [0.0]);
        assert_eq!(forward(&[7f32], 2), [7f64.cos() as f32, 7f64.sin() as f32]);
    }
}
