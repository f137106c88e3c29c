//! Channel means of feature maps: the pools of a classifier.
//!
//! ```text
//! y[n, c] = 1/(h w) * sum over i, j of x[n, i, j, c]
//! ```
//!
//! Several maps, of any sizes, give the columns of one result. Backward keeps
//! nothing: dx[n, i, j, c] = dy[n, c] / (h w).
//!
//! A GPU with few images gets the pixels split over more workgroups, and a
//! second dispatch that adds the parts.

use super::pixels::{PixelRuns, memory_bound_invocations};
use super::{GROUP, LOOP_TURNS, groups};
use crate::graph::{Graph, Launch, Lower, NamedTensor, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params {
        n: u32, rows: u32, c: u32, windows: u32, splits: u32, rows_per_split: u32,
        wide: u32, offset: u32, scale: f32,
    }
}

params! {
    struct BackwardParams {
        n: u32, rows: u32, c: u32, quads: u32, pixels: u32, runs: u32,
        wide: u32, offset: u32, scale: f32,
    }
}

defines! {
    struct Defines { vec: bool, acc: bool }
}

/// Without ACC the first of several launches counts as writing all of y, with
/// it the later ones keep what is there.
static MEAN: KernelOf<Params, Defines> = KernelOf::new(
    "mean_pool",
    include_str!("../../shaders/mean_pool.wgsl"),
    &[read("x"), accumulate("y")],
);

static BACKWARD: KernelOf<BackwardParams, Defines> = KernelOf::new(
    "mean_pool_backward",
    include_str!("../../shaders/mean_pool_backward.wgsl"),
    &[read("dy"), accumulate("dx")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![MEAN.with_variants(), BACKWARD.with_variants()]
}

/// Channels of a workgroup, and its invocations that share each of them.
pub(super) const WINDOW: usize = 32;
pub(super) const LANES: usize = 8;

/// One map and the columns of the result that it gives.
#[derive(Debug, Clone, Copy)]
struct Part {
    rows: usize,
    c: usize,
    offset: usize,
}

#[derive(Debug)]
struct MeanPool {
    n: usize,
    wide: usize,
    parts: Vec<Part>,
}

/// Channel means of `x` [n, h, w, c]: [n, c].
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4 or is empty.
pub fn mean_pool(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    mean_features(g, &[x])
}

/// Channel means of several maps [n, h, w, c], side by side: [n, sum of c].
///
/// # Errors
/// [`Error::Shape`] if there is no map, one is not of rank 4 or is empty, or
/// their numbers of images differ.
pub fn mean_features(g: &mut Graph, maps: &[TensorId]) -> Result<TensorId> {
    let fail = |detail: String| Err(Error::shape("mean_pool", detail));
    let Some(first) = maps.first() else { return fail("there is no map".into()) };
    let [n, ..] = g.dims::<4>("mean_pool", *first)?;
    let (mut parts, mut wide) = (Vec::new(), 0);
    for x in maps {
        let [images, h, w, c] = g.dims("mean_pool", *x)?;
        if n * h * w * c == 0 || images != n {
            return fail(format!("{:?} among maps of {n} images", g.shape(*x)));
        }
        parts.push(Part { rows: h * w, c, offset: wide });
        wide += c;
    }
    let maps: Vec<NamedTensor> = maps.iter().map(|x| ("map", Some(*x))).collect();
    Ok(g.add_node(MeanPool { n, wide, parts }, &maps, &[("y", &[n, wide])])[0])
}

impl MeanPool {
    /// Sums x [n, part.rows, part.c] over rows into its columns of y, in
    /// `splits` parts that follow the images.
    fn launch(
        &self,
        lower: &mut Lower,
        part: Part,
        splits: usize,
        scale: f32,
        (x, y, keep): (TensorId, TensorId, bool),
    ) -> Result<()> {
        let wide = if splits > 1 { part.c } else { self.wide };
        let offset = if splits > 1 { 0 } else { part.offset };
        let windows = part.c.div_ceil(WINDOW);
        let p = Params {
            n: self.n as u32,
            rows: part.rows as u32,
            c: part.c as u32,
            windows: windows as u32,
            splits: splits as u32,
            rows_per_split: part.rows.div_ceil(splits) as u32,
            wide: wide as u32,
            offset: offset as u32,
            scale,
        };
        let vec = [part.c, wide, offset].iter().all(|extent| extent.is_multiple_of(4));
        lower.launch(Launch {
            kernel: &MEAN,
            defines: Defines { vec, acc: keep },
            params: p,
            bindings: &named![x, y],
            groups: (self.n * splits * windows) as u64,
            flops: (self.n * part.rows * part.c) as u64,
        })
    }

    fn splits(&self, lower: &Lower, part: Part) -> usize {
        // A split should leave each invocation some rows to walk, and on a
        // software driver repay its second dispatch.
        let least = if lower.caps.software { 1024 * LANES } else { 8 * LANES };
        let workgroups = self.n * part.c.div_ceil(WINDOW);
        let wanted = memory_bound_invocations(lower).div_ceil(GROUP as usize * workgroups);
        let most_rows = LOOP_TURNS as usize * LANES;
        wanted.min(part.rows / least).max(part.rows.div_ceil(most_rows))
    }
}

impl Op for MeanPool {
    fn name(&self) -> &'static str {
        "mean_pool"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let y = node.output("y")?;
        for (i, (part, x)) in self.parts.iter().zip(&node.inputs).enumerate() {
            let splits = self.splits(lower, *part);
            let scale = 1.0 / part.rows as f32;
            if splits == 1 {
                self.launch(lower, *part, 1, scale, (*x, y, i > 0))?;
                continue;
            }
            let partial = lower.temp("partial", &[self.n, splits, part.c]);
            self.launch(lower, *part, splits, 1.0, (*x, partial, false))?;
            let merge = Part { rows: splits, ..*part };
            self.launch(lower, merge, 1, scale, (partial, y, i > 0))?;
        }
        Ok(())
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        for (part, x) in self.parts.iter().zip(&node.inputs) {
            let Some(dx) = lower.grad_target(*x) else { continue };
            let runs = PixelRuns::new(lower, self.n, part.rows, part.c.div_ceil(4));
            let p = BackwardParams {
                n: self.n as u32,
                rows: part.rows as u32,
                c: part.c as u32,
                quads: runs.quads as u32,
                pixels: runs.pixels as u32,
                runs: runs.runs as u32,
                wide: self.wide as u32,
                offset: part.offset as u32,
                scale: 1.0 / part.rows as f32,
            };
            let vec = [part.c, self.wide, part.offset].iter().all(|e| e.is_multiple_of(4));
            lower.launch(Launch {
                kernel: &BACKWARD,
                defines: Defines { vec, acc: dx.add },
                params: p,
                bindings: &named![dy, dx: dx.tensor],
                groups: groups(runs.invocations as u64),
                flops: (self.n * part.rows * part.c) as u64,
            })?;
        }
        Ok(())
    }
}
