//! Bar charts as PNG: one horizontal bar a row, with its name on the left and a
//! remark on the right.

use super::{Canvas, text};
use crate::Result;
use std::path::Path;

/// One row of a chart.
#[derive(Debug, Clone)]
pub struct Bar {
    /// Name.
    pub label: String,
    /// Length; less than zero and NaN count as zero.
    pub value: f64,
    /// Written behind the bar.
    pub remark: String,
}

const INK: [u8; 3] = [34, 34, 34];
const GRID: [u8; 3] = [226, 226, 226];
const BLUE: [u8; 3] = [0, 114, 178];

const FONT: f32 = 15.0;
const MARGIN: usize = 16;
/// Height of the title, of a row, and of the axis below.
const ROWS: [usize; 3] = [52, 28, 48];
/// Length of the axis.
const AXIS: usize = 420;
/// Marks on the axis up to its usual end, and at most.
const MARKS: [f64; 2] = [4.0, 12.0];

/// Writes a chart of `bars` on an axis from 0 to `end`, or as far beyond as the
/// longest of them goes.
///
/// # Errors
/// [`crate::Error::Shape`] if there are more bars than a picture can hold,
/// [`crate::Error::Io`] if `path` cannot be written.
pub fn bar_chart(path: &Path, title: &str, axis: &str, end: f64, bars: &[Bar]) -> Result<()> {
    let wide = |of: fn(&Bar) -> &str| {
        bars.iter().map(|b| text::width(of(b), FONT).ceil() as usize).max().unwrap_or(0)
    };
    let length = |b: &Bar| if b.value.is_finite() { b.value.max(0.0) } else { 0.0 };
    let longest = bars.iter().map(length).fold(end, f64::max).max(f64::MIN_POSITIVE);
    let step = (end / MARKS[0]).max(longest / MARKS[1]);
    let marks = (longest / step).ceil();
    let pixels = |value: f64| (AXIS as f64 * value / (step * marks)).round() as usize;
    let left = MARGIN + wide(|b| &b.label) + 12;
    let width = (left + AXIS + 12 + wide(|b| &b.remark))
        .max(text::width(title, 20.0).ceil() as usize + MARGIN)
        + MARGIN;
    let [top, row, foot] = ROWS;
    let bottom = top + row * bars.len();
    let mut canvas = Canvas::new(width, bottom + foot)?;
    canvas.text((MARGIN, MARGIN), title, 20.0, INK);
    for i in 0..=marks as usize {
        let value = step * i as f64;
        let x = left + pixels(value);
        canvas.fill((x, top - 4), (1, bottom - top + 8), GRID);
        let name = format!("{}", (value * 100.0).round() / 100.0);
        let half = text::width(&name, FONT) as usize / 2;
        canvas.text((x - half, bottom + 6), &name, FONT, INK);
    }
    canvas.text((left, bottom + 26), axis, FONT, INK);
    for (i, b) in bars.iter().enumerate() {
        let y = top + i * row;
        let long = pixels(length(b)).max(1);
        canvas.text((MARGIN, y + 6), &b.label, FONT, INK);
        canvas.fill((left, y + 4), (long, row - 8), BLUE);
        canvas.text((left + long + 8, y + 6), &b.remark, FONT, INK);
    }
    canvas.save_png(path, &[("Title", title)])
}
