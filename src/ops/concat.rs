//! Concatenation along channels: y[n, h, w, :] = [a[n, h, w, :], b[n, h, w, :]].
//!
//! Backward keeps nothing and splits dy; one launch writes both gradients
//! unless they differ in whether they accumulate.

use super::pixels::Blocks;
use super::{VEC_HALF, groups};
use crate::graph::{Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Error, Result, params};

params! {
    struct Params { len: u32, ca: u32, cb: u32, quads: u32, quads_a: u32, pixels: u32, blocks: u32 }
}

static CONCAT: Kernel = Kernel {
    name: "concat",
    source: include_str!("../../shaders/concat.wgsl"),
    bindings: &[read("a").half("HALF"), read("b").half("HALF"), write("y").half("HALF")],
    params: Params::FIELDS,
    defines: &["VEC", "HALF"],
};

static SPLIT: Kernel = Kernel {
    name: "concat_split",
    source: include_str!("../../shaders/concat_split.wgsl"),
    bindings: &[
        read("dy").half("HALF"),
        accumulate("da").when("A").half("HALF"),
        accumulate("db").when("B").half("HALF"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "A", "B", "ACC", "HALF"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let mut split = Vec::new();
    for [vec, half] in VEC_HALF {
        for (a, b) in [(1, 0), (0, 1), (1, 1)] {
            split.extend([0, 1].map(|acc| vec![vec, a, b, acc, half]));
        }
    }
    vec![(&CONCAT, VEC_HALF.map(Vec::from).to_vec()), (&SPLIT, split)]
}

#[derive(Debug)]
struct Concat {
    pixels: usize,
    ca: usize,
    cb: usize,
}

/// Channels of `a` [n, h, w, ca] followed by those of `b` [n, h, w, cb].
///
/// # Errors
/// [`Error::Shape`] if either is not of rank 4, or other extents or the element
/// types differ.
pub fn concat(g: &mut Graph, a: TensorId, b: TensorId) -> Result<TensorId> {
    let [n, h, w, ca] = g.dims("concat", a)?;
    let [bn, bh, bw, cb] = g.dims("concat", b)?;
    if [n, h, w] != [bn, bh, bw] {
        let detail = format!("{:?} and {:?} differ in more than channels", g.shape(a), g.shape(b));
        return Err(Error::shape("concat", detail));
    }
    let op = Concat { pixels: n * h * w, ca, cb };
    let dtype = g.same_dtype("concat", a, b)?;
    Ok(g.push_as(op, &[a, b], &[&[n, h, w, ca + cb]], dtype)[0])
}

impl Concat {
    fn vec(&self) -> bool {
        self.ca.is_multiple_of(4) && self.cb.is_multiple_of(4)
    }

    /// The uniform block and the number of workgroups.
    fn params(&self, lower: &Lower) -> (Params, u64) {
        let quads_a = self.ca.div_ceil(4);
        let b = Blocks::new(lower, 1, self.pixels, quads_a + self.cb.div_ceil(4));
        let p = Params {
            len: self.pixels as u32,
            ca: self.ca as u32,
            cb: self.cb as u32,
            quads: b.quads as u32,
            quads_a: quads_a as u32,
            pixels: b.pixels as u32,
            blocks: b.blocks as u32,
        };
        (p, groups(b.invocations as u64))
    }

    fn split(
        &self,
        lower: &mut Lower,
        dy: TensorId,
        da: Option<TensorId>,
        db: Option<TensorId>,
        add: bool,
    ) -> Result<()> {
        let (p, groups) = self.params(lower);
        lower.launch(Launch {
            kernel: &SPLIT,
            defines: &[
                self.vec().into(),
                da.is_some().into(),
                db.is_some().into(),
                add.into(),
                lower.half(dy),
            ],
            params: bytemuck::bytes_of(&p),
            bindings: &[Some(dy), da, db],
            groups,
            flops: 0,
        })
    }
}

impl Op for Concat {
    fn name(&self) -> &'static str {
        "concat"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let (p, groups) = self.params(lower);
        lower.launch(Launch {
            kernel: &CONCAT,
            defines: &[self.vec().into(), lower.half(node.outputs[0])],
            params: bytemuck::bytes_of(&p),
            bindings: &[Some(node.inputs[0]), Some(node.inputs[1]), Some(node.outputs[0])],
            groups,
            flops: 0,
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        let (a, b) = (node.inputs[0], node.inputs[1]);
        // For concat(a, a) the second target is the first one, which adds.
        let da = lower.grad_target(a);
        let db = lower.grad_target(b);
        match (da, db) {
            (Some(da), Some(db)) if da.add == db.add && da != db => {
                self.split(lower, dy, Some(da.tensor), Some(db.tensor), da.add)
            }
            _ => {
                if let Some(da) = da {
                    self.split(lower, dy, Some(da.tensor), None, da.add)?;
                }
                match db {
                    Some(db) => self.split(lower, dy, None, Some(db.tensor), db.add),
                    None => Ok(()),
                }
            }
        }
    }
}
