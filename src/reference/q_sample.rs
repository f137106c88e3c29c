//! Twin of the forward diffusion: `x_t = sqrt(abar_t)*x0 + sqrt(1 - abar_t)*noise`
//! (Ho et al., 2020, eq. 4), each sample at its own timestep.

use super::{Real, expect_len};

const OP: &str = "q_sample";

/// `x0` and `noise`, both `[n,..]`, with `sqrt_abar[n]` and
/// `sqrt_one_minus_abar[n]`, to `x_t`.
pub fn forward<T: Real>(
    x0: &[T],
    noise: &[T],
    sqrt_abar: &[T],
    sqrt_one_minus_abar: &[T],
) -> Vec<T> {
    let n = sqrt_abar.len();
    expect_len(OP, "noise", noise, x0.len());
    expect_len(OP, "sqrt_one_minus_abar", sqrt_one_minus_abar, n);
    assert!(n > 0 && x0.len().is_multiple_of(n), "{OP}: {} elements in {n} samples", x0.len());
    let sample = x0.len() / n;
    x0.iter()
        .zip(noise)
        .enumerate()
        .map(|(i, (&x0, &noise))| {
            let (signal, spread) = (sqrt_abar[i / sample], sqrt_one_minus_abar[i / sample]);
            T::from_f64(signal.into() * x0.into() + spread.into() * noise.into())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_sample_has_its_own_coefficients() {
        let x_t =
            forward(&[1f32, 2.0, 3.0, 4.0], &[10.0, 20.0, 30.0, 40.0], &[1.0, 0.5], &[0.0, 0.25]);
        assert_eq!(x_t, [1.0, 2.0, 9.0, 12.0]);
    }

    #[test]
    #[should_panic(expected = "q_sample: 3 elements in 2 samples")]
    fn samples_are_equal_in_size() {
        forward(&[0f32; 3], &[0.0; 3], &[1.0; 2], &[0.0; 2]);
    }
}
