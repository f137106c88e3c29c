//! Twin of the cross-entropy of class scores and of the accuracies.

use super::{Real, expect_len, narrow};

const OP: &str = "cross_entropy";

/// Results of [`forward`], each `[n]`.
#[derive(Clone, Debug, PartialEq)]
pub struct CrossEntropyOutput<T> {
    /// -log p(label).
    pub loss: Vec<T>,
    /// 1 where no score exceeds the label's.
    pub top1: Vec<T>,
    /// 1 where fewer than five do.
    pub top5: Vec<T>,
}

/// One row's logarithms of probabilities.
fn log_softmax<T: Real>(row: &[T]) -> Vec<f64> {
    let largest = row.iter().fold(f64::NEG_INFINITY, |m, &v| m.max(v.into()));
    let sum: f64 = row.iter().map(|&v| (v.into() - largest).exp()).sum();
    row.iter().map(|&v| v.into() - largest - sum.ln()).collect()
}

fn rows<'a, T: Real>(logits: &'a [T], labels: &'a [u32]) -> impl Iterator<Item = (&'a [T], usize)> {
    let k = logits.len() / labels.len();
    expect_len(OP, "logits", logits, k * labels.len());
    logits.chunks_exact(k).zip(labels).map(move |(row, &label)| {
        assert!((label as usize) < k, "{OP}: label {label} of {k} classes");
        (row, label as usize)
    })
}

/// `logits[n,k]` and `labels[n]` to the losses and accuracies.
pub fn forward<T: Real>(logits: &[T], labels: &[u32]) -> CrossEntropyOutput<T> {
    let mut out = CrossEntropyOutput { loss: vec![], top1: vec![], top5: vec![] };
    for (row, label) in rows(logits, labels) {
        out.loss.push(T::from_f64(-log_softmax(row)[label]));
        let above = row.iter().filter(|&&v| v.into() > row[label].into()).count();
        out.top1.push(T::from_f64(f64::from(u8::from(above < 1))));
        out.top5.push(T::from_f64(f64::from(u8::from(above < 5))));
    }
    out
}

/// Gradient by the logits `[n,k]` for `dy[n]` of the loss.
pub fn backward<T: Real>(logits: &[T], labels: &[u32], dy: &[T]) -> Vec<T> {
    expect_len(OP, "dy", dy, labels.len());
    let mut dlogits = Vec::new();
    for ((row, label), &dy) in rows(logits, labels).zip(dy) {
        let shares = log_softmax(row).into_iter().map(f64::exp).enumerate();
        dlogits.extend(shares.map(|(i, p)| dy.into() * (p - f64::from(u8::from(i == label)))));
    }
    narrow(&dlogits)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let logits = [0f64, 3f64.ln(), 0.0, 5.0, 5.0, 5.0];
        let out = forward(&logits, &[1, 2]);
        assert!((out.loss[0] - (5.0f64 / 3.0).ln()).abs() < 1e-15);
        assert!((out.loss[1] - 3f64.ln()).abs() < 1e-15);
        // Equal scores do not exceed each other.
        assert_eq!((out.top1, out.top5), (vec![1.0, 1.0], vec![1.0, 1.0]));
        let ranked = [9f32, 8.0, 7.0, 6.0, 5.0, 4.0];
        assert_eq!(forward(&ranked, &[1]).top1, [0.0]);
        assert_eq!(forward(&ranked, &[4]).top5, [1.0]);
        assert_eq!(forward(&ranked, &[5]).top5, [0.0]);
        let d = backward(&logits[..3], &[1], &[5.0]);
        let want = [1.0, -2.0, 1.0];
        assert!(d.iter().zip(want).all(|(d, w)| (d - w).abs() < 1e-14), "{d:?}");
    }

    #[test]
    #[should_panic(expected = "label 3 of 3 classes")]
    fn labels_are_in_range() {
        forward(&[0f32; 3], &[3]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let labels = [2, 10, 0, 4, 4];
        let logits: Vec<f64> = test_values("logits", 55);
        let dy: Vec<f64> = test_values("dy", 5);
        let dlogits = backward(&logits, &labels, &dy);
        assert!(gradient_error(|v| dot(&forward(v, &labels).loss, &dy), &logits, &dlogits) < 1e-5);
    }
}
