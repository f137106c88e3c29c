//! The kernels of a group norm forward: statistics, and their application.

use super::super::groups;
use super::fusion::Moments;
use super::geometry::GroupNormOp;
use super::reduction::{Stage, Windows};
use crate::graph::{Launch, Lower, Node, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::{Result, defines, named, params};

params! {
    struct StatsParams {
        n: u32, hw: u32, c: u32, width: u32,
        window: u32, windows: u32, pixels: u32, splits: u32,
        eps: f32, each: u32,
    }
}

defines! {
    struct StatsDefines {
        vec: bool,
        /// A scale and a shift follow the norm.
        emb: bool,
        /// Reads partials instead of pixels.
        merge: bool,
        /// Writes partials instead of coefficients.
        partial: bool,
        /// Writes coefficients.
        finish: bool,
        half_x: bool,
        subgroup: bool,
        /// Walks down the moments that a convolution left.
        moments: bool,
    }
    where |d| d.finish != d.partial
        && !(d.merge && (d.partial || d.subgroup || d.moments))
        && (d.finish || !d.emb)
        && (d.vec || !d.moments)
}

/// x (or the partials of an earlier launch) to coefficients (or partials).
static STATS: KernelOf<StatsParams, StatsDefines> = KernelOf::new(
    "group_norm_stats",
    include_str!("../../../shaders/group_norm_stats.wgsl"),
    &[
        read("x").half("HALF_X"),
        read("weight").when("FINISH"),
        read("bias").when("FINISH"),
        read("emb").when("EMB"),
        write("coefs").when("FINISH"),
        read("partials").when("MERGE"),
        write("partials_out").when("PARTIAL"),
        read("moments").when("MOMENTS"),
    ],
);

params! {
    struct ApplyParams { n: u32, hw: u32, c: u32, quads: u32, pixels: u32, runs: u32 }
}

defines! {
    struct ApplyDefines { vec: bool, silu: bool, half_x: bool, half_y: bool }
    where |d| d.vec || !(d.half_x || d.half_y)
}

static APPLY: KernelOf<ApplyParams, ApplyDefines> = KernelOf::new(
    "group_norm_apply",
    include_str!("../../../shaders/group_norm_apply.wgsl"),
    &[read("x").half("HALF_X"), read("coefs"), write("y").half("HALF_Y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![STATS.with_variants(), APPLY.with_variants()]
}

impl GroupNormOp {
    fn stats_params(&self, w: Windows) -> StatsParams {
        StatsParams {
            n: self.n as u32,
            hw: w.places as u32,
            c: self.c as u32,
            width: self.width() as u32,
            window: w.window as u32,
            windows: w.windows as u32,
            pixels: w.pixels as u32,
            splits: w.splits as u32,
            eps: self.options.eps,
            each: (self.hw / w.places) as u32,
        }
    }

    /// Coefficients [n, 4, c] of x, from its pixels or from what a convolution left.
    pub(super) fn launch_stats(
        &self,
        lower: &mut Lower,
        node: &Node,
        coefs: TensorId,
    ) -> Result<()> {
        let [x, weight, bias] = [node.input("x")?, node.input("weight")?, node.input("bias")?];
        let emb = node.optional_input("emb");
        let half = lower.is_half(x);
        let moments = lower.noted::<Moments>(x).filter(|_| self.vec());
        let tiles = moments.map(|m| m.tiles);
        self.reduce(lower, STATS.name, half, tiles, |lower, w, stage, partials, workgroups| {
            let (walks, finishes) = (stage.walks(), stage.finishes());
            let finishing = |tensor| finishes.then_some(tensor);
            lower.launch(Launch {
                kernel: &STATS,
                defines: StatsDefines {
                    vec: w.vec,
                    emb: emb.is_some() && finishes,
                    merge: !walks,
                    partial: !finishes,
                    finish: finishes,
                    half_x: half,
                    subgroup: w.subgroup && walks,
                    moments: w.moments && walks,
                },
                params: self.stats_params(w),
                bindings: &named![
                    x,
                    weight: finishing(weight),
                    bias: finishing(bias),
                    emb: emb.filter(|_| finishes),
                    coefs: finishing(coefs),
                    partials: partials.filter(|_| !walks),
                    partials_out: partials.filter(|_| !finishes),
                    moments: moments.map(|m| m.tensor).filter(|_| walks),
                ],
                groups: workgroups,
                flops: if stage == Stage::Merge { 0 } else { 6 * self.elements_of(w.places) },
            })
        })
    }

    /// y from x and the coefficients.
    pub(super) fn launch_apply(
        &self,
        lower: &mut Lower,
        x: TensorId,
        coefs: TensorId,
        y: TensorId,
    ) -> Result<()> {
        let runs = self.runs(lower);
        lower.launch(Launch {
            kernel: &APPLY,
            defines: ApplyDefines {
                vec: self.c.is_multiple_of(4),
                silu: self.options.silu,
                half_x: lower.is_half(x),
                half_y: lower.is_half(y),
            },
            params: ApplyParams {
                n: self.n as u32,
                hw: self.hw as u32,
                c: self.c as u32,
                quads: runs.quads as u32,
                pixels: runs.pixels as u32,
                runs: runs.runs as u32,
            },
            bindings: &named![x, coefs, y],
            groups: groups(runs.invocations as u64),
            flops: 8 * self.elements(),
        })
    }
}
