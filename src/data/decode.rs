//! One image file to 8-bit pixels: decoding with the checks that keep damaged
//! or lying files from being believed, and grey/RGB conversion.

use std::io::Cursor;
use std::panic::{AssertUnwindSafe, catch_unwind};

use image::{DynamicImage, ImageFormat, ImageReader};

/// More pixels than this per file byte cannot come from a real PNG or JPEG:
/// deflate reaches 1032:1 on 1-bit pixels, and a JPEG block of 64 pixels takes
/// at least one bit.
const MAX_PIXELS_PER_BYTE: u64 = 8 * 1100;

/// An 8-bit image, HWC; `channels` is 1 (grey) or 3 (RGB).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Pixels {
    pub width: usize,
    pub height: usize,
    pub channels: usize,
    pub data: Vec<u8>,
}

impl Pixels {
    /// Grey to RGB by repetition, RGB to grey by Rec. 601 luma in the fixed
    /// point of Pillow's "L" mode.
    pub fn with_channels(self, channels: usize) -> Pixels {
        let data = match (self.channels, channels) {
            (1, 3) => self.data.iter().flat_map(|&v| [v; 3]).collect(),
            (3, 1) => self.data.chunks_exact(3).map(luma).collect(),
            _ => return self,
        };
        Pixels { channels, data, ..self }
    }
}

/// Rec. 601 luma: (0.299 R + 0.587 G + 0.114 B), rounded, with 16-bit weights.
fn luma(rgb: &[u8]) -> u8 {
    let [r, g, b] = [rgb[0], rgb[1], rgb[2]].map(u32::from);
    ((r * 19595 + g * 38470 + b * 7471 + 0x8000) >> 16) as u8
}

/// Reads and decodes one file; the error is the reason alone, without the path.
#[cfg(feature = "files")]
pub(super) fn decode_file(path: &std::path::Path) -> Result<Pixels, String> {
    decode(&std::fs::read(path).map_err(|e| format!("cannot read: {e}"))?)
}

/// Decodes PNG or JPEG bytes; alpha is dropped and 16 bits become 8.
pub(super) fn decode(bytes: &[u8]) -> Result<Pixels, String> {
    // The decoders are other people's code fed with arbitrary bytes: a bug in
    // one of them must cost a file, not the run.
    catch_unwind(AssertUnwindSafe(|| decode_image(bytes)))
        .unwrap_or_else(|_| Err("the decoder failed on it".to_owned()))
}

fn decode_image(bytes: &[u8]) -> Result<Pixels, String> {
    let reader =
        || ImageReader::new(Cursor::new(bytes)).with_guessed_format().map_err(|e| e.to_string());
    let format = reader()?.format();
    if !matches!(format, Some(ImageFormat::Png | ImageFormat::Jpeg)) {
        return Err("neither PNG nor JPEG data".to_owned());
    }
    let (width, height) = reader()?.into_dimensions().map_err(|e| e.to_string())?;
    let claimed = u64::from(width) * u64::from(height);
    if claimed > MAX_PIXELS_PER_BYTE * bytes.len() as u64 {
        return Err(format!(
            "its header claims {width}x{height} pixels, its {} bytes cannot hold them",
            bytes.len()
        ));
    }
    if format == Some(ImageFormat::Jpeg) && !jpeg_is_complete(bytes) {
        return Err("truncated JPEG (no end marker)".to_owned());
    }
    let image = reader()?.decode().map_err(|e| e.to_string())?;
    Ok(to_pixels(image))
}

fn to_pixels(image: DynamicImage) -> Pixels {
    let (width, height) = (image.width() as usize, image.height() as usize);
    if image.color().has_color() {
        Pixels { width, height, channels: 3, data: image.into_rgb8().into_raw() }
    } else {
        Pixels { width, height, channels: 1, data: image.into_luma8().into_raw() }
    }
}

/// Whether the marker chain reaches the end-of-image marker. The decoder fills
/// the missing part of a cut file with grey, which would be trained on.
fn jpeg_is_complete(bytes: &[u8]) -> bool {
    let mut at = 0;
    while at + 1 < bytes.len() {
        if bytes[at] != 0xFF {
            at += 1;
            continue;
        }
        match bytes[at + 1] {
            0xD9 => return true,
            // A fill byte: the marker's code is still to come.
            0xFF => at += 1,
            // Escaped 0xFF, TEM, restarts and start of image carry no length.
            0x00 | 0x01 | 0xD0..=0xD8 => at += 2,
            _ => match bytes.get(at + 2..at + 4) {
                Some(len) => at += 2 + usize::from(u16::from_be_bytes([len[0], len[1]])).max(2),
                None => return false,
            },
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn luma_weights_and_rounding() {
        assert_eq!(luma(&[255, 255, 255]), 255);
        // 0.299 * 255 = 76.2, 0.587 * 255 = 149.7, 0.114 * 255 = 29.07
        assert_eq!([luma(&[255, 0, 0]), luma(&[0, 255, 0]), luma(&[0, 0, 255])], [76, 150, 29]);
    }

    #[test]
    fn jpeg_end_is_found_by_markers_only() {
        // An end marker inside a segment (a thumbnail) does not count.
        let head = [0xFF, 0xD8, 0xFF, 0xE1, 0, 4, 0xFF, 0xD9, 0xFF, 0xDA, 0, 2, 1, 0xFF, 0, 2];
        assert!(!jpeg_is_complete(&head));
        let whole = [&head[..], &[0xFF, 0xD3, 7, 0xFF, 0xFF, 0xD9]].concat();
        assert!(jpeg_is_complete(&whole));
        assert!(!jpeg_is_complete(&whole[..whole.len() - 1]));
        assert!(!jpeg_is_complete(&[]));
    }
}
