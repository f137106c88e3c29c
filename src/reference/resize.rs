//! Twins of resizing to any size: bilinear and by areas.

use super::{Real, expect_len};

const OP: &str = "resize";

/// Sizes of the input and of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ResizeShape {
    /// Samples.
    pub n: usize,
    /// Input height and width.
    pub from: [usize; 2],
    /// Height and width of the result.
    pub to: [usize; 2],
    /// Channels.
    pub c: usize,
}

/// Source pixels of output pixel `o` and their weights.
type Taps = Vec<(usize, f64)>;

/// The two neighbours of a centre, clamped to the image.
fn bilinear_taps(o: usize, from: usize, to: usize) -> Taps {
    let at = ((o as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
    let first = (at as usize).min(from - 1);
    let share = at - first as f64;
    vec![(first, 1.0 - share), ((first + 1).min(from - 1), share)]
}

/// All pixels that an output pixel touches, equally.
fn area_taps(o: usize, from: usize, to: usize) -> Taps {
    let touched = o * from / to..((o + 1) * from).div_ceil(to);
    let weight = 1.0 / touched.len() as f64;
    touched.map(|i| (i, weight)).collect()
}

fn resize<T: Real>(shape: &ResizeShape, x: &[T], taps: fn(usize, usize, usize) -> Taps) -> Vec<T> {
    let ResizeShape { n, from: [h, w], to: [oh, ow], c } = *shape;
    expect_len(OP, "x", x, n * h * w * c);
    let mut y = Vec::with_capacity(n * oh * ow * c);
    for image in x.chunks_exact(h * w * c) {
        for oy in 0..oh {
            for ox in 0..ow {
                for channel in 0..c {
                    let mut sum = 0.0;
                    for (iy, wy) in taps(oy, h, oh) {
                        for (ix, wx) in taps(ox, w, ow) {
                            sum += wy * wx * image[(iy * w + ix) * c + channel].into();
                        }
                    }
                    y.push(T::from_f64(sum));
                }
            }
        }
    }
    y
}

/// Bilinear with half-pixel centres: `x[n,h,w,c]` to `y[n,oh,ow,c]`.
pub fn bilinear<T: Real>(shape: &ResizeShape, x: &[T]) -> Vec<T> {
    resize(shape, x, bilinear_taps)
}

/// Means of areas: `x[n,h,w,c]` to `y[n,oh,ow,c]`.
pub fn area<T: Real>(shape: &ResizeShape, x: &[T]) -> Vec<T> {
    resize(shape, x, area_taps)
}

#[cfg(test)]
mod tests {
    use super::super::{max_abs_error, test_values};
    use super::*;

    fn row(from: usize, to: usize) -> ResizeShape {
        ResizeShape { n: 1, from: [1, from], to: [1, to], c: 1 }
    }

    #[test]
    fn bilinear_by_hand() {
        // Centres of four pixels over two: -1/4 (clamped), 1/4, 3/4, 5/4 (clamped).
        let y = bilinear(&row(2, 4), &[10f64, 20.0]);
        assert!(max_abs_error(&y, &[10.0, 12.5, 17.5, 20.0]) < 1e-12);
        // Halving takes the mean of the middle two of four, whatever lies around.
        assert_eq!(bilinear(&row(4, 2), &[1f64, 3.0, 5.0, 9.0]), [2.0, 7.0]);
        // A third: the centre alone.
        assert_eq!(bilinear(&row(3, 1), &[1f64, 5.0, 100.0]), [5.0]);
    }

    #[test]
    fn area_by_hand() {
        assert_eq!(area(&row(4, 2), &[1f64, 3.0, 5.0, 9.0]), [2.0, 7.0]);
        // 5 to 3: pixels 0..2, 1..4 and 3..5.
        assert_eq!(area(&row(5, 3), &[1f64, 2.0, 3.0, 4.0, 5.0]), [1.5, 3.0, 4.5]);
        // Growing repeats: 2 to 3 is 0..1, 0..2, 1..2.
        assert_eq!(area(&row(2, 3), &[2f64, 6.0]), [2.0, 4.0, 6.0]);
    }

    #[test]
    fn two_dimensions_are_one_after_the_other() {
        let x: Vec<f64> = test_values("x", 2 * 5 * 7 * 3);
        for resize in [bilinear::<f64>, area] {
            let whole = resize(&ResizeShape { n: 2, from: [5, 7], to: [4, 9], c: 3 }, &x);
            let tall = resize(&ResizeShape { n: 2, from: [5, 7], to: [4, 7], c: 3 }, &x);
            let both = resize(&ResizeShape { n: 2, from: [4, 7], to: [4, 9], c: 3 }, &tall);
            assert!(max_abs_error(&whole, &both) < 1e-12);
        }
    }

    #[test]
    fn the_same_size_changes_nothing() {
        let x: Vec<f32> = test_values("x", 3 * 4 * 2);
        let shape = ResizeShape { n: 1, from: [3, 4], to: [3, 4], c: 2 };
        assert_eq!(bilinear(&shape, &x), x);
        assert_eq!(area(&shape, &x), x);
    }
}
