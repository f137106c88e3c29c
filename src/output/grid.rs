//! Many images in one picture: rows and columns with a thin gap, white ground,
//! optional labels, a title above and a footer below.
//!
//! Tiny images are enlarged by a whole factor, each pixel as a square, so that
//! what the model made is seen as it is.

use std::path::Path;

use super::canvas::Canvas;
use super::text;
use crate::{Error, Result};

/// Cells smaller than this (in pixels) are enlarged towards it.
const CELL: usize = 64;
/// Room that a title or footer may claim beyond the images, in pixels.
const TEXT_WIDTH: usize = 460;
/// Widest row label in pixels; longer ones are shortened.
const LABEL_WIDTH: f32 = 180.0;

const GAP: usize = 2;
const MARGIN: usize = 10;
const TITLE_PX: f32 = 19.0;
const LABEL_PX: f32 = 15.0;
const FOOTER_PX: f32 = 13.0;
const INK: [u8; 3] = [34, 34, 34];
const FAINT_INK: [u8; 3] = [110, 110, 110];

/// A grid of equally sized images, filled row by row.
#[derive(Debug, Clone)]
pub struct Grid<'a> {
    /// The images, NHWC bytes.
    pub images: &'a [u8],
    /// Height of one image.
    pub height: usize,
    /// Width of one image.
    pub width: usize,
    /// 1 (grey) or 3 (RGB).
    pub channels: usize,
    /// Images in a row; the last row may be shorter.
    pub columns: usize,
    /// One label a row, at its left; fewer or none are fine.
    pub row_labels: Vec<String>,
    /// One label a column, above it; fewer or none are fine.
    pub column_labels: Vec<String>,
    /// A line above, wrapped if need be.
    pub title: Option<String>,
    /// Small print below, wrapped if need be.
    pub footer: Option<String>,
    /// Enlargement; `None` picks one that makes the cells about 64 pixels.
    pub scale: Option<usize>,
}

/// Where things lie on the canvas, in pixels.
struct Layout {
    rows: usize,
    scale: usize,
    /// Size of an enlarged image.
    cell: (usize, usize),
    /// Corner of the first cell.
    origin: (usize, usize),
    size: (usize, usize),
    title: Vec<String>,
    footer: Vec<String>,
    footer_y: usize,
}

impl<'a> Grid<'a> {
    /// A plain grid of `images` (NHWC bytes, `[height, width, channels]` each).
    pub fn new(images: &'a [u8], [height, width, channels]: [usize; 3], columns: usize) -> Self {
        Grid {
            images,
            height,
            width,
            channels,
            columns,
            row_labels: Vec::new(),
            column_labels: Vec::new(),
            title: None,
            footer: None,
            scale: None,
        }
    }

    /// Puts `labels` at the left of the rows.
    pub fn row_labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.row_labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Puts `labels` above the columns.
    pub fn column_labels<S: Into<String>>(mut self, labels: impl IntoIterator<Item = S>) -> Self {
        self.column_labels = labels.into_iter().map(Into::into).collect();
        self
    }

    /// Sets the line above.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Sets the small print below.
    pub fn footer(mut self, footer: impl Into<String>) -> Self {
        self.footer = Some(footer.into());
        self
    }

    /// Sets the enlargement.
    pub fn scale(mut self, scale: usize) -> Self {
        self.scale = Some(scale);
        self
    }

    /// Draws the grid.
    ///
    /// # Errors
    /// [`Error::Shape`] if the bytes are no whole number of images, there are more
    /// labels than rows or columns, or the picture would be too large.
    pub fn render(&self) -> Result<Canvas> {
        let layout = self.layout()?;
        let mut canvas = Canvas::new(layout.size.0, layout.size.1)?;
        self.draw_images(&mut canvas, &layout);
        self.draw_labels(&mut canvas, &layout);
        let mut y = MARGIN;
        for line in &layout.title {
            canvas.text((MARGIN, y), line, TITLE_PX, INK);
            y += line_height(TITLE_PX);
        }
        let mut y = layout.footer_y;
        for line in &layout.footer {
            canvas.text((MARGIN, y), line, FOOTER_PX, FAINT_INK);
            y += line_height(FOOTER_PX);
        }
        Ok(canvas)
    }

    /// Draws the grid and writes it as PNG with the `text` pairs inside.
    ///
    /// # Errors
    /// As [`Grid::render`] and [`super::image::save_png`].
    pub fn save(&self, path: &Path, text: &[(&str, &str)]) -> Result<()> {
        self.render()?.save_png(path, text)
    }

