//! Concatenation along channels: y[n, h, w, :] = [a[n, h, w, :], b[n, h, w, :]].
//!
//! Backward keeps nothing and splits dy; one launch writes both gradients
//! unless they differ in whether they accumulate.

use super::groups;
use super::pixels::PixelRuns;
use crate::graph::{Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { len: u32, ca: u32, cb: u32, quads: u32, quads_a: u32, pixels: u32, runs: u32 }
}

defines! {
    struct Defines { vec: bool, half: bool }
    where |d| d.vec || !d.half
}

static CONCAT: KernelOf<Params, Defines> = KernelOf::new(
    "concat",
    include_str!("../../shaders/concat.wgsl"),
    &[read("a").half("HALF"), read("b").half("HALF"), write("y").half("HALF")],
);

defines! {
    struct SplitDefines {
        vec: bool,
        /// Forms the gradient of the first operand.
        a: bool,
        /// Forms the gradient of the second operand.
        b: bool,
        acc: bool,
        half: bool,
    }
    where |d| (d.vec || !d.half) && (d.a || d.b)
}

static SPLIT: KernelOf<Params, SplitDefines> = KernelOf::new(
    "concat_split",
    include_str!("../../shaders/concat_split.wgsl"),
    &[
        read("dy").half("HALF"),
        accumulate("da").when("A").half("HALF"),
        accumulate("db").when("B").half("HALF"),
    ],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![CONCAT.with_variants(), SPLIT.with_variants()]
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
    Ok(g.add_node_as(op, &named![a, b], &[("y", &[n, h, w, ca + cb])], dtype)[0])
}

impl Concat {
    fn vec(&self) -> bool {
        self.ca.is_multiple_of(4) && self.cb.is_multiple_of(4)
    }

    /// The uniform block and the number of workgroups.
    fn params(&self, lower: &Lower) -> (Params, u64) {
        let quads_a = self.ca.div_ceil(4);
        let runs = PixelRuns::new(lower, 1, self.pixels, quads_a + self.cb.div_ceil(4));
        let p = Params {
            len: self.pixels as u32,
            ca: self.ca as u32,
            cb: self.cb as u32,
            quads: runs.quads as u32,
            quads_a: quads_a as u32,
            pixels: runs.pixels as u32,
            runs: runs.runs as u32,
        };
        (p, groups(runs.invocations as u64))
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
            defines: SplitDefines {
                vec: self.vec(),
                a: da.is_some(),
                b: db.is_some(),
                acc: add,
                half: lower.is_half(dy),
            },
            params: p,
            bindings: &named![dy, da, db],
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
            defines: Defines { vec: self.vec(), half: lower.is_half(node.output("y")?) },
            params: p,
            bindings: &named![a: node.input("a")?, b: node.input("b")?, y: node.output("y")?],
            groups,
            flops: 0,
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let (a, b) = (node.input("a")?, node.input("b")?);
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
