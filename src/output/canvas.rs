//! A small RGB picture to draw on: rectangles, enlarged images, text.
//! Whatever falls outside of it is left out.

use std::path::Path;

use super::{image, text};
use crate::{Error, Result};

/// More pixels than this are refused (3 bytes each).
const MAX_PIXELS: usize = 1 << 28;

/// An RGB picture, 8 bits a channel, HWC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Canvas {
    /// Width in pixels.
    pub width: usize,
    /// Height in pixels.
    pub height: usize,
    /// `height * width * 3` bytes.
    pub pixels: Vec<u8>,
}

impl Canvas {
    /// A white canvas.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is empty or larger than 268 million pixels.
    pub fn new(width: usize, height: usize) -> Result<Self> {
        match width.checked_mul(height) {
            Some(n) if (1..=MAX_PIXELS).contains(&n) => {
                Ok(Canvas { width, height, pixels: vec![255; n * 3] })
            }
            _ => Err(Error::shape(
                "canvas",
                format!("{width}x{height} pixels; 1 to {MAX_PIXELS} are possible"),
            )),
        }
    }

    /// The colour at (x, y), if that is inside.
    pub fn pixel(&self, x: usize, y: usize) -> Option<[u8; 3]> {
        self.index(x as i64, y as i64).map(|i| {
            let p = &self.pixels[i..i + 3];
            [p[0], p[1], p[2]]
        })
    }

    /// Draws an image (HWC, `channels` 1 or 3, `width * channels` bytes a row) with
    /// its corner at (x, y), each of its pixels as a square of `scale` pixels.
    pub(super) fn blit(
        &mut self,
        (x, y): (usize, usize),
        image: &[u8],
        (width, channels): (usize, usize),
        scale: usize,
    ) {
        for (row, line) in image.chunks_exact(width * channels).enumerate() {
            for (column, p) in line.chunks_exact(channels).enumerate() {
                let rgb = if channels == 3 { [p[0], p[1], p[2]] } else { [p[0]; 3] };
                self.fill((x + column * scale, y + row * scale), (scale, scale), rgb);
            }
        }
    }

    /// Fills a rectangle of `size` = (width, height).
    pub(super) fn fill(&mut self, (x, y): (usize, usize), size: (usize, usize), color: [u8; 3]) {
        let right = x.saturating_add(size.0).min(self.width);
        for row in y..y.saturating_add(size.1).min(self.height) {
            if x < right {
                let start = (row * self.width + x) * 3;
                let end = (row * self.width + right) * 3;
                for p in self.pixels[start..end].chunks_exact_mut(3) {
                    p.copy_from_slice(&color);
                }
            }
        }
    }

    /// Draws one line of text, top left corner at (x, y), `px` pixels high.
    pub(super) fn text(&mut self, (x, y): (usize, usize), line: &str, px: f32, color: [u8; 3]) {
        text::draw(line, px, |dx, dy, coverage| {
            let at = self.index(x as i64 + i64::from(dx), y as i64 + i64::from(dy));
            if let Some(i) = at {
                for (p, c) in self.pixels[i..i + 3].iter_mut().zip(color) {
                    *p = (f32::from(*p) * (1.0 - coverage) + f32::from(c) * coverage).round() as u8;
                }
            }
        });
    }

    /// Writes the picture as PNG; see [`image::save_png`].
    ///
    /// # Errors
    /// As [`image::save_png`].
    pub fn save_png(&self, path: &Path, text: &[(&str, &str)]) -> Result<()> {
        image::save_png(path, &self.pixels, self.width, self.height, 3, text)
    }

    fn index(&self, x: i64, y: i64) -> Option<usize> {
        let inside = (0..self.width as i64).contains(&x) && (0..self.height as i64).contains(&y);
        inside.then(|| (y as usize * self.width + x as usize) * 3)
    }
}
