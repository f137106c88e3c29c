//! Resizing to a square: the centre crop of guided-diffusion, in the arithmetic
//! of Pillow's `Image.resize` for 8-bit images.
//!
//! Both filters are separable. An output pixel of a pass is the weighted sum of
//! the input pixels under the filter, whose support grows with the scale when
//! shrinking (antialiasing). As in Pillow the horizontal pass comes first, the
//! weights are normalised and rounded to 22 fractional bits, and each pass
//! rounds to 8 bits, so prepared images equal the reference's bit for bit. The
//! `image` crate's CatmullRom is the same kernel (cubic with a = -0.5) in
//! floating point without the rounding between the passes: the tests hold the two
//! within one level where no pass overshoots 0..255, and a hard edge differs by a
//! few levels since Pillow clips after each pass.
//!
use std::ops::Range;

use super::decode::Pixels;

/// Fractional bits of a weight: 32 less 8 for the pixel and 2 for overshoot.
const FRACTION_BITS: u32 = 22;

/// A resampling kernel.
#[derive(Clone, Copy)]
enum Filter {
    /// Mean over the covered pixels.
    Box,
    /// Cubic convolution with a = -0.5 (Keys 1981).
    Bicubic,
}

impl Filter {
    /// Half the kernel's width, in output pixels.
    fn support(self) -> f64 {
        match self {
            Filter::Box => 0.5,
            Filter::Bicubic => 2.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        match self {
            Filter::Box => f64::from(u8::from(x > -0.5 && x <= 0.5)),
            Filter::Bicubic => {
                const A: f64 = -0.5;
                let x = x.abs();
                if x < 1.0 {
                    ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
                } else if x < 2.0 {
                    (((x - 5.0) * x + 8.0) * x - 4.0) * A
                } else {
                    0.0
                }
            }
        }
    }
}

/// The input pixels an output pixel is made of: `first ..` with fixed-point
/// weights.
struct Taps {
    first: usize,
    weights: Vec<i32>,
}

/// Taps of the outputs `window` when `input` pixels are resized to `output`.
fn taps(filter: Filter, input: usize, output: usize, window: Range<usize>) -> Vec<Taps> {
    let scale = input as f64 / output as f64;
    // Enlarging does not narrow the kernel below one input pixel per unit.
    let stretch = scale.max(1.0);
    let support = filter.support() * stretch;
    let one_tap_row = |out: usize| {
        let center = (out as f64 + 0.5) * scale;
        // Casts truncate and saturate, which also clamps below zero.
        let first = (center - support + 0.5) as usize;
        let end = ((center + support + 0.5) as usize).min(input);
        let raw: Vec<f64> = (first..end)
            .map(|i| filter.weight((i as f64 - center + 0.5) * (1.0 / stretch)))
            .collect();
        let sum: f64 = raw.iter().sum();
        let fixed = |w: &f64| (w / sum * f64::from(1 << FRACTION_BITS)).round() as i32;
        Taps { first, weights: raw.iter().map(fixed).collect() }
    };
    window.map(one_tap_row).collect()
}

fn to_byte(sum: i32) -> u8 {
    ((sum + (1 << (FRACTION_BITS - 1))) >> FRACTION_BITS).clamp(0, 255) as u8
}

/// Resizes to `width` x `height` and returns only the window `columns` x `rows`
/// of the result, so that an extreme aspect ratio costs no more memory than
/// what is kept.
fn resize(
    src: &Pixels,
    filter: Filter,
    [width, height]: [usize; 2],
    columns: Range<usize>,
    rows: Range<usize>,
) -> Pixels {
    let c = src.channels;
    let (out_width, out_height) = (columns.len(), rows.len());
    let across = taps(filter, src.width, width, columns);
    let down = taps(filter, src.height, height, rows);
    // Input rows that any output row needs.
    let top = down.iter().map(|t| t.first).min().unwrap_or(0);
    let bottom = down.iter().map(|t| t.first + t.weights.len()).max().unwrap_or(0);

    let mut middle = vec![0u8; (bottom - top) * out_width * c];
    let lines = src.data.chunks_exact(src.width * c).skip(top);
    for (line, out) in lines.zip(middle.chunks_exact_mut(out_width * c)) {
        for (taps, pixel) in across.iter().zip(out.chunks_exact_mut(c)) {
            for (channel, value) in pixel.iter_mut().enumerate() {
                let inputs = line[taps.first * c + channel..].iter().step_by(c);
                let terms = taps.weights.iter().zip(inputs).map(|(&w, &v)| w * i32::from(v));
                *value = to_byte(terms.sum());
            }
        }
    }

    let mut data = vec![0u8; out_width * out_height * c];
    let mut sums = vec![0i32; out_width * c];
    for (taps, out) in down.iter().zip(data.chunks_exact_mut(out_width * c)) {
        sums.fill(0);
        let lines = middle.chunks_exact(out_width * c).skip(taps.first - top);
        for (&w, line) in taps.weights.iter().zip(lines) {
            for (sum, &v) in sums.iter_mut().zip(line) {
                *sum += w * i32::from(v);
            }
        }
        for (value, &sum) in out.iter_mut().zip(&sums) {
            *value = to_byte(sum);
        }
    }
    Pixels { width: out_width, height: out_height, channels: c, data }
}

impl Pixels {
    /// Brings the image to `size` x `size`: box-halves it while its shorter side
    /// is at least `2 * size`, resizes it bicubically so that this side is
    /// `size`, and crops the centre. Colour is dropped first if `channels` is 1,
    /// as the reference converts before resizing; repeating grey is left to the
    /// caller, since it commutes.
    pub fn fit(self, size: usize, channels: usize) -> Pixels {
        self.shrink_and_crop(size, channels, size, |slack| slack / 2)
    }

