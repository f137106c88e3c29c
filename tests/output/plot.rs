//! Plots of losses.

use crate::support::*;
use demist::output::plot::{self, Series, Style};
use std::path::Path;

/// Draws a plot and returns its pixels.
fn plotted(draw: impl Fn(&Path) -> demist::Result<()>) -> image::RgbImage {
    let dir = temp();
    let path = dir.path().join("plot.png");
    draw(&path).unwrap();
    let picture = image::open(&path).unwrap().to_rgb8();
    assert_eq!(picture.dimensions(), (900, 500));
    picture
}

/// Rows (y) of the pixels in column `x` that have the full colour of series 0.
fn strong(picture: &image::RgbImage, x: u32) -> Vec<u32> {
    (0..500).filter(|&y| picture.get_pixel(x, y).0 == [0, 114, 178]).collect()
}

#[test]
fn a_line_goes_where_its_points_say() {
    // y = x from 0 to 10: the line rises evenly across the plotting area.
    let points: Vec<(f64, f64)> = (0..=10).map(|i| (f64::from(i), f64::from(i))).collect();
    let picture = plotted(|p| {
        let line = Series { name: "line", points: points.clone(), style: Style::Strong(0) };
        plot::line_plot(p, "Title", "x", "y", &[line])
    });
    let middle = |x| {
        let rows = strong(&picture, x);
        assert!(!rows.is_empty(), "no line at {x}");
        f64::from(rows.iter().sum::<u32>()) / rows.len() as f64
    };
    let (a, b, c) = (middle(200), middle(450), middle(700));
    assert!(a > b && b > c);
    assert!(((a - b) - (b - c)).abs() < 2.0, "{a} {b} {c}");
    let labels = (0..70).flat_map(|x| (0..450).map(move |y| (x, y)));
    assert!(labels.filter(|&(x, y)| picture.get_pixel(x, y).0[0] < 130).count() > 60);
}

#[test]
fn a_wide_range_is_logarithmic() {
    // 10^-x is straight on a logarithmic axis only.
    let points: Vec<(f64, f64)> =
        (0..=100).map(|i| (f64::from(i), 10f64.powf(-f64::from(i) / 20.0))).collect();
    let picture = plotted(|p| {
        let line = Series { name: "line", points: points.clone(), style: Style::Strong(0) };
        plot::line_plot(p, "Title", "x", "y", &[line])
    });
    let at = |x| f64::from(strong(&picture, x)[0]);
    let (a, b, c) = (at(200), at(450), at(700));
    assert!(a < b && ((b - a) - (c - b)).abs() < 3.0, "{a} {b} {c}");
}

#[test]
fn rows_that_are_not_finite_change_nothing() {
    let clean: Vec<(f64, f64)> = (1..50).map(|i| (f64::from(i), 1.0 / f64::from(i))).collect();
    let mut dirty = clean.clone();
    dirty.insert(3, (3.5, f64::NAN));
    dirty.insert(9, (8.5, f64::INFINITY));
    dirty.push((f64::NAN, 1.0));
    dirty.push((60.0, f64::NEG_INFINITY));
    assert_eq!(plot::smooth(&clean), plot::smooth(&dirty));
    let draw = |rows: &[(f64, f64)]| plotted(|p| plot::loss_plot(p, "Loss", rows, None));
    assert_eq!(draw(&clean), draw(&dirty));
}

#[test]
fn few_and_extreme_rows_make_a_plot() {
    let one = plotted(|p| plot::loss_plot(p, "One", &[(3.0, 0.5)], None));
    assert!((80..870).any(|x| strong(&one, x).len() > 4), "a dot");
    let none = plotted(|p| plot::loss_plot(p, "None", &[], None));
    assert_eq!(none, plotted(|p| plot::loss_plot(p, "None", &[(1.0, f64::NAN)], None)));
    for rows in [
        vec![(0.0, 0.0), (1.0, 0.0)],
        vec![(0.0, -5.0), (1.0, 100.0)],
        vec![(0.0, 1e-300), (1.0, 1e299)],
        vec![(0.0, -1e299), (1.0, 1e299), (2.0, f64::MAX)],
        vec![(5.0, 1e15), (5.0, 1e15 + 1.0)],
        vec![(0.0, f64::MIN_POSITIVE / 1e10), (1e18, 1.0)],
    ] {
        plotted(|p| plot::loss_plot(p, "Extreme\ntitle \u{4e00}", &rows, None));
    }
    let many: Vec<(f64, f64)> =
        (0..300_000).map(|i| (f64::from(i), 1.0 + f64::from(i % 7))).collect();
    plotted(|p| plot::loss_plot(p, "Many", &many, None));
}

#[test]
fn smoothing_keeps_levels_and_does_not_lag() {
    let flat: Vec<(f64, f64)> = (0..500).map(|i| (f64::from(i), 3.0)).collect();
    assert!(plot::smooth(&flat).iter().all(|(_, y)| (y - 3.0).abs() < 1e-12));
    let slope: Vec<(f64, f64)> = (0..600).map(|i| (f64::from(i), f64::from(i))).collect();
    let (x, y) = plot::smooth(&slope)[300];
    assert_eq!(x, 300.0);
    assert!((y - 300.0).abs() < 1e-3, "a straight line stays where it is: {y}");
    let saw: Vec<(f64, f64)> = (0..600).map(|i| (f64::from(i), f64::from(i % 2))).collect();
    assert!((plot::smooth(&saw)[301].1 - 0.5).abs() < 0.06);
}
