//! Twins of the parameter-free resamplers: nearest-neighbour doubling and 2x2
//! averaging. Each is, up to the factor 1/4, the other's transpose.

use super::{Real, expect_len};

const OP: &str = "resample";

/// Sizes of the *input* image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResampleShape {
    /// Samples.
    pub n: usize,
    /// Input height.
    pub h: usize,
    /// Input width.
    pub w: usize,
    /// Channels.
    pub c: usize,
}

impl ResampleShape {
    fn len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }

    /// The image twice as large.
    fn doubled(&self) -> Self {
        Self { h: 2 * self.h, w: 2 * self.w, ..*self }
    }

    /// The image half as large.
    fn halved(&self) -> Self {
        let Self { h, w, .. } = *self;
        assert!(h % 2 == 0 && w % 2 == 0, "{OP}: cannot halve {h}x{w} pixels, sides must be even");
        Self { h: h / 2, w: w / 2, ..*self }
    }
}

/// Copies each pixel of `small` (shape `small`) onto a 2x2 block, times `factor`.
fn spread<T: Real>(small: &ResampleShape, x: &[T], factor: f64) -> Vec<T> {
    let large = small.doubled();
    let mut y = Vec::with_capacity(large.len());
    for n in 0..large.n {
        for oy in 0..large.h {
            for ox in 0..large.w {
                let pixel = (n * small.h + oy / 2) * small.w + ox / 2;
                let values = &x[pixel * small.c..][..small.c];
                y.extend(values.iter().map(|&v| T::from_f64(v.into() * factor)));
            }
        }
    }
    y
}

/// Sums each 2x2 block of `x` into one pixel of an image of shape `small`, times `factor`.
fn gather<T: Real>(small: &ResampleShape, x: &[T], factor: f64) -> Vec<T> {
    let large_w = 2 * small.w;
    let mut y = Vec::with_capacity(small.len());
    for row in 0..small.n * small.h {
        for ox in 0..small.w {
            for channel in 0..small.c {
                let at = |dy: usize, dx: usize| -> f64 {
                    x[((2 * row + dy) * large_w + 2 * ox + dx) * small.c + channel].into()
                };
                y.push(T::from_f64((at(0, 0) + at(0, 1) + at(1, 0) + at(1, 1)) * factor));
            }
        }
    }
    y
}

/// Nearest-neighbour doubling: `x[n,h,w,c]` to `y[n,2h,2w,c]`, any size.
pub fn up_forward<T: Real>(shape: &ResampleShape, x: &[T]) -> Vec<T> {
    expect_len(OP, "x", x, shape.len());
    spread(shape, x, 1.0)
}

/// `dy[n,2h,2w,c]` to `dx[n,h,w,c]`: each pixel's four copies add up.
pub fn up_backward<T: Real>(shape: &ResampleShape, dy: &[T]) -> Vec<T> {
    expect_len(OP, "dy", dy, shape.doubled().len());
    gather(shape, dy, 1.0)
}

/// 2x2 averages: `x[n,h,w,c]` to `y[n,h/2,w/2,c]`; `h` and `w` even.
pub fn down_forward<T: Real>(shape: &ResampleShape, x: &[T]) -> Vec<T> {
    expect_len(OP, "x", x, shape.len());
    gather(&shape.halved(), x, 0.25)
}

/// `dy[n,h/2,w/2,c]` to `dx[n,h,w,c]`: a quarter to each of four pixels.
pub fn down_backward<T: Real>(shape: &ResampleShape, dy: &[T]) -> Vec<T> {
    expect_len(OP, "dy", dy, shape.halved().len());
    spread(&shape.halved(), dy, 0.25)
}

#[cfg(test)]
mod tests {
    use super::super::{dot, gradient_error, test_values};
    use super::*;

    #[test]
    fn by_hand() {
        let s = ResampleShape { n: 1, h: 1, w: 2, c: 2 };
        let y = up_forward(&s, &[1f32, 2.0, 3.0, 4.0]);
        let row = [1f32, 2.0, 1.0, 2.0, 3.0, 4.0, 3.0, 4.0];
        assert_eq!(y, [row, row].concat());
        let s = ResampleShape { n: 1, h: 2, w: 4, c: 1 };
        let x = [1f32, 2.0, 10.0, 20.0, 3.0, 4.0, 30.0, 40.0];
        assert_eq!(down_forward(&s, &x), [2.5, 25.0]);
        assert_eq!(
            down_backward(&s, &[4f32, 8.0]),
            [[1f32, 1.0, 2.0, 2.0], [1.0, 1.0, 2.0, 2.0]].concat()
        );
        let s = ResampleShape { n: 1, h: 1, w: 2, c: 1 };
        assert_eq!(up_backward(&s, &x), [10.0, 100.0]);
    }

    #[test]
    fn down_undoes_up() {
        let s = ResampleShape { n: 3, h: 17, w: 13, c: 33 };
        let x: Vec<f32> = test_values("x", s.len());
        assert_eq!(down_forward(&s.doubled(), &up_forward(&s, &x)), x);
    }

    #[test]
    #[should_panic(expected = "cannot halve 3x4 pixels")]
    fn odd_images_are_not_halved() {
        down_forward(&ResampleShape { n: 1, h: 3, w: 4, c: 1 }, &[0f32; 12]);
    }

    #[test]
    fn gradients_match_finite_differences() {
        let s = ResampleShape { n: 3, h: 17, w: 13, c: 33 };
        let x: Vec<f64> = test_values("x", s.len());
        let dy: Vec<f64> = test_values("dy", 4 * s.len());
        let error = gradient_error(|x| dot(&up_forward(&s, x), &dy), &x, &up_backward(&s, &dy));
        assert!(error < 1e-5, "up: {error}");
        let s = ResampleShape { n: 3, h: 6, w: 10, c: 33 };
        let x: Vec<f64> = test_values("x", s.len());
        let dy: Vec<f64> = test_values("dy", s.len() / 4);
        let error = gradient_error(|x| dot(&down_forward(&s, x), &dy), &x, &down_backward(&s, &dy));
        assert!(error < 1e-5, "down: {error}");
    }
}
