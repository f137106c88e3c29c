//! Line plots as PNG, 900x500: the loss while training, and any other series.
//!
//! The chart is drawn three times as large and averaged down, which gives
//! smooth lines and text. A y range of more than a decade is drawn on a
//! logarithmic axis. Rows that are not finite are left out.

use std::path::Path;
use std::sync::LazyLock;

use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

use super::axis::Axis;
use super::{image, text};
use crate::{Error, Result};

/// Width of a plot in pixels.
pub const WIDTH: usize = 900;
/// Height of a plot in pixels.
pub const HEIGHT: usize = 500;
/// Supersampling factor.
const SCALE: usize = 3;

/// How a series is drawn; the number picks the colour, so that raw and smoothed
/// values of one quantity can share it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// Thin and pale: raw, noisy values.
    Faint(usize),
    /// Thick and full: what the eye should follow.
    Strong(usize),
}

/// One line of a plot.
#[derive(Debug, Clone)]
pub struct Series<'a> {
    /// Name in the legend.
    pub name: &'a str,
    /// (x, y) in drawing order; pairs that are not finite are left out.
    pub points: Vec<(f64, f64)>,
    /// Colour and weight.
    pub style: Style,
}

/// Plots raw (pale) and smoothed loss against the step, and the losses of a
/// validation set if there are any.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be written.
pub fn loss_plot(
    path: &Path,
    title: &str,
    rows: &[(f64, f64)],
    validation: Option<Vec<(f64, f64)>>,
) -> Result<()> {
    let mut series = vec![
        Series { name: "loss", points: rows.to_vec(), style: Style::Faint(0) },
        Series { name: "smoothed", points: smooth(rows), style: Style::Strong(0) },
    ];
    series.extend(validation.map(|points| Series {
        name: "validation",
        points,
        style: Style::Strong(1),
    }));
    line_plot(path, title, "step", "loss", &series)
}

/// Writes a plot of `series` to `path`.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be written.
pub fn line_plot(
    path: &Path,
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
) -> Result<()> {
    let (width, height) = (WIDTH * SCALE, HEIGHT * SCALE);
    let mut pixels = vec![255; width * height * 3];
    draw(&mut pixels, title, x_label, y_label, series)
        .map_err(|e| Error::Config(format!("plot {title:?}: {e}")))?;
    image::save_png(path, &shrink(&pixels, width), WIDTH, HEIGHT, 3, &[("Title", &clean(title))])
}

/// Smooths the finite rows with exponentially falling weights on both sides: an
/// exponential moving average that does not lag behind a falling loss. The window
/// is a sixtieth of the rows, 2 to 40.
pub fn smooth(rows: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let rows = finite(rows);
    let decay = 1.0 - 1.0 / (rows.len() as f64 / 60.0).clamp(2.0, 40.0);
    let before = weighted_sums(rows.iter(), decay);
    let mut after = weighted_sums(rows.iter().rev(), decay);
    after.reverse();
    // Both sums hold the row itself, with weight 1.
    let mean = |y: f64, b: &(f64, f64), a: &(f64, f64)| (b.0 + a.0 - y) / (b.1 + a.1 - 1.0);
    rows.iter().zip(before.iter().zip(&after)).map(|(&(x, y), (b, a))| (x, mean(y, b, a))).collect()
}

/// For each row, the sum of the values up to it and of their weights, which fall
/// by `decay` a row.
fn weighted_sums<'a>(rows: impl Iterator<Item = &'a (f64, f64)>, decay: f64) -> Vec<(f64, f64)> {
    rows.scan((0.0, 0.0), |(sum, weight), (_, y)| {
        *sum = decay * *sum + y;
        *weight = decay * *weight + 1.0;
        Some((*sum, *weight))
    })
    .collect()
}

fn draw(
    pixels: &mut [u8],
    title: &str,
    x_label: &str,
    y_label: &str,
    series: &[Series],
) -> std::result::Result<(), Box<dyn std::error::Error>> {
    LazyLock::force(&FONT);
    let px = |n: usize| (n * SCALE) as u32;
    let area = BitMapBackend::with_buffer(pixels, (px(WIDTH), px(HEIGHT))).into_drawing_area();
    area.fill(&WHITE)?;

    let lines: Vec<Vec<(f64, f64)>> = series.iter().map(|s| finite(&s.points)).collect();
    let all: Vec<(f64, f64)> = lines.iter().flatten().copied().collect();
    let empty = all.is_empty();
    let (xs, ys): (Vec<f64>, Vec<f64>) =
        if empty { ([0.0, 1.0].into(), [0.0, 1.0].into()) } else { all.into_iter().unzip() };
    let x_axis = Axis::new(&xs, false, 0.0, 8);
    let y_axis = Axis::new(&ys, true, 0.04, 6);
    let legend = free_corner(&lines, &x_axis, &y_axis);

    let font = |size| ("sans-serif", px(size)).into_font();
    let centred = Pos::new(HPos::Center, VPos::Center);
    let (head, body) = area.split_vertically(px(46));
    let middle = (px(WIDTH / 2) as i32, px(26) as i32);
    head.draw(&Text::new(clean(title), middle, font(20).color(&INK).pos(centred)))?;
    let mut chart = ChartBuilder::on(&body)
        .margin(px(12))
        .margin_top(0)
        .margin_right(px(28))
        .x_label_area_size(px(50))
        .y_label_area_size(px(70))
        .build_cartesian_2d(x_axis, y_axis)?;
    chart
        .configure_mesh()
        .bold_line_style(RGBColor(226, 226, 226).stroke_width(px(1)))
        .light_line_style(TRANSPARENT)
        .axis_style(RGBColor(120, 120, 120).stroke_width(px(1)))
        .x_label_style(font(14).color(&INK))
        .y_label_style(font(14).color(&INK))
        .set_all_tick_mark_size(px(5))
        .axis_desc_style(font(15).color(&INK))
        .x_desc(clean(x_label))
        .y_desc(clean(y_label))
        .draw()?;

    for (s, points) in series.iter().zip(&lines) {
        let style = stroke(s.style);
        let points = thin(points);
        let line = match points[..] {
            // A line needs two points; one is shown as a dot.
            [only] => chart.draw_series([Circle::new(only, px(4), style.filled())])?,
            _ => chart.draw_series(LineSeries::new(points, style))?,
        };
        line.label(s.name).legend(move |(x, y)| {
            let wide = style.stroke_width(style.stroke_width.max(px(2)));
            PathElement::new([(x, y), (x + px(22) as i32, y)], wide)
        });
    }
    if empty {
        let middle = (0.5, 0.5);
        chart.draw_series([Text::new(
            "no finite values yet",
            middle,
            font(16).color(&INK).pos(centred),
        )])?;
    } else if series.len() > 1 {
        chart
            .configure_series_labels()
            .position(legend)
            .legend_area_size(px(30))
            .margin(px(8))
            .label_font(font(14).color(&INK))
            .background_style(WHITE.mix(0.85))
            .border_style(RGBColor(200, 200, 200).stroke_width(px(1)))
            .draw()?;
    }
    area.present()?;
    Ok(())
}