    /// The same with the shorter side at a random length of `size` to
    /// `size / 0.8` and a random window, the reference's augmentation of
    /// classifiers: `u` are three uniform numbers in 0..1 for the length and the
    /// window's top and left.
    pub fn fit_random(self, size: usize, channels: usize, u: [f64; 3]) -> Pixels {
        let below = |u: f64, n: usize| ((u * n as f64) as usize).min(n - 1);
        let longest = (size as f64 / 0.8).ceil() as usize;
        let short = size + below(u[0], longest - size + 1);
        let mut axes = [u[2], u[1]].into_iter();
        self.shrink_and_crop(size, channels, short, |slack| {
            below(axes.next().unwrap_or(0.5), slack + 1)
        })
    }

    /// Brings the shorter side to `short` and keeps a window of `size`; `place`
    /// gives its left and then its top from the pixels to spare.
    fn shrink_and_crop(
        self,
        size: usize,
        channels: usize,
        short: usize,
        mut place: impl FnMut(usize) -> usize,
    ) -> Pixels {
        let mut image = if channels == 1 { self.with_channels(1) } else { self };
        while image.width.min(image.height) >= 2 * short {
            let (width, height) = (image.width / 2, image.height / 2);
            image = resize(&image, Filter::Box, [width, height], 0..width, 0..height);
        }
        if (image.width, image.height) == (size, size) && short == size {
            return image;
        }
        let scale = short as f64 / image.width.min(image.height) as f64;
        // Python's round: halves go to the even neighbour.
        let scaled = |side: usize| ((side as f64 * scale).round_ties_even() as usize).max(short);
        let (width, height) = (scaled(image.width), scaled(image.height));
        let (left, top) = (place(width - size), place(height - size));
        resize(&image, Filter::Bicubic, [width, height], left..left + size, top..top + size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A busy but reproducible picture.
    fn picture(width: usize, height: usize, channels: usize) -> Pixels {
        let value = |i: usize| ((i * i * 31 + i * 17) / 7 % 251) as u8;
        let data = (0..width * height * channels).map(value).collect();
        Pixels { width, height, channels, data }
    }

    #[test]
    fn box_halving_rounds_after_each_pass() {
        // Rows: (10+11)/2 -> 11, (0+255)/2 -> 128; 4, 1. Columns: 7.5 -> 8, 64.5 -> 65.
        let src =
            Pixels { width: 4, height: 2, channels: 1, data: vec![10, 11, 0, 255, 4, 4, 1, 1] };
        let half = resize(&src, Filter::Box, [2, 1], 0..2, 0..1);
        assert_eq!(half.data, [8, 65]);
    }

    #[test]
    fn a_window_equals_the_crop_of_the_whole() {
        let src = picture(23, 31, 3);
        let whole = resize(&src, Filter::Bicubic, [17, 40], 0..17, 0..40);
        let part = resize(&src, Filter::Bicubic, [17, 40], 5..12, 9..33);
        for (y, row) in part.data.chunks_exact(7 * 3).enumerate() {
            let start = ((y + 9) * 17 + 5) * 3;
            assert_eq!(row, &whole.data[start..start + 7 * 3], "row {y}");
        }
    }

    #[test]
    fn bicubic_agrees_with_the_image_crate() {
        for (from, to) in [([20, 30], [13, 19]), ([9, 9], [16, 16]), ([33, 10], [32, 11])] {
            let mut src = picture(from[0], from[1], 3);
            // Low contrast, so that no pass overshoots and is clipped.
            src.data.iter_mut().for_each(|v| *v = 64 + *v / 2);
            let ours = resize(&src, Filter::Bicubic, to, 0..to[0], 0..to[1]);
            let (w, h) = (from[0] as u32, from[1] as u32);
            let theirs = image::imageops::resize(
                &image::RgbImage::from_raw(w, h, src.data).unwrap(),
                to[0] as u32,
                to[1] as u32,
                image::imageops::FilterType::CatmullRom,
            );
            let worst = ours.data.iter().zip(theirs.iter()).map(|(a, b)| a.abs_diff(*b)).max();
            assert!(worst <= Some(1), "{from:?} to {to:?}: {worst:?} levels apart");
        }
    }

    /// FNV-1a, 64 bits.
    fn hash(bytes: &[u8]) -> u64 {
        let step = |h: u64, &b: &u8| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3);
        bytes.iter().fold(0xcbf2_9ce4_8422_2325, step)
    }

    /// Hashes of the same pictures put through the reference's crop with
    /// Pillow 13.0.
    #[test]
    fn fit_equals_pillow_bit_for_bit() {
        for ((width, height, channels, size), expected) in [
            ((9, 9, 3, 16), 0x68a40ba7fe6d102e),
            ((45, 37, 3, 16), 0xf6573cbbcb19f20f),
            ((131, 77, 1, 9), 0x844b49e6c563888),
            ((20, 31, 3, 13), 0x8730e34768f2cde),
            ((64, 64, 3, 16), 0x8a5cea57e67c58d7),
            ((7, 90, 1, 8), 0x38fff0d85ff478a5),
        ] {
            let fitted = picture(width, height, channels).fit(size, channels);
            assert_eq!(fitted.data.len(), size * size * channels);
            assert_eq!(hash(&fitted.data), expected, "{width}x{height}x{channels} to {size}");
        }
    }

    #[test]
    fn random_windows_stay_inside_and_reach_both_ends() {
        let src = picture(40, 30, 3);
        let at = |u| src.clone().fit_random(20, 3, u).data;
        // The shortest side of all is the plain size: the crop is a window of it.
        let whole = resize(&src, Filter::Bicubic, [27, 20], 0..27, 0..20);
        for (u, left) in [(0.0, 0), (0.999, 7)] {
            let row = &whole.data[left * 3..(left + 20) * 3];
            assert_eq!(&at([0.0, 0.5, u])[..60], row);
        }
        assert_eq!(at([0.999, 0.999, 0.999]).len(), 20 * 20 * 3);
        assert_ne!(at([0.999, 0.2, 0.2]), at([0.0, 0.2, 0.2]));
    }

    #[test]
    fn extreme_shapes_stay_small() {
        for (width, height) in [(1, 50_000), (50_000, 1)] {
            let fitted = picture(width, height, 1).fit(64, 1);
            assert_eq!((fitted.width, fitted.height, fitted.data.len()), (64, 64, 64 * 64));
        }
    }
}
