//! Twin of the running sums of a loss's terms: in all and by quarter of the schedule.

use super::{Real, expect_len};

const OP: &str = "loss_stats";

/// Adds `term[n]` times `weights[n]` into `sums`: all of them first, then those of
/// each `quartile[n]`.
pub fn forward<T: Real>(term: &[T], weights: Option<&[T]>, quartile: &[u32], sums: &mut [T; 5]) {
    expect_len(OP, "quartile", quartile, term.len());
    let mut added = [0f64; 5];
    for (i, &term) in term.iter().enumerate() {
        let weight = weights.map_or(1.0, |weights| {
            expect_len(OP, "weights", weights, quartile.len());
            weights[i].into()
        });
        let value = weight * term.into();
        added[0] += value;
        if let Some(sum) = added[1..].get_mut(quartile[i] as usize) {
            *sum += value;
        }
    }
    for (sum, added) in sums.iter_mut().zip(added) {
        *sum = T::from_f64((*sum).into() + added);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let mut sums = [10f32, 0.0, 1.0, 0.0, 0.0];
        forward(&[1.0, 2.0, 4.0, 8.0], None, &[1, 3, 1, 9], &mut sums);
        assert_eq!(sums, [25.0, 0.0, 6.0, 0.0, 2.0]);
        forward(&[1.0, 2.0], Some(&[3.0, 0.5]), &[0, 2], &mut sums);
        assert_eq!(sums, [29.0, 3.0, 6.0, 1.0, 2.0]);
    }
}
