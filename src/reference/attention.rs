//! Twin of multi-head self-attention on a packed `qkv` tensor.
//!
//! Per sample and head of width `d = c/heads`: `s_ij = q_i . k_j / sqrt(d)` (the
//! same as scaling q and k by `d^-1/4` each), `p_i = softmax_j(s_ij)`,
//! `y_i = sum_j p_ij v_j`, and `lse_i = ln sum_j exp(s_ij)`, which backward
//! kernels use to rebuild `p_ij = exp(s_ij - lse_i)`.

use super::{Real, dot, expect_len, narrow};

const OP: &str = "attention";

/// How the `3c` channels of `qkv` are laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// `[head][q|k|v][d]`: heads outermost.
    Legacy,
    /// `[q|k|v][head][d]`.
    New,
}

/// Sizes of a self-attention.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AttentionShape {
    /// Samples.
    pub n: usize,
    /// Tokens.
    pub t: usize,
    /// Output channels, a multiple of `heads`; `qkv` has three times as many.
    pub c: usize,
    /// Heads.
    pub heads: usize,
    /// Channel layout of `qkv`.
    pub order: Order,
}

/// Results of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct AttentionOutput<T> {
    /// `[n,t,c]`, channel `head*d + j`.
    pub y: Vec<T>,
    /// Log-sum-exp (natural) of the scaled logits, `[n,heads,t]`.
    pub lse: Vec<T>,
}

/// Which of the three projections.
#[derive(Clone, Copy)]
enum Part {
    Q,
    K,
    V,
}

impl AttentionShape {
    /// Channels of one head.
    pub fn head_dim(&self) -> usize {
        let Self { c, heads, .. } = *self;
        assert!(heads > 0 && c % heads == 0, "{OP}: {c} channels in {heads} heads");
        c / heads
    }

    fn scale(&self) -> f64 {
        1.0 / (self.head_dim() as f64).sqrt()
    }

    /// Where token `token` of one projection of one head starts in `qkv`.
    fn qkv_start(&self, n: usize, token: usize, head: usize, part: Part) -> usize {
        let block = match self.order {
            Order::Legacy => head * 3 + part as usize,
            Order::New => part as usize * self.heads + head,
        };
        (n * self.t + token) * 3 * self.c + block * self.head_dim()
    }

    /// Copies one projection of one head out, `[t,d]`.
    fn gather<T: Real>(&self, qkv: &[T], n: usize, head: usize, part: Part) -> Vec<f64> {
        let d = self.head_dim();
        (0..self.t)
            .flat_map(|token| &qkv[self.qkv_start(n, token, head, part)..][..d])
            .map(|&v| v.into())
            .collect()
    }

    /// Writes `[t,d]` back where [`Self::gather`] read it.
    fn scatter(&self, dqkv: &mut [f64], n: usize, head: usize, part: Part, values: &[f64]) {
        let d = self.head_dim();
        for (token, row) in values.chunks_exact(d).enumerate() {
            dqkv[self.qkv_start(n, token, head, part)..][..d].copy_from_slice(row);
        }
    }

    /// Where token `token` of one head starts in `y`.
    fn y_start(&self, n: usize, token: usize, head: usize) -> usize {
        (n * self.t + token) * self.c + head * self.head_dim()
    }
}

/// Softmax over `scale * q . k_j` and its log-sum-exp; the largest logit is taken
/// out first, so that large logits do not overflow.
fn softmax(q: &[f64], k: &[f64], scale: f64) -> (Vec<f64>, f64) {
    let logits: Vec<f64> = k.chunks_exact(q.len()).map(|k| scale * dot(q, k)).collect();
    let largest = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let sum: f64 = logits.iter().map(|s| (s - largest).exp()).sum();
    let lse = largest + sum.ln();
    (logits.iter().map(|s| (s - largest).exp() / sum).collect(), lse)
}

/// Adds `factor * row` to `sums`.
fn add_scaled(sums: &mut [f64], factor: f64, row: &[f64]) {
    for (sum, value) in sums.iter_mut().zip(row) {
        *sum += factor * value;
    }
}

/// `qkv[n,t,3c]` to `y[n,t,c]` and `lse[n,heads,t]`.
pub fn forward<T: Real>(shape: &AttentionShape, qkv: &[T]) -> AttentionOutput<T> {
    let AttentionShape { n, t, c, heads, .. } = *shape;
    let (d, scale) = (shape.head_dim(), shape.scale());
    expect_len(OP, "qkv", qkv, n * t * 3 * c);
    let mut y = vec![0f64; n * t * c];
    let mut lse = Vec::with_capacity(n * heads * t);
    for sample in 0..n {
        for head in 0..heads {
            let [q, k, v] = [Part::Q, Part::K, Part::V].map(|p| shape.gather(qkv, sample, head, p));
            for (i, q) in q.chunks_exact(d).enumerate() {
                let (p, row_lse) = softmax(q, &k, scale);
                let out = &mut y[shape.y_start(sample, i, head)..][..d];
                for (p, v) in p.iter().zip(v.chunks_exact(d)) {
                    add_scaled(out, *p, v);
                }
                lse.push(row_lse);
            }
        }
    }
    AttentionOutput { y: narrow(&y), lse: narrow(&lse) }
}

