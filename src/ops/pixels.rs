//! Division of work shared by the elementwise kernels that walk an image
//! [rows, pixels, channels]: an invocation owns four channels of a few
//! consecutive pixels, so neighbours read neighbouring channels and what
//! belongs to a channel is loaded once.

use super::GROUP;
use crate::graph::Lower;

/// Invocations that keep a device busy where memory bounds a kernel; a software driver
/// needs a few workgroups per core, a GPU thousands of invocations.
pub(super) fn memory_bound_invocations(lower: &Lower) -> usize {
    (if lower.caps.software { 16 * GROUP } else { 512 * GROUP }) as usize
}

/// How much each invocation should do of a total of `work`: up to 32 units on
/// a software driver, where a workgroup has its cost, otherwise up to `most`.
pub(super) fn share(lower: &Lower, work: usize, most: usize) -> usize {
    let most = if lower.caps.software { 32 } else { most };
    (work / memory_bound_invocations(lower)).clamp(1, most)
}

/// How an image's pixels are dealt to invocations, in runs of consecutive ones.
#[derive(Debug, Clone, Copy)]
pub(super) struct PixelRuns {
    /// Channel quads.
    pub quads: usize,
    /// Pixels of a run.
    pub pixels: usize,
    /// Runs of a row, the last one possibly short.
    pub runs: usize,
    /// Invocations in all: one for each run and quad.
    pub invocations: usize,
}

impl PixelRuns {
    /// Deals out `rows` times `pixels` pixels of `quads` channel quads; no
    /// run crosses a row.
    pub fn new(lower: &Lower, rows: usize, pixels: usize, quads: usize) -> Self {
        let each = share(lower, rows * pixels * quads, 4).min(pixels.max(1));
        let runs = pixels.div_ceil(each);
        PixelRuns { quads, pixels: each, runs, invocations: rows * runs * quads }
    }
}
