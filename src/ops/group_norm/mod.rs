//! Group norm (Wu and He, 2018) with its two usual followers fused in: the
//! timestep's scale and shift (AdaGN of Dhariwal and Nichol, 2021) and SiLU.
//!
//! Over the pixels and channels of a group of one image, with biased variance:
//!     xhat = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps),
//!     z = (xhat * gamma + beta) * (1 + scale) + shift,   y = silu(z) or z.
//! Both passes see z as one multiply-add per channel,
//!     z = a * (x - pivot) + b,   pivot = x of the image's first pixel,
//! whose coefficients the first kernel writes; subtracting the pivot is exact
//! where the mean is far larger than the deviation, so nothing cancels.
//!
//! Backward keeps x and those coefficients. With dz = dy * silu'(z) and, per
//! image and channel, S1 = sum dz and S2 = sum dz * xhat over the pixels:
//!     dscale = gamma * S2 + beta * S1,          dshift = S1,
//!     dgamma = sum over n of (1 + scale) * S2,  dbeta = the same of S1,
//!     dx = rstd * (gamma * (1 + scale) * dz - c1 - xhat * c2),
//! where c1 and c2 are a group's averages of gamma * (1 + scale) times dz and
//! dz * xhat. Again dx = a * dz + k1 + k2 * (x - pivot).
//!
//! Two dispatches each way. A GPU with few images gets the pixels of the sums
//! split over more workgroups, and a third dispatch that merges the parts.

mod backward;
mod forward;
mod fusion;
mod geometry;
mod reduction;

pub(super) use fusion::{Moments, Normed, WantsMoments};
pub use geometry::GroupNorm;

use geometry::{GroupNormOp, MAX_TURNS, MAX_WIDTH};

use crate::graph::{FileLayout, Graph, Init, Lower, Node, Op, ParamInfo, TensorId};
use crate::kernel::Kernel;
use crate::{Error, Result, named};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    [forward::kernels(), backward::kernels()].concat()
}

/// Normalises `x` [n, h, w, c] or [n, c] with new parameters `weight` and `bias` `[c]` of
/// the current scope. `emb` [n, 2c] modulates the result: its first half is
/// the scale (1 is added to it), its second the shift. x may be of either
/// precision; the result is half under [`Graph::half`].
///
/// # Errors
/// [`Error::Shape`] if the groups do not divide the channels, a group has
/// more than 256 channels, there are more than 32,768 images, or emb does not
/// fit.
pub fn group_norm(
    g: &mut Graph,
    x: TensorId,
    options: GroupNorm,
    emb: Option<TensorId>,
) -> Result<TensorId> {
    let shape = g.shape(x).to_vec();
    let [n, h, w, c] = match shape[..] {
        [n, c] => [n, 1, 1, c],
        _ => g.dims("group_norm", x)?,
    };
    let fail = |detail| Err(Error::shape("group_norm", detail));
    if n * h * w * c == 0 {
        return fail(format!("x {:?} is empty", g.shape(x)));
    }
    if n > MAX_TURNS {
        return fail(format!("a batch of {n} images is more than the supported {MAX_TURNS}"));
    }
    if options.groups == 0 || !c.is_multiple_of(options.groups) {
        return fail(format!("{c} channels cannot be cut into {} groups", options.groups));
    }
    if c / options.groups > MAX_WIDTH {
        let width = c / options.groups;
        return fail(format!("a group has {width} channels, at most {MAX_WIDTH} are supported"));
    }
    if let Some(emb) = emb
        && g.shape(emb) != [n, 2 * c]
    {
        return fail(format!("emb is {:?}, {:?} is needed", g.shape(emb), [n, 2 * c]));
    }
    let [weight, bias] = [("weight", Init::Ones), ("bias", Init::Zeros)].map(|(name, init)| {
        g.param(ParamInfo { name: name.into(), shape: vec![c], layout: FileLayout::Plain, init })
    });
    let op = GroupNormOp { options, n, hw: h * w, c };
    if op.vec() {
        g.note(x, WantsMoments);
    }
    let dtype = g.result_dtype("group_norm", c)?;
    let inputs = named![x, weight, bias, emb];
    Ok(g.add_node_as(op, &inputs, &[("y", &shape), ("coefs", &[n, 4, c])], dtype)[0])
}

impl Op for GroupNormOp {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let coefs = node.output("coefs")?;
        self.launch_stats(lower, node, coefs)?;
        let (x, y) = (node.input("x")?, node.output("y")?);
        if self.c.is_multiple_of(4) {
            lower.note(y, Normed { x, coefs, silu: self.options.silu });
        }
        self.launch_apply(lower, x, coefs, y)
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let sums = self.launch_sums(lower, node, dy)?;
        self.launch_grads(lower, node, dy, sums)
    }
}
