//! Twin of the fully connected layer: `y[n,out] = x[n,in] * weight[in][out] + bias[out]`.

use super::{Real, expect_len, narrow, widen};

const OP: &str = "linear";

/// Sizes of a linear layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LinearShape {
    /// Rows (samples, or samples times pixels).
    pub n: usize,
    /// Input features.
    pub cin: usize,
    /// Output features.
    pub cout: usize,
}

/// `x[n,cin]`, `weight[cin,cout]`, optional `bias[cout]` to `y[n,cout]`.
pub fn forward<T: Real>(shape: &LinearShape, x: &[T], weight: &[T], bias: Option<&[T]>) -> Vec<T> {
    let LinearShape { n, cin, cout } = *shape;
    expect_len(OP, "x", x, n * cin);
    expect_len(OP, "weight", weight, cin * cout);
    let weight = widen(weight);
    let start = match bias {
        Some(bias) => widen(bias),
        None => vec![0.0; cout],
    };
    expect_len(OP, "bias", &start, cout);
    let mut y = Vec::with_capacity(n * cout);
    for row in x.chunks_exact(cin) {
        let mut sums = start.clone();
        for (&x, weight) in row.iter().zip(weight.chunks_exact(cout)) {
            let x: f64 = x.into();
            for (sum, w) in sums.iter_mut().zip(weight) {
                *sum += x * w;
            }
        }
        y.extend(narrow::<T>(&sums));
    }
    y
}

/// `dy[n,cout]` and `weight` to `dx[n,cin]`.
pub fn backward_x<T: Real>(shape: &LinearShape, dy: &[T], weight: &[T]) -> Vec<T> {
    let LinearShape { n, cin, cout } = *shape;
    expect_len(OP, "dy", dy, n * cout);
    expect_len(OP, "weight", weight, cin * cout);
    let mut dx = Vec::with_capacity(n * cin);
    for dy in dy.chunks_exact(cout) {
        dx.extend(weight.chunks_exact(cout).map(|row| T::from_f64(super::dot(dy, row))));
    }
    dx
}

/// `x[n,cin]` and `dy[n,cout]` to `dweight[cin,cout]`, summed over rows.
pub fn backward_weight<T: Real>(shape: &LinearShape, x: &[T], dy: &[T]) -> Vec<T> {
    let LinearShape { n, cin, cout } = *shape;
    expect_len(OP, "x", x, n * cin);
    expect_len(OP, "dy", dy, n * cout);
    let mut dweight = vec![0f64; cin * cout];
    for (x, dy) in x.chunks_exact(cin).zip(dy.chunks_exact(cout)) {
        for (&x, dweight) in x.iter().zip(dweight.chunks_exact_mut(cout)) {
            let x: f64 = x.into();
            for (sum, &dy) in dweight.iter_mut().zip(dy) {
                *sum += x * dy.into();
            }
        }
    }
    narrow(&dweight)
}

/// `dy[n,cout]` to `dbias[cout]`, summed over rows.
pub fn backward_bias<T: Real>(shape: &LinearShape, dy: &[T]) -> Vec<T> {
    let LinearShape { n, cout, .. } = *shape;
    expect_len(OP, "dy", dy, n * cout);
    let mut dbias = vec![0f64; cout];
    for dy in dy.chunks_exact(cout) {
        for (sum, &dy) in dbias.iter_mut().zip(dy) {
            *sum += dy.into();
        }
    }
    narrow(&dbias)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = LinearShape { n: 2, cin: 2, cout: 3 };
        let x = [1f32, 2.0, 3.0, 4.0];
        let weight = [1f32, 0.0, 2.0, 0.0, 1.0, 3.0];
        let y = forward(&s, &x, &weight, Some(&[0.5, 0.0, -1.0]));
        assert_eq!(y, [1.5, 2.0, 7.0, 3.5, 4.0, 17.0]);
        let dy = [1f32, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(backward_x(&s, &dy, &weight), [7.0, 11.0, 16.0, 23.0]);
        assert_eq!(backward_weight(&s, &x, &dy), [13.0, 17.0, 21.0, 18.0, 24.0, 30.0]);
        assert_eq!(backward_bias(&s, &dy), [5.0, 7.0, 9.0]);
    }

    #[test]
    fn sums_are_kept_in_f64() {
        let s = LinearShape { n: 1, cin: 3, cout: 1 };
        assert_eq!(forward(&s, &[1e8f32, 1.0, -1e8], &[1.0; 3], None), [1.0]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        for (n, cin, cout) in [(3, 33, 17), (1, 1, 1), (5, 13, 33)] {
            let s = LinearShape { n, cin, cout };
            let x: Vec<f64> = test_values("x", n * cin);
            let weight: Vec<f64> = test_values("weight", cin * cout);
            let bias: Vec<f64> = test_values("bias", cout);
            let dy: Vec<f64> = test_values("dy", n * cout);
            let run = |x: &[f64], w: &[f64], b: &[f64]| dot(&forward(&s, x, w, Some(b)), &dy);
            let errors = [
                gradient_error(|v| run(v, &weight, &bias), &x, &backward_x(&s, &dy, &weight)),
                gradient_error(|v| run(&x, v, &bias), &weight, &backward_weight(&s, &x, &dy)),
                gradient_error(|v| run(&x, &weight, v), &bias, &backward_bias(&s, &dy)),
            ];
            assert!(errors.iter().all(|&e| e < 1e-5), "{s:?}: {errors:?}");
        }
    }
}