    /// Number of images; the sizes are checked here.
    fn count(&self) -> Result<usize> {
        let one = self.height.checked_mul(self.width).and_then(|n| n.checked_mul(self.channels));
        let sizes = format!(
            "{} bytes of {}x{}x{} images in {} columns",
            self.images.len(),
            self.height,
            self.width,
            self.channels,
            self.columns
        );
        match one {
            Some(n) if n > 0 && !self.images.is_empty() && self.images.len().is_multiple_of(n) => {
                if !matches!(self.channels, 1 | 3) {
                    return Err(Error::shape("grid", format!("{sizes}: 1 or 3 channels needed")));
                }
                if self.columns == 0 || self.scale == Some(0) {
                    return Err(Error::shape("grid", format!("{sizes}: columns and scale >= 1")));
                }
                Ok(self.images.len() / n)
            }
            _ => Err(Error::shape("grid", format!("{sizes}: one or more whole images needed"))),
        }
    }

    fn layout(&self) -> Result<Layout> {
        let count = self.count()?;
        let columns = self.columns.min(count);
        let rows = count.div_ceil(self.columns);
        for (what, labels, cells) in
            [("row", &self.row_labels, rows), ("column", &self.column_labels, columns)]
        {
            if labels.len() > cells {
                let detail = format!("{} {what} labels for {cells} {what}s", labels.len());
                return Err(Error::shape("grid", detail));
            }
        }
        let longest = self.height.max(self.width);
        let scale = self.scale.unwrap_or((CELL / longest).max(1));
        let too_large = || Error::shape("grid", format!("scale {scale} makes it too large"));
        let side = |n: usize| n.checked_mul(scale).filter(|&s| s < 1 << 24).ok_or_else(too_large);
        let cell = (side(self.width)?, side(self.height)?);

        let label_width =
            |labels: &[String]| labels.iter().map(|l| text::width(l, LABEL_PX)).fold(0.0, f32::max);
        let left = match label_width(&self.row_labels).min(LABEL_WIDTH).ceil() as usize {
            0 => 0,
            w => w + 8,
        };
        let grid_width = left + columns * (cell.0 + GAP) - GAP;
        let widest = |line: &Option<String>, px| {
            line.as_deref().map_or(0, |l| text::width(l, px).ceil() as usize).min(TEXT_WIDTH)
        };
        let inner =
            grid_width.max(widest(&self.title, TITLE_PX)).max(widest(&self.footer, FOOTER_PX));
        let wrap = |line: &Option<String>, px| {
            line.as_deref().map_or(Vec::new(), |l| text::wrap(l, px, inner as f32))
        };
        let title = wrap(&self.title, TITLE_PX);
        let footer = wrap(&self.footer, FOOTER_PX);

        let mut top = MARGIN;
        if !title.is_empty() {
            top += title.len() * line_height(TITLE_PX) + 4;
        }
        if !self.column_labels.is_empty() {
            top += line_height(LABEL_PX) + 2;
        }
        let bottom = top + rows * (cell.1 + GAP) - GAP;
        let footer_y = bottom + 7;
        let end = if footer.is_empty() {
            bottom
        } else {
            footer_y + footer.len() * line_height(FOOTER_PX) - 3
        };
        Ok(Layout {
            rows,
            scale,
            cell,
            origin: (MARGIN + left, top),
            size: (MARGIN + inner + MARGIN, end + MARGIN),
            title,
            footer,
            footer_y,
        })
    }

    fn draw_images(&self, canvas: &mut Canvas, layout: &Layout) {
        let one = self.height * self.width * self.channels;
        for (i, image) in self.images.chunks_exact(one).enumerate() {
            let corner = layout.corner(i / self.columns, i % self.columns);
            canvas.blit(corner, image, (self.width, self.channels), layout.scale);
        }
    }

    fn draw_labels(&self, canvas: &mut Canvas, layout: &Layout) {
        for (row, label) in self.row_labels.iter().enumerate().take(layout.rows) {
            let label = text::shorten(label, LABEL_PX, LABEL_WIDTH);
            // Against the right edge of the label column, centred on the cell.
            let width = text::width(&label, LABEL_PX).ceil() as usize;
            let (x, y) = layout.corner(row, 0);
            let y = (y + layout.cell.1 / 2).saturating_sub(line_height(LABEL_PX) / 2);
            canvas.text((x.saturating_sub(8 + width), y), &label, LABEL_PX, INK);
        }
        let most = layout.cell.0 as f32;
        for (column, label) in self.column_labels.iter().enumerate() {
            let label = text::shorten(label, LABEL_PX, most);
            let (x, y) = layout.corner(0, column);
            let inset = ((most - text::width(&label, LABEL_PX)) / 2.0).max(0.0) as usize;
            canvas.text((x + inset, y - line_height(LABEL_PX) - 2), &label, LABEL_PX, INK);
        }
    }
}

impl Layout {
    fn corner(&self, row: usize, column: usize) -> (usize, usize) {
        (self.origin.0 + column * (self.cell.0 + GAP), self.origin.1 + row * (self.cell.1 + GAP))
    }
}

fn line_height(px: f32) -> usize {
    (px * 1.15).ceil() as usize
}
