//! Reductions over the pixels of an image: how they are divided among workgroups.

use super::super::GROUP;
use super::super::pixels::memory_bound_invocations;
use super::geometry::{GroupNormOp, MAX_TURNS, lcm};
use crate::Result;
use crate::graph::{Lower, TensorId, bucket};

/// A launch of a reduction: all of it, or one of two that first form and then merge partials.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// Pixels to results.
    Whole,
    /// Pixels to partials.
    Partial,
    /// Partials to results.
    Merge,
}

impl Stage {
    /// Whether the pixels are walked.
    pub fn walks(self) -> bool {
        self != Stage::Merge
    }

    /// Whether the results are formed.
    pub fn finishes(self) -> bool {
        self != Stage::Partial
    }
}

/// Channels that workgroups of the reductions cover, and splits of the pixels.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Windows {
    pub vec: bool,
    /// What is walked down are moments of tiles, not pixels.
    pub moments: bool,
    /// Rows stand a power of two apart, and subgroups are to merge them.
    pub subgroup: bool,
    pub window: usize,
    pub windows: usize,
    /// Places to walk down in an image: pixels, or tiles.
    pub places: usize,
    /// Those of a split.
    pub pixels: usize,
    pub splits: usize,
}

/// Splits of the pixels that can be asked for instead of the rule's ("auto").
const SPLITS: [(usize, &str); 7] = [
    (1, "splits1"),
    (2, "splits2"),
    (4, "splits4"),
    (8, "splits8"),
    (16, "splits16"),
    (32, "splits32"),
    (64, "splits64"),
];

/// Channels from which reads of one pixel are well coalesced (128 bytes).
const WINDOW: usize = 32;

/// The same on a software driver with images for all its cores: merging, which
/// workgroups do each for itself, costs it more than walking.
const WIDE_WINDOW: usize = 128;

impl GroupNormOp {
    /// Windows hold whole groups, and whole quads for vector loads. Where there are moments
    /// of `tiles`, these are walked down.
    fn windows(
        &self,
        lower: &mut Lower,
        op: &'static str,
        half: bool,
        tiles: Option<usize>,
    ) -> Windows {
        let vec = self.vec();
        let unit = if vec { lcm(self.width(), 4) } else { self.width() };
        let wide = lower.caps.software && self.n >= 4;
        let wanted = if wide { WIDE_WINDOW } else { WINDOW };
        let window = (unit * wanted.div_ceil(unit)).min(self.c);
        let windows = self.c.div_ceil(window);
        // The last window may be a shorter one.
        let quads = [window, self.c - (windows - 1) * window].map(|c| c.div_ceil(4));
        let subgroup = lower.caps.subgroups
            && quads.iter().all(|q| q.is_power_of_two() && *q < GROUP as usize);
        // A split should leave each invocation some pixels to walk, and on a
        // software driver repay its second dispatch.
        let rows = (GROUP as usize / window.div_ceil(4)).max(1);
        let least = if lower.caps.software { 1024 * rows } else { 8 * rows };
        let wanted = memory_bound_invocations(lower).div_ceil(GROUP as usize * self.n * windows);
        let places = tiles.unwrap_or(self.hw);
        let splits = wanted.min(places / least).max(places.div_ceil(MAX_TURNS * rows));
        let pixels = self.choose_pixels(lower, op, half, [places, rows], places.div_ceil(splits));
        let splits = places.div_ceil(pixels);
        Windows { vec, moments: tiles.is_some(), subgroup, window, windows, places, pixels, splits }
    }

    /// Of the `places` of an image those of a split, by default `rule`: as many as leave one,
    /// two, four, .. splits, each with some for all `rows` of a workgroup's invocations.
    fn choose_pixels(
        &self,
        lower: &mut Lower,
        op: &'static str,
        half: bool,
        [places, rows]: [usize; 2],
        rule: usize,
    ) -> usize {
        let cut = |s: usize| {
            let pixels = places.div_ceil(s);
            let whole = places.div_ceil(pixels) == s && (s == 1 || pixels >= rows);
            (whole && pixels <= MAX_TURNS * rows).then_some(pixels)
        };
        let counts = SPLITS.iter().filter_map(|(s, name)| Some((*name, cut(*s)?)));
        let (names, pixels): (Vec<_>, Vec<_>) = std::iter::once(("auto", rule))
            .chain(counts.filter(|(_, pixels)| *pixels != rule))
            .unzip();
        let bits = if half { 16 } else { 32 };
        let key = [bucket(self.n), bucket(places), self.c, self.options.groups, bits];
        pixels[lower.choose(op, &key, &names, 0)]
    }

    /// Runs `launch` for the whole reduction at once or for its two stages,
    /// with the partials and the number of workgroups.
    pub(super) fn reduce(
        &self,
        lower: &mut Lower,
        kernel: &'static str,
        half: bool,
        tiles: Option<usize>,
        launch: impl Fn(&mut Lower, Windows, Stage, Option<TensorId>, u64) -> Result<()>,
    ) -> Result<()> {
        let w = self.windows(lower, kernel, half, tiles);
        let workgroups = (self.n * w.windows) as u64;
        if w.splits == 1 {
            return launch(lower, w, Stage::Whole, None, workgroups);
        }
        let partials = lower.temp("partials", &[self.n, w.splits, 2, self.c]);
        launch(lower, w, Stage::Partial, Some(partials), workgroups * w.splits as u64)?;
        launch(lower, w, Stage::Merge, Some(partials), workgroups)
    }
}
