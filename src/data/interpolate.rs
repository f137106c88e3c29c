//! Float images made smaller or larger: what a super-resolution network is given, and
//! what its results are compared with.
//!
//! The arithmetic is that of the ops [`resize_area`](crate::ops::resize_area) and
//! [`resize_bilinear`](crate::ops::resize_bilinear).

/// Source pixels of an output pixel along one axis, with their weights.
type Taps = Vec<(usize, f64)>;

/// Square float images of one size.
#[derive(Debug, Clone, Copy)]
pub struct Squares<'a> {
    /// [n, side, side, channels].
    pub pixels: &'a [f32],
    /// Height and width of an image.
    pub side: usize,
    /// Channels of a pixel.
    pub channels: usize,
}

impl Squares<'_> {
    /// Images of `to` x `to` pixels, each the mean of the area that it covers: every
    /// source pixel that it touches counts the same.
    pub fn by_area(self, to: usize) -> Vec<f32> {
        let from = self.side;
        self.resized(to, |o| {
            let touched = o * from / to..((o + 1) * from).div_ceil(to);
            let weight = 1.0 / touched.len() as f64;
            touched.map(|i| (i, weight)).collect()
        })
    }

    /// Images of `to` x `to` pixels, interpolated between the centres of the two nearest
    /// pixels along each axis.
    pub fn bilinear(self, to: usize) -> Vec<f32> {
        let from = self.side;
        self.resized(to, |o| {
            let at = ((o as f64 + 0.5) * from as f64 / to as f64 - 0.5).max(0.0);
            let first = (at as usize).min(from - 1);
            let share = at - first as f64;
            vec![(first, 1.0 - share), ((first + 1).min(from - 1), share)]
        })
    }

    /// Images of `to` x `to` pixels, each a copy of the source pixel at its place: a
    /// small image is then seen as it is.
    pub fn by_repetition(self, to: usize) -> Vec<f32> {
        self.resized(to, |o| vec![(o * self.side / to, 1.0)])
    }

    fn resized(self, to: usize, taps: impl Fn(usize) -> Taps) -> Vec<f32> {
        let Squares { pixels, side, channels } = self;
        let taps: Vec<Taps> = (0..to).map(taps).collect();
        let len = side * side * channels;
        let images = pixels.len().checked_div(len).unwrap_or(0);
        let mut out = Vec::with_capacity(images * to * to * channels);
        for image in pixels.chunks_exact(len.max(1)) {
            for rows in &taps {
                for columns in &taps {
                    for channel in 0..channels {
                        let mut sum = 0.0;
                        for (y, wy) in rows {
                            for (x, wx) in columns {
                                let value = image[(y * side + x) * channels + channel];
                                sum += wy * wx * f64::from(value);
                            }
                        }
                        out.push(sum as f32);
                    }
                }
            }
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::reference::resize::{ResizeShape, area, bilinear};

    #[test]
    fn every_bit_is_that_of_the_twins() {
        let (n, channels) = (2, 3);
        for (side, to) in [(8, 4), (8, 3), (5, 7), (4, 16), (3, 3), (1, 2)] {
            let pixels: Vec<f32> =
                (0..n * side * side * channels).map(|i| (i as f32 * 0.7).sin()).collect();
            let images = Squares { pixels: &pixels, side, channels };
            let shape = ResizeShape { n, from: [side, side], to: [to, to], c: channels };
            assert_eq!(images.by_area(to), area(&shape, &pixels), "{side} to {to}");
            assert_eq!(images.bilinear(to), bilinear(&shape, &pixels), "{side} to {to}");
        }
    }

    #[test]
    fn repetition_keeps_pixels() {
        let images = Squares { pixels: &[1.0, 2.0, 3.0, 4.0], side: 2, channels: 1 };
        let large = images.by_repetition(4);
        assert_eq!(large[..4], [1.0, 1.0, 2.0, 2.0]);
        assert_eq!(large[4..8], large[..4]);
        assert_eq!(large[12..], [3.0, 3.0, 4.0, 4.0]);
    }
}
