//! Conversion between 32-bit and half precision: y = x, rounded to nearest.
//!
//! Backward converts dy the other way. Values beyond half's range (65504)
//! become infinite, so that a loss scale that is too large shows.
//!
//! The same kernel makes the packed copy of the weights that convolutions of
//! half precision read (see [`pack_weights`]).

use super::groups;
use crate::graph::{
    DType, FlatKind, Graph, Launch, Lower, Node, Op, ParamLayout, Target, TensorId,
};
use crate::kernel::{Kernel, KernelOf, accumulate, read};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { len: u32 }
}

defines! {
    struct Defines { half_x: bool, half_y: bool, acc: bool }
    where |d| d.half_x != d.half_y
}

static CAST: KernelOf<Params, Defines> = KernelOf::new(
    "cast",
    include_str!("../../shaders/cast.wgsl"),
    &[read("x").half("HALF_X"), accumulate("y").half("HALF_Y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![CAST.with_variants()]
}

#[derive(Debug)]
struct Cast;

/// `x` with elements of type `dtype`, for the borders between the half-precision
/// torso of a network and ops that know 32 bits only; x itself if it has them.
///
/// # Errors
/// [`Error::Shape`] for integers, or if the innermost extent is no multiple of 4.
pub fn cast(g: &mut Graph, x: TensorId, dtype: DType) -> Result<TensorId> {
    let from = g.dtype(x);
    if from == dtype {
        return Ok(x);
    }
    let shape = g.shape(x).to_vec();
    if from == DType::U32 || dtype == DType::U32 {
        return Err(Error::shape("cast", format!("{from:?} cannot be made {dtype:?}")));
    }
    if !shape.last().is_some_and(|c| c.is_multiple_of(4)) {
        let detail = format!("{shape:?} cannot be stored as half, rows are no multiple of 4");
        return Err(Error::shape("cast", detail));
    }
    Ok(g.add_node_as(Cast, &named![x], &[("y", &shape)], dtype)[0])
}

fn launch(lower: &mut Lower, x: TensorId, y: Target) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>();
    lower.launch(Launch {
        kernel: &CAST,
        defines: Defines { half_x: lower.is_half(x), half_y: lower.is_half(y.tensor), acc: y.add },
        params: Params { len: len as u32 },
        bindings: &named![x, y: y.tensor],
        groups: groups((len as u64).div_ceil(4)),
        flops: 0,
    })
}

impl Op for Cast {
    fn name(&self) -> &'static str {
        "cast"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        launch(lower, node.input("x")?, Target::assign(node.output("y")?))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        match lower.grad_target(node.input("x")?) {
            Some(dx) => launch(lower, dy, dx),
            None => Ok(()),
        }
    }
}

/// Emits the making of `kind`'s packed copy ([`FlatKind::half`]), for kinds
/// whose copy the optimizer does not keep up to date: the average.
///
/// # Errors
/// [`Error::Config`] for a kind that has no packed copy.
pub fn pack_weights(lower: &mut Lower, layout: &ParamLayout, kind: FlatKind) -> Result<()> {
    let Some(half) = kind.half() else {
        return Err(Error::Config(format!("{kind:?} has no packed copy")));
    };
    lower.set_label("pack_weights");
    for (chunk, len) in layout.chunks[..layout.packed].iter().copied().enumerate() {
        let (from, to) = (lower.flat(kind, chunk, len), lower.flat(half, chunk, len));
        launch(lower, from, Target::assign(to))?;
    }
    Ok(())
}