/// `qkv[n,t,3c]` and `dy[n,t,c]` to `dqkv[n,t,3c]`, in the layout of `qkv`.
///
/// `dv_j = sum_i p_ij dy_i`; with `dp_ij = dy_i . v_j`,
/// `ds_ij = p_ij * (dp_ij - sum_l p_il dp_il)`; `dq_i = sum_j ds_ij k_j / sqrt(d)`,
/// `dk_j = sum_i ds_ij q_i / sqrt(d)`.
pub fn backward<T: Real>(shape: &AttentionShape, qkv: &[T], dy: &[T]) -> Vec<T> {
    let AttentionShape { n, t, c, heads, .. } = *shape;
    let (d, scale) = (shape.head_dim(), shape.scale());
    expect_len(OP, "qkv", qkv, n * t * 3 * c);
    expect_len(OP, "dy", dy, n * t * c);
    let mut dqkv = vec![0f64; qkv.len()];
    for sample in 0..n {
        for head in 0..heads {
            let [q, k, v] = [Part::Q, Part::K, Part::V].map(|p| shape.gather(qkv, sample, head, p));
            let [mut dq, mut dk, mut dv] = [(); 3].map(|()| vec![0f64; t * d]);
            for (i, q) in q.chunks_exact(d).enumerate() {
                let (p, _) = softmax(q, &k, scale);
                let dy = super::widen(&dy[shape.y_start(sample, i, head)..][..d]);
                let dp: Vec<f64> = v.chunks_exact(d).map(|v| dot(&dy, v)).collect();
                let expected = dot(&p, &dp);
                for j in 0..t {
                    let row = j * d..(j + 1) * d;
                    let ds = scale * p[j] * (dp[j] - expected);
                    add_scaled(&mut dv[row.clone()], p[j], &dy);
                    add_scaled(&mut dq[i * d..(i + 1) * d], ds, &k[row.clone()]);
                    add_scaled(&mut dk[row], ds, q);
                }
            }
            for (part, values) in [(Part::Q, dq), (Part::K, dk), (Part::V, dv)] {
                shape.scatter(&mut dqkv, sample, head, part, &values);
            }
        }
    }
    narrow(&dqkv)
}

#[cfg(test)]
mod tests {
    use super::super::{gradient_error, max_abs_error, test_values};
    use super::*;

    #[test]
    fn two_tokens_by_hand() {
        // d = 4, so the scale is 1/2. Token 0 asks for key 1 with logit ln 3.
        let s = AttentionShape { n: 1, t: 2, c: 4, heads: 1, order: Order::New };
        let q1 = 2.0 * 3f64.ln();
        let qkv = [
            [q1, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 1.0, 2.0, 3.0, 4.0],
            [0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 5.0, 6.0, 7.0, 16.0],
        ]
        .concat();
        let out = forward(&s, &qkv);
        assert!(max_abs_error(&out.y, &[4.0, 5.0, 6.0, 13.0, 3.0, 4.0, 5.0, 10.0]) < 1e-14);
        assert!(max_abs_error(&out.lse, &[4f64.ln(), 2f64.ln()]) < 1e-15);
    }

    #[test]
    fn one_token_returns_its_value() {
        for (order, want) in
            [(Order::Legacy, [5.0, 6.0, 11.0, 12.0]), (Order::New, [9.0, 10.0, 11.0, 12.0])]
        {
            let s = AttentionShape { n: 1, t: 1, c: 4, heads: 2, order };
            let qkv: Vec<f32> = (1..=12).map(|v| v as f32).collect();
            assert_eq!(forward(&s, &qkv).y, want);
            // Only the values carry a gradient.
            let dqkv = backward(&s, &qkv, &[1.0, 2.0, 3.0, 4.0]);
            let (zero, ends) = ([0.0; 4], [3.0, 4.0]);
            match order {
                Order::Legacy => {
                    assert_eq!(dqkv[..4], zero);
                    assert_eq!(dqkv[4..6], [1.0, 2.0]);
                    assert_eq!(dqkv[6..10], zero);
                }
                Order::New => {
                    assert_eq!(dqkv[..8], [0.0; 8]);
                    assert_eq!(dqkv[8..10], [1.0, 2.0]);
                }
            }
            assert_eq!(dqkv[10..], ends);
        }
    }

    #[test]
    fn orders_differ_by_the_importers_permutation() {
        let new = AttentionShape { n: 2, t: 5, c: 6, heads: 3, order: Order::New };
        let legacy = AttentionShape { order: Order::Legacy, ..new };
        let (heads, d) = (3, 2);
        let qkv: Vec<f64> = test_values("qkv", 2 * 5 * 18);
        let mut permuted = qkv.clone();
        for (row, from) in permuted.chunks_exact_mut(18).zip(qkv.chunks_exact(18)) {
            for part in 0..3 {
                for head in 0..heads {
                    for j in 0..d {
                        row[(part * heads + head) * d + j] = from[(head * 3 + part) * d + j];
                    }
                }
            }
        }
        assert_eq!(forward(&legacy, &qkv), forward(&new, &permuted));
    }

    #[test]
    fn large_logits_stay_finite() {
        let s = AttentionShape { n: 1, t: 2, c: 1, heads: 1, order: Order::New };
        let out = forward(&s, &[100f32, 100.0, 1.0, 100.0, 0.0, 2.0]);
        assert_eq!(out.y, [1.0, 1.0]);
        assert_eq!(out.lse, [10000.0, 10000.0]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (n, t, c, heads) in [(3, 17, 33, 3), (1, 13, 5, 1), (3, 1, 33, 3), (2, 9, 8, 4)] {
            for order in [Order::Legacy, Order::New] {
                let s = AttentionShape { n, t, c, heads, order };
                let qkv: Vec<f64> =
                    test_values("qkv", n * t * 3 * c).iter().map(|v: &f64| v * 2.0).collect();
                let dy: Vec<f64> = test_values("dy", n * t * c);
                let dqkv = backward(&s, &qkv, &dy);
                let error = gradient_error(|v| dot(&forward(&s, v).y, &dy), &qkv, &dqkv);
                assert!(error < 1e-5, "{s:?}: {error}");
            }
        }
    }
}
