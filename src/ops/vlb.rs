//! The variational bound of one image at its timestep, in bits per dimension
//! (Ho et al. 2020, eq. 5; Nichol and Dhariwal 2021, section 3):
//!
//! ```text
//! t > 0:  mean of KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)) / ln 2,
//! t = 0: -mean of log p(x_0 | x_1) / ln 2.
//! ```
//!
//! Both are normal distributions, p with the mean
//! `coef1 * px0 + coef2 * x_t` of the predicted image px0 (`out`, or
//! `sqrt(1/abar) * x_t - sqrt(1/abar - 1) * out` if it predicts the noise;
//! clamped to [-1, 1] if asked). With d = log of p's variance over q's, fixed
//! or a line in the network's variance channel v (`d = a + b * v`), and 1/s q's
//! inverse standard deviation:
//!
//! ```text
//! KL = (d + exp(-d) - 1 + exp(-d) * (coef1 * (x_0 - px0) / s)^2) / 2,
//! dKL/dd   = (1 - exp(-d) - exp(-d) * (coef1 * (x_0 - px0) / s)^2) / 2,
//! dKL/dpx0 = -exp(-d) * coef1^2 * (x_0 - px0) / s^2.
//! ```
//!
//! At t = 0 the image is one of 256 levels, whose probability is the normal
//! distribution's over a bin of +-1/255, and over all that is left at the
//! ends. Its cumulative distribution is approximated as
//! `cdf(u) = (1 + tanh(sqrt(2/pi) * (u + 0.044715 u^3))) / 2`, which is the
//! logistic function of `g(u) = sqrt(8/pi) * (u + 0.044715 u^3)`. So with u+
//! and u- the bin's edges in standard deviations, `a = g(u+)`, `b = g(u-)`:
//!
//! ```text
//! log(cdf(u+) - cdf(u-)) = log S(a) + log S(-b) + log(1 - exp(b - a)),
//! ```
//!
//! S the logistic function, in which nothing cancels: float32 resolves
//! probabilities down to the limit of 1e-12 below which the logarithm stays
//! that of 1e-12 and has no gradient (taken by its definition, the difference
//! is lost below 3e-8).
//!
//! Gradients reach `out` only. [`VlbOptions::mean_gradient`] says whether they
//! reach the image channels too (where the bound is the whole loss) or the
//! variance channels alone (where the mean is trained by another loss; Nichol
//! and Dhariwal 2021, section 3.1). Backward keeps the inputs and recomputes.

use super::gaussian::no_gradient;
use super::quads::{Quads, expect};
use super::sum_rows;
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Result, defines, named, params};

/// Coefficients of one image's term of the variational bound.
pub const VLB_COEFS: usize = 8;

params! {
    struct Params {
        n: u32, len: u32, quads: u32, splits: u32, quads_per_split: u32, c: u32, wide: u32,
        predicts_x0: u32, clip: u32, scale: f32,
    }
}

params! {
    struct BackwardParams {
        n: u32, len: u32, quads: u32, c: u32, wide: u32,
        predicts_x0: u32, clip: u32, mean_gradient: u32, scale: f32,
    }
}

defines! {
    struct Defines {
        vec: bool,
        /// The variance is learned.
        learned: bool,
        /// Squared errors are formed too.
        likelihood: bool,
        subgroup: bool,
    }
}

static VLB: KernelOf<Params, Defines> = KernelOf::new(
    "vlb",
    include_str!("../../shaders/vlb.wgsl"),
    &[
        read("out"),
        read("x0"),
        read("x_t"),
        read("coefs"),
        read("noise").when("LIKELIHOOD"),
        write("partial"),
    ],
);

defines! {
    struct BackwardDefines { vec: bool, learned: bool, acc: bool }
}

static VLB_BACKWARD: KernelOf<BackwardParams, BackwardDefines> = KernelOf::new(
    "vlb_backward",
    include_str!("../../shaders/vlb_backward.wgsl"),
    &[read("out"), read("x0"), read("x_t"), read("coefs"), read("dy"), accumulate("dout")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![VLB.with_variants(), VLB_BACKWARD.with_variants()]
}

/// Quads per workgroup: an image of 64 x 64 x 3 takes one.
const QUADS_PER_SPLIT: u32 = 4096;

/// What the network predicts and how the bound is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VlbOptions {
    /// Whether the first channels predict the clean image; the noise otherwise.
    pub predicts_x0: bool,
    /// Whether further channels predict the variance, as the coefficients say.
    pub learned: bool,
    /// Whether the image channels get a gradient.
    pub mean_gradient: bool,
    /// Whether the predicted image is clamped to [-1, 1].
    pub clip: bool,
}

#[derive(Debug)]
struct Vlb {
    /// Division of the image.
    quads: Quads,
    c: u32,
    options: VlbOptions,
    /// Whether the squared errors are wanted too.
    likelihood: bool,
}

/// The operands of both ops.
fn checked(
    g: &Graph,
    op: &'static str,
    [out, x0, x_t, coefs]: [TensorId; 4],
    options: VlbOptions,
) -> Result<(Quads, [usize; 4])> {
    let shape = g.dims::<4>(op, x0)?;
    let [n, h, w, c] = shape;
    let wide = if options.learned { 2 * c } else { c };
    expect(g, op, "x0", x0, DType::F32, &shape)?;
    expect(g, op, "x_t", x_t, DType::F32, &shape)?;
    expect(g, op, "out", out, DType::F32, &[n, h, w, wide])?;
    expect(g, op, "coefs", coefs, DType::F32, &[n, VLB_COEFS])?;
    Ok((Quads::of(op, &shape)?, shape))
}

