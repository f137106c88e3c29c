//! Sums over the rows of matrices: gradients of what was added to each row. Several ops
//! share it.

use super::{LOOP_TURNS, groups};
use crate::graph::{Launch, Lower, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Result, defines, named, params};

params! {
    struct Params { batch: u32, rows: u32, channels: u32 }
}

defines! {
    struct Defines { acc: bool, half_x: bool }
}

static SUM_ROWS: KernelOf<Params, Defines> = KernelOf::new(
    "sum_rows",
    include_str!("../../shaders/sum_rows.wgsl"),
    &[read("x").half("HALF_X"), accumulate("y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![SUM_ROWS.with_variants()]
}

/// Adds `x` [batch, rows, channels] over its rows into `y` [batch, channels];
/// long columns in two stages.
pub(crate) fn sum_rows(
    lower: &mut Lower,
    x: TensorId,
    [batch, rows, channels]: [usize; 3],
    y: Target,
) -> Result<()> {
    // Images are halvable where they are large, so a power of two divides.
    let mut parts = 1;
    while (rows / parts) as u64 > LOOP_TURNS && (rows / parts).is_multiple_of(2) {
        parts *= 2;
    }
    if parts == 1 {
        return launch(lower, x, [batch, rows, channels], y);
    }
    let partial = lower.temp("partial", &[batch * parts, channels]);
    launch(lower, x, [batch * parts, rows / parts, channels], Target::assign(partial))?;
    launch(lower, partial, [batch, parts, channels], y)
}

fn launch(
    lower: &mut Lower,
    x: TensorId,
    [batch, rows, channels]: [usize; 3],
    y: Target,
) -> Result<()> {
    let p = Params { batch: batch as u32, rows: rows as u32, channels: channels as u32 };
    lower.launch(Launch {
        kernel: &SUM_ROWS,
        defines: Defines { acc: y.add, half_x: lower.is_half(x) },
        params: p,
        bindings: &named![x, y: y.tensor],
        groups: groups((batch * channels) as u64),
        flops: (batch * rows * channels) as u64,
    })
}