/// The corner where a legend hides least of the lines.
fn free_corner(lines: &[Vec<(f64, f64)>], x: &Axis, y: &Axis) -> SeriesLabelPosition {
    use SeriesLabelPosition::{LowerLeft, LowerRight, UpperLeft, UpperRight};
    // A grid over the plot, and how much of it the legend takes.
    const GRID: i32 = 1000;
    const WIDE: i32 = 220;
    const HIGH: i32 = 230;
    // Points between the ends of a segment: lines hide behind it too.
    const BETWEEN: i32 = 40;
    let place = |&(a, b): &(f64, f64)| (x.map(&a, (0, GRID)), y.map(&b, (0, GRID)));
    let mut hidden = [0usize; 4];
    let mut count = |(at, up): (i32, i32)| {
        let (right, left) = (at > GRID - WIDE, at < WIDE);
        let (upper, lower) = (up > GRID - HIGH, up < HIGH);
        let inside = [right && upper, left && upper, left && lower, right && lower];
        hidden.iter_mut().zip(inside).for_each(|(n, inside)| *n += usize::from(inside));
    };
    for line in lines.iter().map(|line| thin(line)) {
        line.first().map(place).into_iter().for_each(&mut count);
        for ends in line.windows(2) {
            let ((x0, y0), (x1, y1)) = (place(&ends[0]), place(&ends[1]));
            let between = |a: i32, b: i32, i: i32| a + (b - a) * i / BETWEEN;
            (1..=BETWEEN).for_each(|i| count((between(x0, x1, i), between(y0, y1, i))));
        }
    }
    let corners = [UpperRight, UpperLeft, LowerLeft, LowerRight];
    let best = corners.into_iter().zip(hidden).min_by_key(|(_, hidden)| *hidden);
    best.map_or(UpperRight, |(corner, _)| corner)
}

const INK: RGBColor = RGBColor(34, 34, 34);

/// Colours that colour-blind readers can tell apart (Okabe and Ito, 2008).
const PALETTE: [RGBColor; 6] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
];

static FONT: LazyLock<()> = LazyLock::new(|| {
    // Fails only on an unsound font file, which the text module would meet too.
    let _ = plotters::style::register_font("sans-serif", FontStyle::Normal, text::FONT_BYTES);
});

fn stroke(style: Style) -> ShapeStyle {
    let color = |i: usize| PALETTE[i % PALETTE.len()];
    match style {
        Style::Faint(i) => color(i).mix(0.45).stroke_width(SCALE as u32),
        Style::Strong(i) => color(i).stroke_width(2 * SCALE as u32),
    }
}

fn finite(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    // Also leaves out what is so large that the axis arithmetic would overflow.
    let usable = |v: f64| v.abs() < 1e300;
    points.iter().copied().filter(|&(x, y)| usable(x) && usable(y)).collect()
}

/// Plotters treats a line break as the end of the text: keep titles on one line.
fn clean(line: &str) -> String {
    line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Keeps the lowest and the highest of every bucket of points once there are
/// many more than pixel columns: the picture stays the same.
fn thin(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let bucket = points.len() / (2 * WIDTH);
    if bucket < 3 {
        return points.to_vec();
    }
    let mut out = Vec::with_capacity(4 * WIDTH + 2);
    for part in points.chunks(bucket) {
        let by_y = |a: &&(f64, f64), b: &&(f64, f64)| a.1.total_cmp(&b.1);
        let low = part.iter().min_by(by_y);
        let high = part.iter().max_by(by_y);
        if let (Some(&a), Some(&b)) = (low, high) {
            let first_low = a.0 <= b.0;
            out.extend(if first_low { [a, b] } else { [b, a] });
        }
    }
    out
}

/// Averages blocks of SCALE x SCALE pixels.
fn shrink(pixels: &[u8], width: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(WIDTH * HEIGHT * 3);
    for y in 0..HEIGHT {
        for x in 0..WIDTH {
            for c in 0..3 {
                let sum: usize = (0..SCALE * SCALE)
                    .map(|i| {
                        let (row, column) = (y * SCALE + i / SCALE, x * SCALE + i % SCALE);
                        usize::from(pixels[(row * width + column) * 3 + c])
                    })
                    .sum();
                out.push((sum / (SCALE * SCALE)) as u8);
            }
        }
    }
    out
}
