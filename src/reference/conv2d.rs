//! Twin of the 2-D convolution with its fused bias, time embedding and residual.
//!
//! ```text
//! y[n,oy,ox,co] = sum_{ky,kx,ci} x[n, oy*stride+ky-pad, ox*stride+kx-pad, ci] * weight[ky,kx,ci,co]
//!               + bias[co] + emb[n,co] + residual[n,oy,ox,co]
//! ```
//!
//! Pixels outside the image are zero. The residual's gradient is `dy` itself.

use super::{Real, expect_len, narrow, widen};

const OP: &str = "conv2d";

/// Sizes of a convolution; square kernel, same stride and padding both ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conv2dShape {
    /// Samples.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Input channels.
    pub cin: usize,
    /// Output channels.
    pub cout: usize,
    /// Kernel side: 1 or 3 in these networks.
    pub kernel: usize,
    /// Step between output pixels: 1 or 2 in these networks.
    pub stride: usize,
    /// Zero pixels assumed around the image.
    pub pad: usize,
}

impl Conv2dShape {
    /// Output height.
    pub fn out_h(&self) -> usize {
        (self.h + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Output width.
    pub fn out_w(&self) -> usize {
        (self.w + 2 * self.pad - self.kernel) / self.stride + 1
    }

    /// Elements of `x`, `[n,h,w,cin]`.
    pub fn x_len(&self) -> usize {
        self.n * self.h * self.w * self.cin
    }

    /// Elements of `y`, `[n,out_h,out_w,cout]`.
    pub fn y_len(&self) -> usize {
        self.n * self.out_h() * self.out_w() * self.cout
    }

    /// Elements of `weight`, `[kernel,kernel,cin,cout]`.
    pub fn weight_len(&self) -> usize {
        self.kernel * self.kernel * self.cin * self.cout
    }

    /// Calls `visit(x_pixel, y_pixel, tap)` for every input pixel that an output
    /// pixel sees through a kernel tap; all three are flat indices.
    fn for_each_tap(&self, mut visit: impl FnMut(usize, usize, usize)) {
        // The input coordinate under tap `k` of output `o`, if inside the image.
        let source = |o: usize, k: usize, size: usize| {
            (o * self.stride + k).checked_sub(self.pad).filter(|&i| i < size)
        };
        let (out_h, out_w) = (self.out_h(), self.out_w());
        for n in 0..self.n {
            for oy in 0..out_h {
                for ox in 0..out_w {
                    let y_pixel = (n * out_h + oy) * out_w + ox;
                    for ky in 0..self.kernel {
                        let Some(iy) = source(oy, ky, self.h) else { continue };
                        for kx in 0..self.kernel {
                            let Some(ix) = source(ox, kx, self.w) else { continue };
                            let x_pixel = (n * self.h + iy) * self.w + ix;
                            visit(x_pixel, y_pixel, ky * self.kernel + kx);
                        }
                    }
                }
            }
        }
    }
}

/// `x[n,h,w,cin]`, `weight[k,k,cin,cout]`, optional `bias[cout]`,
/// `residual[n,out_h,out_w,cout]` and `emb[n,cout]` to `y[n,out_h,out_w,cout]`.
pub fn forward<T: Real>(
    shape: &Conv2dShape,
    x: &[T],
    weight: &[T],
    bias: Option<&[T]>,
    residual: Option<&[T]>,
    emb: Option<&[T]>,
) -> Vec<T> {
    let Conv2dShape { n, cin, cout, .. } = *shape;
    expect_len(OP, "x", x, shape.x_len());
    expect_len(OP, "weight", weight, shape.weight_len());
    let weight = widen(weight);
    let mut y = vec![0f64; shape.y_len()];
    shape.for_each_tap(|x_pixel, y_pixel, tap| {
        let out = &mut y[y_pixel * cout..][..cout];
        for (ci, &x) in x[x_pixel * cin..][..cin].iter().enumerate() {
            let x: f64 = x.into();
            for (y, w) in out.iter_mut().zip(&weight[(tap * cin + ci) * cout..]) {
                *y += x * w;
            }
        }
    });
    if let Some(bias) = bias {
        expect_len(OP, "bias", bias, cout);
        y.chunks_exact_mut(cout).for_each(|pixel| add_to(pixel, bias));
    }
    if let Some(emb) = emb {
        expect_len(OP, "emb", emb, n * cout);
        let sample = shape.out_h() * shape.out_w() * cout;
        for (y, emb) in y.chunks_exact_mut(sample).zip(emb.chunks_exact(cout)) {
            y.chunks_exact_mut(cout).for_each(|pixel| add_to(pixel, emb));
        }
    }
    if let Some(residual) = residual {
        expect_len(OP, "residual", residual, y.len());
        add_to(&mut y, residual);
    }
    narrow(&y)
}

/// Adds `values` to `sums`, element by element.
fn add_to<T: Real>(sums: &mut [f64], values: &[T]) {
    for (sum, &value) in sums.iter_mut().zip(values) {
        *sum += value.into();
    }
}

/// `dy[n,out_h,out_w,cout]` and `weight` to `dx[n,h,w,cin]`.
pub fn backward_x<T: Real>(shape: &Conv2dShape, dy: &[T], weight: &[T]) -> Vec<T> {
    let Conv2dShape { cin, cout, .. } = *shape;
    expect_len(OP, "dy", dy, shape.y_len());
    expect_len(OP, "weight", weight, shape.weight_len());
    let (dy, weight) = (widen(dy), widen(weight));
    let mut dx = vec![0f64; shape.x_len()];
    shape.for_each_tap(|x_pixel, y_pixel, tap| {
        let dy = &dy[y_pixel * cout..][..cout];
        for (ci, dx) in dx[x_pixel * cin..][..cin].iter_mut().enumerate() {
            let row = &weight[(tap * cin + ci) * cout..][..cout];
            *dx += dy.iter().zip(row).map(|(d, w)| d * w).sum::<f64>();
        }
    });
    narrow(&dx)
}

/// `x` and `dy` to `dweight[k,k,cin,cout]`, summed over samples and pixels.
pub fn backward_weight<T: Real>(shape: &Conv2dShape, x: &[T], dy: &[T]) -> Vec<T> {
    let Conv2dShape { cin, cout, .. } = *shape;
    expect_len(OP, "x", x, shape.x_len());
    expect_len(OP, "dy", dy, shape.y_len());
    let dy = widen(dy);
    let mut dweight = vec![0f64; shape.weight_len()];
    shape.for_each_tap(|x_pixel, y_pixel, tap| {
        let dy = &dy[y_pixel * cout..][..cout];
        for (ci, &x) in x[x_pixel * cin..][..cin].iter().enumerate() {
            let x: f64 = x.into();
            for (dw, d) in dweight[(tap * cin + ci) * cout..].iter_mut().zip(dy) {
                *dw += x * d;
            }
        }
    });
    narrow(&dweight)
}

/// `dy` to `dbias[cout]`, summed over samples and pixels.
pub fn backward_bias<T: Real>(shape: &Conv2dShape, dy: &[T]) -> Vec<T> {
    expect_len(OP, "dy", dy, shape.y_len());
    let mut dbias = vec![0f64; shape.cout];
    dy.chunks_exact(shape.cout).for_each(|pixel| add_to(&mut dbias, pixel));
    narrow(&dbias)
}

/// `dy` to `demb[n,cout]`, summed over the pixels of each sample.
pub fn backward_emb<T: Real>(shape: &Conv2dShape, dy: &[T]) -> Vec<T> {
    expect_len(OP, "dy", dy, shape.y_len());
    let sample = shape.out_h() * shape.out_w() * shape.cout;
    let mut demb = vec![0f64; shape.n * shape.cout];
    for (sums, dy) in demb.chunks_exact_mut(shape.cout).zip(dy.chunks_exact(sample)) {
        dy.chunks_exact(shape.cout).for_each(|pixel| add_to(sums, pixel));
    }
    narrow(&demb)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    fn shape(n: usize, h: usize, w: usize, cin: usize, cout: usize) -> Conv2dShape {
        Conv2dShape { n, h, w, cin, cout, kernel: 3, stride: 1, pad: 1 }
    }

    /// Every gradient of one shape against finite differences.
    fn check_gradients(s: &Conv2dShape) {
        let x: Vec<f64> = test_values("x", s.x_len());
        let weight: Vec<f64> = test_values("weight", s.weight_len());
        let bias: Vec<f64> = test_values("bias", s.cout);
        let emb: Vec<f64> = test_values("emb", s.n * s.cout);
        let dy: Vec<f64> = test_values("dy", s.y_len());
        let run = |x: &[f64], w: &[f64], b: &[f64], e: &[f64]| {
            dot(&forward(s, x, w, Some(b), None, Some(e)), &dy)
        };
        let errors = [
            gradient_error(|v| run(v, &weight, &bias, &emb), &x, &backward_x(s, &dy, &weight)),
            gradient_error(|v| run(&x, v, &bias, &emb), &weight, &backward_weight(s, &x, &dy)),
            gradient_error(|v| run(&x, &weight, v, &emb), &bias, &backward_bias(s, &dy)),
            gradient_error(|v| run(&x, &weight, &bias, v), &emb, &backward_emb(s, &dy)),
        ];
        assert!(errors.iter().all(|&e| e < 1e-5), "{s:?}: {errors:?}");
    }

    #[test]
    fn gradients_match_finite_differences() {
        check_gradients(&shape(3, 17, 13, 33, 5));
        check_gradients(&shape(2, 5, 4, 3, 33));
        check_gradients(&Conv2dShape { stride: 2, ..shape(3, 17, 13, 5, 7) });
        check_gradients(&Conv2dShape { stride: 2, ..shape(1, 6, 4, 2, 3) });
        check_gradients(&Conv2dShape { kernel: 1, pad: 0, ..shape(3, 17, 13, 33, 7) });
        check_gradients(&Conv2dShape { pad: 0, ..shape(1, 5, 4, 2, 3) });
        check_gradients(&shape(1, 1, 1, 1, 1));
    }

    #[test]
    fn output_sizes() {
        let s = Conv2dShape { stride: 2, ..shape(1, 17, 6, 1, 1) };
        assert_eq!((s.out_h(), s.out_w()), (9, 3));
        let s = shape(1, 17, 6, 1, 1);
        assert_eq!((s.out_h(), s.out_w()), (17, 6));
        let s = Conv2dShape { kernel: 1, pad: 0, ..s };
        assert_eq!((s.out_h(), s.out_w()), (17, 6));
    }

    #[test]
    fn three_by_three_by_hand() {
        // 2x2 image, kernel 1..9 in reading order: each output is the part of
        // the kernel that lies on the image.
        let s = shape(1, 2, 2, 1, 1);
        let weight: Vec<f32> = (1..=9).map(|v| v as f32).collect();
        let y = forward(&s, &[1.0, 10.0, 100.0, 1000.0], &weight, None, None, None);
        assert_eq!(y, [9865.0, 8754.0, 6532.0, 5421.0]);
        let strided = Conv2dShape { stride: 2, ..s };
        let y = forward(&strided, &[1.0, 10.0, 100.0, 1000.0], &weight, None, None, None);
        assert_eq!(y, [9865.0]);
    }

    #[test]
    fn channels_bias_emb_and_residual_by_hand() {
        let s = Conv2dShape { kernel: 1, pad: 0, ..shape(2, 1, 1, 2, 3) };
        let x = [1f32, 2.0, 3.0, 4.0];
        let weight = [1f32, 0.0, 2.0, 0.0, 1.0, 3.0];
        let plain = forward(&s, &x, &weight, None, None, None);
        assert_eq!(plain, [1.0, 2.0, 8.0, 3.0, 4.0, 18.0]);
        let bias = [0.5, 0.25, 0.125];
        let emb = [10.0, 20.0, 30.0, 40.0, 50.0, 60.0];
        let residual = [100.0, 200.0, 300.0, 400.0, 500.0, 600.0];
        let y = forward(&s, &x, &weight, Some(&bias), Some(&residual), Some(&emb));
        assert_eq!(y, [111.5, 222.25, 338.125, 443.5, 554.25, 678.125]);
    }
}
