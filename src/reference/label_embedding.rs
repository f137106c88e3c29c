//! Twin of the class-label embedding: row `labels[i]` of a table for sample `i`.

use super::{Real, expect_len, narrow};

const OP: &str = "label_embedding";

/// Sizes of a label embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LabelEmbeddingShape {
    /// Samples.
    pub n: usize,
    /// Rows of the table.
    pub classes: usize,
    /// Width of a row.
    pub dim: usize,
}

impl LabelEmbeddingShape {
    fn row(&self, label: u32) -> std::ops::Range<usize> {
        let label = label as usize;
        assert!(label < self.classes, "{OP}: label {label} of {} classes", self.classes);
        label * self.dim..(label + 1) * self.dim
    }
}

/// `table[classes,dim]` and `labels[n]` to `y[n,dim]`.
pub fn forward<T: Real>(shape: &LabelEmbeddingShape, table: &[T], labels: &[u32]) -> Vec<T> {
    expect_len(OP, "table", table, shape.classes * shape.dim);
    expect_len(OP, "labels", labels, shape.n);
    labels.iter().flat_map(|&label| &table[shape.row(label)]).copied().collect()
}

/// `labels[n]` and `dy[n,dim]` to `dtable[classes,dim]`; samples of the same class
/// add up, classes that do not occur get zero.
pub fn backward<T: Real>(shape: &LabelEmbeddingShape, labels: &[u32], dy: &[T]) -> Vec<T> {
    expect_len(OP, "labels", labels, shape.n);
    expect_len(OP, "dy", dy, shape.n * shape.dim);
    let mut dtable = vec![0f64; shape.classes * shape.dim];
    for (&label, dy) in labels.iter().zip(dy.chunks_exact(shape.dim)) {
        for (sum, &dy) in dtable[shape.row(label)].iter_mut().zip(dy) {
            *sum += dy.into();
        }
    }
    narrow(&dtable)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = LabelEmbeddingShape { n: 3, classes: 4, dim: 2 };
        let table: Vec<f32> = (0..8).map(|v| v as f32).collect();
        let labels = [3, 0, 3];
        assert_eq!(forward(&s, &table, &labels), [6.0, 7.0, 0.0, 1.0, 6.0, 7.0]);
        let dy = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(backward(&s, &labels, &dy), [3.0, 4.0, 0.0, 0.0, 0.0, 0.0, 6.0, 8.0]);
    }

    #[test]
    #[should_panic(expected = "label 4 of 4 classes")]
    fn labels_are_in_range() {
        let s = LabelEmbeddingShape { n: 1, classes: 4, dim: 1 };
        forward(&s, &[0f32; 4], &[4]);
    }

    #[test]
    fn gradient_matches_finite_differences() {
        let s = LabelEmbeddingShape { n: 5, classes: 7, dim: 33 };
        let labels = [2, 6, 2, 0, 2];
        let table: Vec<f64> = test_values("table", 7 * 33);
        let dy: Vec<f64> = test_values("dy", 5 * 33);
        let dtable = backward(&s, &labels, &dy);
        assert!(gradient_error(|v| dot(&forward(&s, v, &labels), &dy), &table, &dtable) < 1e-5);
    }
}
