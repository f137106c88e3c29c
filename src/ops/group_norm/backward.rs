//! The kernels of a group norm backward: sums over pixels, and the gradients.

use super::super::groups;
use super::geometry::GroupNormOp;
use super::reduction::{Stage, Windows};
use crate::graph::{Launch, Lower, Node, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Result, defines, named, params};

params! {
    struct SumsParams {
        n: u32, hw: u32, c: u32, width: u32,
        window: u32, windows: u32, pixels: u32, splits: u32,
    }
}

defines! {
    struct SumsDefines {
        vec: bool,
        silu: bool,
        /// Forms the gradient of the scale and the shift.
        emb: bool,
        acc: bool,
        /// Reads partials instead of pixels.
        merge: bool,
        /// Writes partials instead of sums.
        partial: bool,
        /// Writes sums.
        finish: bool,
        /// Reads pixels.
        walk: bool,
        half_x: bool,
        half_y: bool,
        subgroup: bool,
    }
    where |d| d.finish != d.partial
        && d.walk != d.merge
        && (d.finish || !d.emb)
        && (d.emb || !d.acc)
        // Merging is the same for all ways to walk.
        && (d.walk || !(d.partial || d.vec || d.silu || d.half_x || d.half_y || d.subgroup))
}

static SUMS: KernelOf<SumsParams, SumsDefines> = KernelOf::new(
    "group_norm_sums",
    include_str!("../../../shaders/group_norm_sums.wgsl"),
    &[
        read("x").when("WALK").half("HALF_X"),
        read("dy").when("WALK").half("HALF_Y"),
        read("coefs"),
        read("weight").when("EMB"),
        read("bias").when("EMB"),
        read("emb").when("EMB"),
        accumulate("demb").when("EMB"),
        write("sums").when("FINISH"),
        read("partials").when("MERGE"),
        write("partials_out").when("PARTIAL"),
    ],
);

params! {
    struct GradsParams {
        n: u32, hw: u32, c: u32, quads: u32, pixels: u32, runs: u32, apply_groups: u32,
    }
}

defines! {
    struct GradsDefines {
        vec: bool,
        silu: bool,
        acc: bool,
        /// Adds to the gradients of weight and bias.
        acc_params: bool,
        inplace: bool,
        half_x: bool,
        half_y: bool,
    }
    where |d| (d.vec || !(d.half_x || d.half_y))
        // What is overwritten is not added to, and has the result's precision.
        && !(d.inplace && (d.acc || d.half_x != d.half_y))
}

// dweight and dbias are read with ACC_PARAMS, but a kernel has one flag for
// `accumulate`. What is added to are gradients of parameters, which share no memory
// and live on from launch to launch whatever is said here.
static GRADS: KernelOf<GradsParams, GradsDefines> = KernelOf::new(
    "group_norm_grads",
    include_str!("../../../shaders/group_norm_grads.wgsl"),
    &[
        read("x").half("HALF_X"),
        read("dy").half("HALF_Y").overwritten_by("dx"),
        read("coefs"),
        read("sums"),
        accumulate("dx").half("HALF_X"),
        write("dweight"),
        write("dbias"),
    ],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![SUMS.with_variants(), GRADS.with_variants()]
}

impl GroupNormOp {
    fn sums_params(&self, w: Windows) -> SumsParams {
        SumsParams {
            n: self.n as u32,
            hw: w.places as u32,
            c: self.c as u32,
            width: self.width() as u32,
            window: w.window as u32,
            windows: w.windows as u32,
            pixels: w.pixels as u32,
            splits: w.splits as u32,
        }
    }

    /// S1, S2 and what follows from them; returns the sums [n, 4, c].
    pub(super) fn launch_sums(
        &self,
        lower: &mut Lower,
        node: &Node,
        dy: TensorId,
    ) -> Result<TensorId> {
        let [x, weight, bias] = [node.input("x")?, node.input("weight")?, node.input("bias")?];
        let coefs = node.output("coefs")?;
        let emb = node.optional_input("emb");
        let demb = emb.map(|e| {
            lower
                .grad_target(e)
                .unwrap_or_else(|| Target::assign(lower.temp("demb", &[self.n, 2 * self.c])))
        });
        let sums = lower.temp("sums", &[self.n, 4, self.c]);
        let half = [x, dy].map(|id| lower.is_half(id));
        self.reduce(lower, SUMS.name, half[1], None, |lower, w, stage, partials, workgroups| {
            let (walks, finishes) = (stage.walks(), stage.finishes());
            let emb = emb.filter(|_| finishes);
            let demb = demb.filter(|_| finishes);
            let walking = |tensor| walks.then_some(tensor);
            let modulated = |tensor| emb.map(|_| tensor);
            lower.launch(Launch {
                kernel: &SUMS,
                defines: SumsDefines {
                    vec: w.vec && walks,
                    silu: self.options.silu && walks,
                    emb: emb.is_some(),
                    acc: demb.is_some_and(|d| d.add),
                    merge: !walks,
                    partial: !finishes,
                    finish: finishes,
                    walk: walks,
                    half_x: half[0] && walks,
                    half_y: half[1] && walks,
                    subgroup: w.subgroup && walks,
                },
                params: self.sums_params(w),
                bindings: &named![
                    x: walking(x),
                    dy: walking(dy),
                    coefs,
                    weight: modulated(weight),
                    bias: modulated(bias),
                    emb,
                    demb: demb.map(|d| d.tensor),
                    sums: finishes.then_some(sums),
                    partials: partials.filter(|_| !walks),
                    partials_out: partials.filter(|_| !finishes),
                ],
                groups: workgroups,
                flops: if stage == Stage::Merge { 0 } else { 12 * self.elements() },
            })
        })?;
        Ok(sums)
    }

    /// The gradients of x, weight and bias. What nobody wants (frozen parameters, the image
    /// itself) is written all the same: it is no case worth a variant.
    pub(super) fn launch_grads(
        &self,
        lower: &mut Lower,
        node: &Node,
        dy: TensorId,
        sums: TensorId,
    ) -> Result<()> {
        let [x, weight, bias] = [node.input("x")?, node.input("weight")?, node.input("bias")?];
        let mut target = |id, name| {
            lower.grad_target(id).unwrap_or_else(|| Target::assign(lower.temp_like(name, id)))
        };
        let dweight = target(weight, "dweight");
        let dbias = target(bias, "dbias");
        let dx = target(x, "dx");
        let runs = self.runs(lower);
        let apply_groups = groups(runs.invocations as u64);
        lower.launch(Launch {
            kernel: &GRADS,
            defines: GradsDefines {
                vec: self.c.is_multiple_of(4),
                silu: self.options.silu,
                acc: dx.add,
                acc_params: dweight.add,
                inplace: false,
                half_x: lower.is_half(x),
                half_y: lower.is_half(dy),
            },
            params: GradsParams {
                n: self.n as u32,
                hw: self.hw as u32,
                c: self.c as u32,
                quads: runs.quads as u32,
                pixels: runs.pixels as u32,
                runs: runs.runs as u32,
                apply_groups: apply_groups as u32,
            },
            bindings: &named![
                x,
                dy,
                coefs: node.output("coefs")?,
                sums,
                dx: dx.tensor,
                dweight: dweight.tensor,
                dbias: dbias.tensor,
            ],
            groups: apply_groups + groups(self.c as u64),
            flops: 16 * self.elements(),
        })
    }
}
