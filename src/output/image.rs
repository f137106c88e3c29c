//! Model output to bytes, and bytes to PNG files that say how they were made.
//!
//! The reference truncates when it converts to uint8; this crate rounds to the
//! nearest level, so that an image that goes through the network's range and
//! back comes out unchanged.

#[cfg(feature = "files")]
use std::io::{BufReader, Cursor};
#[cfg(feature = "files")]
use std::path::Path;

#[cfg(feature = "files")]
use crate::files::atomic;
use crate::{Error, Result};

/// Model range [-1, 1] to bytes: `round(clamp((x + 1) * 127.5, 0, 255))`. NaN becomes 0.
pub fn to_u8(x: &[f32]) -> Vec<u8> {
    x.iter().map(|&v| ((v + 1.0) * 127.5).clamp(0.0, 255.0).round() as u8).collect()
}

/// Bytes to the model range: `x / 127.5 - 1`.
pub fn from_u8(x: &[u8]) -> Vec<f32> {
    x.iter().map(|&v| f32::from(v) / 127.5 - 1.0).collect()
}

/// Mean of the squared differences between `a` and `b`, of equal length.
pub fn mean_squared_error(a: &[f32], b: &[f32]) -> f64 {
    let square = |(x, y): (&f32, &f32)| (f64::from(*x) - f64::from(*y)).powi(2);
    a.iter().zip(b).map(square).sum::<f64>() / a.len().max(1) as f64
}

/// Peak signal-to-noise ratio of images in -1..=1, in dB over all of them.
pub fn psnr(a: &[f32], b: &[f32]) -> f64 {
    10.0 * (4.0 / mean_squared_error(a, b).max(1e-12)).log10()
}

/// Writes `pixels` (HWC, `channels` 1 = grey or 3 = RGB) as a PNG file, with the
/// `text` pairs as tEXt chunks (iTXt where a value goes beyond Latin-1).
///
/// # Errors
/// [`Error::Shape`] if the sizes disagree, [`Error::Config`] for a key that PNG
/// does not allow, [`Error::Io`] if the file cannot be written.
#[cfg(feature = "files")]
pub fn save_png(
    path: &Path,
    pixels: &[u8],
    width: usize,
    height: usize,
    channels: usize,
    text: &[(&str, &str)],
) -> Result<()> {
    atomic::write(path, &encode_png(pixels, width, height, channels, text)?)
}

/// The bytes that [`save_png`] writes.
///
/// # Errors
/// As [`save_png`], except for the file.
pub fn encode_png(
    pixels: &[u8],
    width: usize,
    height: usize,
    channels: usize,
    text: &[(&str, &str)],
) -> Result<Vec<u8>> {
    let (w, h, color) = check_image(pixels.len(), width, height, channels)?;
    let mut bytes = Vec::new();
    let mut encoder = png::Encoder::new(&mut bytes, w, h);
    encoder.set_color(color);
    encoder.set_depth(png::BitDepth::Eight);
    for &(key, value) in text {
        check_text(key, value)?;
        let (key, value) = (key.to_owned(), value.to_owned());
        if value.chars().all(|c| u32::from(c) <= 0xff) {
            encoder.add_text_chunk(key, value).map_err(encoding)?;
        } else {
            encoder.add_itxt_chunk(key, value).map_err(encoding)?;
        }
    }
    let mut writer = encoder.write_header().map_err(encoding)?;
    writer.write_image_data(pixels).map_err(encoding)?;
    writer.finish().map_err(encoding)?;
    Ok(bytes)
}

/// The (key, value) texts stored in a PNG file, Latin-1 ones first.
///
/// # Errors
/// [`Error::Io`] if it cannot be read, [`Error::File`] if it is not a sound PNG.
#[cfg(feature = "files")]
pub fn read_png_text(path: &Path) -> Result<Vec<(String, String)>> {
    let bytes = std::fs::read(path).map_err(|e| Error::io("read", path, e))?;
    let bad = |e: png::DecodingError| Error::file(path, format!("not a usable PNG: {e}"));
    let reader = png::Decoder::new(BufReader::new(Cursor::new(bytes))).read_info().map_err(bad)?;
    let info = reader.info();
    let mut out: Vec<(String, String)> = info
        .uncompressed_latin1_text
        .iter()
        .map(|chunk| (chunk.keyword.clone(), chunk.text.clone()))
        .collect();
    for chunk in &info.utf8_text {
        out.push((chunk.keyword.clone(), chunk.get_text().map_err(bad)?));
    }
    Ok(out)
}

fn check_image(
    len: usize,
    width: usize,
    height: usize,
    channels: usize,
) -> Result<(u32, u32, png::ColorType)> {
    let shape = || format!("{len} bytes for an image of {height}x{width}x{channels}");
    let color = match channels {
        1 => png::ColorType::Grayscale,
        3 => png::ColorType::Rgb,
        _ => return Err(Error::shape("png", format!("{}: 1 or 3 channels are needed", shape()))),
    };
    let needed = width.checked_mul(height).and_then(|n| n.checked_mul(channels));
    if len == 0 || needed != Some(len) {
        return Err(Error::shape("png", format!("{}: the product must match, above 0", shape())));
    }
    match (u32::try_from(width), u32::try_from(height)) {
        (Ok(w), Ok(h)) => Ok((w, h, color)),
        _ => Err(Error::shape("png", format!("{}: a side is too long for PNG", shape()))),
    }
}

/// PNG keys are 1 to 79 printable Latin-1 characters; values hold no NUL.
fn check_text(key: &str, value: &str) -> Result<()> {
    let printable = |c: char| matches!(u32::from(c), 0x20..=0x7e | 0xa1..=0xff);
    let spaced = key.starts_with(' ') || key.ends_with(' ') || key.contains("  ");
    if !(1..=79).contains(&key.chars().count()) || !key.chars().all(printable) || spaced {
        return Err(Error::Config(format!(
            "PNG text key {key:?}: 1 to 79 printable Latin-1 characters without \
             outer or double spaces are needed"
        )));
    }
    if value.contains('\0') {
        return Err(Error::Config(format!("PNG text {key:?}: the value holds a NUL character")));
    }
    Ok(())
}

fn encoding(e: png::EncodingError) -> Error {
    Error::Config(format!("PNG encoding: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn psnr_of_a_known_error() {
        // A tenth of the range of 2: 20 dB.
        assert!((psnr(&[0.0; 4], &[0.2; 4]) - 20.0).abs() < 1e-4);
    }
}