/// The term of the variational bound of each image, `[n]`, in bits per
/// dimension, from the network's output `out` [n, h, w, c], or [n, h, w, 2 c]
/// with a learned variance, the clean image `x0` and the noisy one `x_t`
/// [n, h, w, c], and `coefs` [n, [`VLB_COEFS`]], of which
/// [`crate::diffusion::Tables::vlb_coefs`] gives a row. Only `out` gets a
/// gradient.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand does not fit.
pub fn vlb(
    g: &mut Graph,
    out: TensorId,
    x0: TensorId,
    x_t: TensorId,
    coefs: TensorId,
    options: VlbOptions,
) -> Result<TensorId> {
    let (quads, [n, .., c]) = checked(g, "vlb", [out, x0, x_t, coefs], options)?;
    let op = Vlb { quads, c: c as u32, options, likelihood: false };
    Ok(g.add_node(op, &named![out, x0, x_t, coefs], &[("y", &[n])])[0])
}

/// As [`vlb`], and how far the prediction is off: [n, 3] with the term in bits
/// per dimension, the mean squared error of the predicted image, and the one
/// of the noise that follows from it and x_t, against `noise` [n, h, w, c].
/// Without a gradient.
///
/// # Errors
/// [`crate::Error::Shape`] if an operand does not fit.
pub fn likelihood_terms(
    g: &mut Graph,
    out: TensorId,
    x0: TensorId,
    x_t: TensorId,
    noise: TensorId,
    coefs: TensorId,
    options: VlbOptions,
) -> Result<TensorId> {
    const OP: &str = "likelihood_terms";
    let (quads, shape) = checked(g, OP, [out, x0, x_t, coefs], options)?;
    expect(g, OP, "noise", noise, DType::F32, &shape)?;
    let op = Vlb { quads, c: shape[3] as u32, options, likelihood: true };
    Ok(g.add_node(op, &named![out, x0, x_t, coefs, noise], &[("y", &[shape[0], 3])])[0])
}

impl Vlb {
    fn wide(&self) -> u32 {
        if self.options.learned { 2 * self.c } else { self.c }
    }

    fn predicts_x0(&self) -> u32 {
        self.options.predicts_x0.into()
    }
}

impl Op for Vlb {
    fn name(&self) -> &'static str {
        if self.likelihood { "likelihood_terms" } else { "vlb" }
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Quads { n, len, quads } = self.quads;
        let splits = quads.div_ceil(QUADS_PER_SPLIT);
        let p = Params {
            n,
            len,
            quads,
            splits,
            quads_per_split: quads.div_ceil(splits),
            c: self.c,
            wide: self.wide(),
            predicts_x0: self.predicts_x0(),
            clip: self.options.clip.into(),
            scale: 1.0 / len as f32,
        };
        let y = node.output("y")?;
        let terms = if self.likelihood { 3 } else { 1 };
        let [rows, columns] = [n as usize, splits as usize];
        let partial = if splits == 1 { y } else { lower.temp("partial", &[rows, columns, terms]) };
        lower.launch(Launch {
            kernel: &VLB,
            defines: Defines {
                vec: self.quads.vec(),
                learned: self.options.learned,
                likelihood: self.likelihood,
                subgroup: lower.caps.subgroups,
            },
            params: p,
            bindings: &named![
                out: node.input("out")?,
                x0: node.input("x0")?,
                x_t: node.input("x_t")?,
                coefs: node.input("coefs")?,
                noise: node.optional_input("noise"),
                partial,
            ],
            groups: u64::from(n) * u64::from(splits),
            flops: 40 * self.quads.elements(),
        })?;
        match splits {
            1 => Ok(()),
            _ => sum_rows(lower, partial, [rows, columns, terms], Target::assign(y)),
        }
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        if self.likelihood {
            return Err(no_gradient("likelihood_terms"));
        }
        if !self.options.learned && !self.options.mean_gradient {
            return Ok(());
        }
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let Some(dout) = lower.grad_target(node.input("out")?) else { return Ok(()) };
        let Quads { n, len, quads } = self.quads;
        let p = BackwardParams {
            n,
            len,
            quads,
            c: self.c,
            wide: self.wide(),
            predicts_x0: self.predicts_x0(),
            clip: self.options.clip.into(),
            mean_gradient: self.options.mean_gradient.into(),
            scale: (1.0 / (std::f64::consts::LN_2 * f64::from(len))) as f32,
        };
        lower.launch(Launch {
            kernel: &VLB_BACKWARD,
            defines: BackwardDefines {
                vec: self.quads.vec(),
                learned: self.options.learned,
                acc: dout.add,
            },
            params: p,
            bindings: &named![
                out: node.input("out")?,
                x0: node.input("x0")?,
                x_t: node.input("x_t")?,
                coefs: node.input("coefs")?,
                dy,
                dout: dout.tensor,
            ],
            groups: self.quads.groups(),
            flops: 40 * self.quads.elements(),
        })
    }
}
