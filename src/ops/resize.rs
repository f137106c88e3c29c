//! Images at any other size: what a super-resolution network is given, and
//! what its training images are made small with. NHWC, sizes up or down.
//!
//! Bilinear, pixel centres at (o + 1/2) * in / out - 1/2, clamped to the
//! image (PyTorch's `interpolate(mode="bilinear", align_corners=False)`,
//! which takes the four neighbours however far the image shrinks):
//!
//! ```text
//! y[n, o, p, c] = sum over a, b in {0, 1} of wy(a) * wx(b) * x[n, iy+a, ix+b, c]
//! ```
//!
//! Area, the mean of the pixels that an output pixel touches (PyTorch's
//! `interpolate(mode="area")`):
//!
//! ```text
//! y[n, o, p, c] = mean of x[n, i, j, c] over i in floor(o h / oh) .. ceil((o+1) h / oh), j alike
//! ```
//!
//! Both work on data, which needs no gradient: backward is an error.

use super::{LOOP_TURNS, groups};
use crate::graph::{Graph, Launch, Lower, Node, Op, TensorId};
use crate::kernel::{Kernel, KernelOf, read, write};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params {
        n: u32, h: u32, w: u32, oh: u32, ow: u32, c: u32, quads: u32,
    }
}

defines! {
    struct Defines {
        vec: bool,
        /// Means of areas; without it bilinear.
        area: bool,
    }
}

static RESIZE: KernelOf<Params, Defines> =
    KernelOf::new("resize", include_str!("../../shaders/resize.wgsl"), &[read("x"), write("y")]);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![RESIZE.with_variants()]
}

#[derive(Debug)]
struct Resize {
    area: bool,
}

/// Largest extent: the shader counts in twice its square.
const MAX_EXTENT: usize = 1 << 15;

/// Bilinear: `x` [n, h, w, c] to [n, `height`, `width`, c]; x itself if it has
/// that size already.
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4 or any extent is 0 or above 32,768.
pub fn resize_bilinear(
    g: &mut Graph,
    x: TensorId,
    [height, width]: [usize; 2],
) -> Result<TensorId> {
    resize(g, x, [height, width], false)
}

/// Means of areas: `x` [n, h, w, c] to [n, `height`, `width`, c]; x itself if
/// it has that size already.
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4, any extent is 0 or above 32,768, or an area has more
/// than 32,768 pixels.
pub fn resize_area(g: &mut Graph, x: TensorId, [height, width]: [usize; 2]) -> Result<TensorId> {
    resize(g, x, [height, width], true)
}

fn resize(g: &mut Graph, x: TensorId, [oh, ow]: [usize; 2], area: bool) -> Result<TensorId> {
    let op = Resize { area };
    let [n, h, w, c] = g.dims(op.name(), x)?;
    let fail = |detail| Err(Error::shape(op.name(), detail));
    if n * h * w * c * oh * ow == 0 {
        return fail(format!("{:?} cannot be resized to {oh}x{ow} pixels", g.shape(x)));
    }
    if [h, w, oh, ow].iter().any(|extent| *extent > MAX_EXTENT) {
        return fail(format!("{h}x{w} to {oh}x{ow} pixels: at most {MAX_EXTENT} a side"));
    }
    let covered = |from: usize, to: usize| (from.div_ceil(to) + 1) as u64;
    if area && covered(h, oh) * covered(w, ow) > LOOP_TURNS {
        return fail(format!("{h}x{w} pixels are too many for areas of {oh}x{ow}"));
    }
    if [h, w] == [oh, ow] {
        return Ok(x);
    }
    Ok(g.add_node(op, &named![x], &[("y", &[n, oh, ow, c])])[0])
}

impl Op for Resize {
    fn name(&self) -> &'static str {
        if self.area { "resize_area" } else { "resize_bilinear" }
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let (x, y) = (node.input("x")?, node.output("y")?);
        let [h, w] = [1, 2].map(|axis| lower.shape(x)[axis]);
        let [n, oh, ow, c] = [0, 1, 2, 3].map(|axis| lower.shape(y)[axis]);
        let (len, quads) = (n * oh * ow * c, c.div_ceil(4));
        let p = Params {
            n: n as u32,
            h: h as u32,
            w: w as u32,
            oh: oh as u32,
            ow: ow as u32,
            c: c as u32,
            quads: quads as u32,
        };
        let touched = if self.area { n * h * w * c } else { 6 * len };
        lower.launch(Launch {
            kernel: &RESIZE,
            defines: Defines { vec: c.is_multiple_of(4), area: self.area },
            params: p,
            bindings: &named![x, y],
            groups: groups((n * oh * ow * quads) as u64),
            flops: touched as u64,
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Err(Error::shape(self.name(), "an image is resized as data, it has no gradient"))
    }
}
