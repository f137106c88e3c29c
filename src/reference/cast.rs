//! Twin of the conversion to half precision: the nearest half, ties to even,
//! infinite from 65520 on. The way back is exact.

use half::f16;

/// `x` rounded to half precision.
pub fn forward(x: &[f32]) -> Vec<f32> {
    x.iter().map(|v| f16::from_f32(*v).to_f32()).collect()
}

/// The gradient of a conversion to half: dy, which was half already.
pub fn backward(dy: &[f32]) -> Vec<f32> {
    dy.to_vec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_by_hand() {
        // Halves lie 2^-10 apart from 1 on: the first is a tie to even.
        let x = [1.0 + 0.5f32.powi(11), 1.0 + 3.0 * 0.5f32.powi(11), 65519.0, 65520.0, -1e30];
        let want = [1.0, 1.0 + 0.5f32.powi(9), 65504.0, f32::INFINITY, f32::NEG_INFINITY];
        assert_eq!(forward(&x), want);
        assert_eq!(backward(&x), x);
    }
}
