//! Running sums of per-image terms of a loss, kept on the device until they are
//! logged: over all images, and over those whose timestep lies in each quarter
//! of the schedule, since early and late steps' losses differ by magnitudes:
//!
//! ```text
//! sums[0]     += sum over n of w[n] * term[n],
//! sums[1 + q] += the same over those n with quartile[n] = q,   q = 0..3.
//! ```
//!
//! How many images fell into each quarter, the host knows: it chose the
//! timesteps. No node of a graph, so there is no gradient.

use super::LOOP_TURNS;
use crate::graph::{Launch, Lower, TensorId};
use crate::kernel::{Kernel, KernelOf, read, read_write};
use crate::{Error, Result, defines, named, params};

/// Sums of a term: over all images, and over each quarter of the schedule.
pub const LOSS_STATS: usize = 5;

params! {
    struct Params { n: u32 }
}

defines! {
    struct Defines { weighted: bool }
}

static STATS: KernelOf<Params, Defines> = KernelOf::new(
    "loss_stats",
    include_str!("../../shaders/loss_stats.wgsl"),
    &[read("term"), read("weights").when("WEIGHTED"), read("quartile"), read_write("sums")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![STATS.with_variants()]
}

/// Adds `term` `[n]`, times `weights` `[n]` if given, into `sums`
/// `[`[`LOSS_STATS`]`]`, a pinned tensor that the host sets to zero;
/// `quartile` `[n]` (u32) is 0 to 3, others count in the total only.
///
/// # Errors
/// [`Error::Shape`] if the shapes differ.
pub fn loss_stats(
    lower: &mut Lower,
    term: TensorId,
    weights: Option<TensorId>,
    quartile: TensorId,
    sums: TensorId,
) -> Result<()> {
    let shape = lower.shape(term).to_vec();
    let n: usize = shape.iter().product();
    let alike = weights.into_iter().chain([quartile]).all(|id| lower.shape(id) == shape);
    if shape.len() != 1 || n as u64 > LOOP_TURNS || !alike || lower.shape(sums) != [LOSS_STATS] {
        let detail = format!(
            "term {shape:?}, weights {:?}, quartile {:?}, sums {:?}",
            weights.map(|id| lower.shape(id)),
            lower.shape(quartile),
            lower.shape(sums)
        );
        return Err(Error::shape("loss_stats", detail));
    }
    lower.launch(Launch {
        kernel: &STATS,
        defines: Defines { weighted: weights.is_some() },
        params: Params { n: n as u32 },
        bindings: &named![term, weights, quartile, sums],
        groups: 1,
        flops: (LOSS_STATS * n) as u64,
    })
}
