//! Twin of inverted dropout. Random bits come from outside (one `u32` per element,
//! from the counter-based generator), so that forward and backward agree.

use super::{Real, expect_len};

/// Whether an element with these random bits survives drop probability `p`:
/// the upper 24 bits, read as a fraction of one, are at least `p`. Exact in f32.
pub fn keeps(bits: u32, p: f32) -> bool {
    (bits >> 8) as f32 * 2f32.powi(-24) >= p
}

/// `x` and `bits` to `y`: survivors times `1/(1-p)`, zero elsewhere. `p` in [0, 1).
pub fn forward<T: Real>(x: &[T], bits: &[u32], p: f32) -> Vec<T> {
    expect_len("dropout", "bits", bits, x.len());
    let scale = 1.0 / (1.0 - f64::from(p));
    let drop = |(&x, &bits): (&T, &u32)| if keeps(bits, p) { x.into() * scale } else { 0.0 };
    x.iter().zip(bits).map(|pair| T::from_f64(drop(pair))).collect()
}

/// `dy` and the same `bits` to `dx`: the map is linear and diagonal, so it is its
/// own transpose.
pub fn backward<T: Real>(dy: &[T], bits: &[u32], p: f32) -> Vec<T> {
    forward(dy, bits, p)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn threshold_and_scale() {
        let half = 1 << 31;
        let bits = [0, half - 1, half, u32::MAX];
        assert_eq!(forward(&[1f32, 2.0, 3.0, 4.0], &bits, 0.5), [0.0, 0.0, 6.0, 8.0]);
        // Nothing is dropped at p = 0, not even all-zero bits.
        assert_eq!(forward(&[1f32, 2.0, 3.0, 4.0], &bits, 0.0), [1.0, 2.0, 3.0, 4.0]);
        assert_eq!(forward(&[3f32], &[u32::MAX], 0.25), [4.0]);
    }

    #[test]
    fn keeps_the_promised_share() {
        let values: Vec<f64> = test_values("bits", 20_000);
        let bits = values.iter().map(|v| ((v + 1.0) * 2f64.powi(31)) as u32);
        let kept = bits.filter(|&b| keeps(b, 0.1)).count() as f64 / 20_000.0;
        assert!((kept - 0.9).abs() < 0.01, "{kept}");
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let [x, dy, random]: [Vec<f64>; 3] =
            ["x", "dy", "bits"].map(|name| test_values(name, 3 * 221));
        let bits: Vec<u32> = random.iter().map(|v| ((v + 1.0) * 2f64.powi(31)) as u32).collect();
        let dx = backward(&dy, &bits, 0.3);
        assert!(dx.contains(&0.0));
        assert!(gradient_error(|v| dot(&forward(v, &bits, 0.3), &dy), &x, &dx) < 1e-5);
    }
}
