//! Axes of a plot: the range, where the ticks go and what stands beside them.

use std::ops::Range;

use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, Ranged, ValueFormatter};

/// One axis, linear or logarithmic.
#[derive(Debug, Clone)]
pub struct Axis {
    /// Ends, as log10 if the axis is logarithmic.
    lo: f64,
    hi: f64,
    log: bool,
    ticks: Vec<f64>,
}

impl Axis {
    /// The axis for `values` (finite, at least one) with `pad` of the range added at
    /// both ends and about `count` ticks; logarithmic if `may_log`, all values are
    /// positive and they span more than a decade.
    pub fn new(values: &[f64], may_log: bool, pad: f64, count: usize) -> Self {
        let lo = values.iter().copied().fold(f64::INFINITY, f64::min);
        let hi = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let log = may_log && lo > 0.0 && hi / lo > 10.0;
        let (lo, hi) = if log { (lo.log10(), hi.log10()) } else { (lo, hi) };
        let (lo, hi) = widen(lo, hi, pad);
        let ticks = if log { log_ticks(lo, hi) } else { nice_ticks(lo, hi, count) };
        Axis { lo, hi, log, ticks }
    }
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let at = if self.log { value.log10() } else { *value };
        let part = (at - self.lo) / (self.hi - self.lo);
        limit.0 + (f64::from(limit.1 - limit.0) * part).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.clone()
    }

    fn range(&self) -> Range<f64> {
        if self.log { 10f64.powf(self.lo)..10f64.powf(self.hi) } else { self.lo..self.hi }
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        let gap = self.ticks.windows(2).map(|w| w[1] - w[0]).fold(f64::INFINITY, f64::min);
        number(*value, if self.log || gap.is_infinite() { 0.0 } else { gap })
    }
}

/// Adds `pad` of the range at both ends, and makes an empty range a real one.
fn widen(lo: f64, hi: f64, pad: f64) -> (f64, f64) {
    let range = hi - lo;
    // Also true where the values are so large that the range is lost in rounding.
    if range <= lo.abs().max(hi.abs()) * 1e-9 || range == 0.0 {
        let half = (lo.abs() * 0.5).max(0.5);
        return (lo - half, hi + half);
    }
    (lo - range * pad, hi + range * pad)
}

/// About `count` ticks at 1, 2 or 5 times a power of ten.
fn nice_ticks(lo: f64, hi: f64, count: usize) -> Vec<f64> {
    let raw = (hi - lo) / count as f64;
    let power = 10f64.powf(raw.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|&s| s >= raw * 0.999);
    let Some(step) = step.filter(|s| s.is_finite() && *s > 0.0) else { return vec![lo, hi] };
    let first = (lo / step).ceil() as i64;
    let last = (hi / step).floor() as i64;
    (first..=last).take(4 * count).map(|i| i as f64 * step).collect()
}

/// Ticks between 10^lo and 10^hi: decades, with 2 and 5 between them if there are few.
fn log_ticks(lo: f64, hi: f64) -> Vec<f64> {
    let decades = hi - lo;
    let every = (decades / 8.0).ceil().max(1.0) as i64;
    let parts: &[f64] = if decades < 3.0 { &[1.0, 2.0, 5.0] } else { &[1.0] };
    let first = lo.floor() as i64;
    (first..=hi.ceil() as i64)
        .filter(|d| d.rem_euclid(every) == 0)
        .flat_map(|d| parts.iter().map(move |p| d as f64 + p.log10()))
        .filter(|t| (lo..=hi).contains(t))
        .map(|t| 10f64.powf(t))
        .collect()
}

/// A short label: as many digits as `step` needs (0 = up to three significant
/// ones), thousands as k and M, very small and very large values as powers.
fn number(v: f64, step: f64) -> String {
    if v.abs() < step * 1e-6 || v == 0.0 {
        return "0".into();
    }
    let (value, unit, step) = match v.abs().max(step) {
        a if a >= 1e9 => return format!("{v:.1e}"),
        a if a >= 1e6 => (v / 1e6, "M", step / 1e6),
        a if a >= 1e4 => (v / 1e3, "k", step / 1e3),
        a if a < 1e-3 && step == 0.0 => return format!("{v:.0e}"),
        _ if step > 0.0 && step < 1e-5 => return format!("{v:.2e}"),
        _ => (v, "", step),
    };
    let unit_step = if step > 0.0 { step } else { value.abs() / 100.0 };
    let digits = (-unit_step.log10().floor()).clamp(0.0, 8.0) as usize;
    let fixed = format!("{value:.digits$}");
    let short = if fixed.contains('.') {
        fixed.trim_end_matches('0').trim_end_matches('.')
    } else {
        &fixed
    };
    format!("{short}{unit}")
}
