//! Text with the embedded font: measuring, wrapping, drawing. No system fonts.
//!
//! The font is a subset of DejaVu Sans (Latin-1 and a few signs); its licence
//! lies beside it in assets/DejaVu-LICENSE.txt.

use std::sync::LazyLock;

use ab_glyph::{Font, FontRef, PxScale, ScaleFont, point};

/// The font file, also registered with the plotting library.
pub const FONT_BYTES: &[u8] = include_bytes!("../../assets/DejaVuSans-subset.ttf");

static FONT: LazyLock<FontRef<'static>> =
    LazyLock::new(|| FontRef::try_from_slice(FONT_BYTES).expect("the embedded font is sound"));

/// Advance width of one line of `text` in pixels, at a font height of `px` pixels.
pub fn width(text: &str, px: f32) -> f32 {
    let mut end = 0.0;
    lay_out(text, px, |_, x, advance| end = x + advance);
    end
}

/// Calls `put(x, y, coverage)` for the pixels of one line whose top left corner
/// is the origin; the line box is `px` pixels high.
pub fn draw(text: &str, px: f32, mut put: impl FnMut(i32, i32, f32)) {
    let font = FONT.as_scaled(px);
    let baseline = font.ascent().round();
    lay_out(text, px, |id, x, _| {
        let glyph = id.with_scale_and_position(PxScale::from(px), point(x, baseline));
        if let Some(outline) = FONT.outline_glyph(glyph) {
            let min = outline.px_bounds().min;
            outline.draw(|gx, gy, coverage| {
                put(min.x as i32 + gx as i32, min.y as i32 + gy as i32, coverage.min(1.0));
            });
        }
    });
}

/// Splits `text` at spaces (and inside words that alone are too long) into lines
/// no wider than `max` pixels.
pub fn wrap(text: &str, px: f32, max: f32) -> Vec<String> {
    let mut lines = Vec::new();
    for paragraph in text.lines() {
        let mut line = String::new();
        for word in paragraph.split_whitespace() {
            let joined = if line.is_empty() { word.to_owned() } else { format!("{line} {word}") };
            if width(&joined, px) <= max {
                line = joined;
                continue;
            }
            if !line.is_empty() {
                lines.push(std::mem::take(&mut line));
            }
            for c in word.chars() {
                line.push(c);
                if width(&line, px) > max && line.chars().count() > 1 {
                    line.pop();
                    lines.push(std::mem::replace(&mut line, c.to_string()));
                }
            }
        }
        lines.push(line);
    }
    lines
}

/// `text`, or as much of its start as fits into `max` pixels, followed by "…".
pub fn shorten(text: &str, px: f32, max: f32) -> String {
    if width(text, px) <= max {
        return text.to_owned();
    }
    let most = max.max(0.0) as usize; // no glyph that matters is under a pixel wide
    let mut kept: Vec<char> = text.chars().take(most).collect();
    while kept.pop().is_some() {
        let short: String = kept.iter().chain(&['…']).collect();
        if width(&short, px) <= max {
            return short;
        }
    }
    String::new()
}

fn lay_out(text: &str, px: f32, mut each: impl FnMut(ab_glyph::GlyphId, f32, f32)) {
    let font = FONT.as_scaled(px);
    let mut x = 0.0;
    let mut previous = None;
    for c in text.chars() {
        let id = font.glyph_id(if c.is_control() { ' ' } else { c });
        if let Some(p) = previous {
            x += font.kern(p, id);
        }
        each(id, x, font.h_advance(id));
        x += font.h_advance(id);
        previous = Some(id);
    }
}
