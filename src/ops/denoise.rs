//! One sampling step from x_t to its neighbour, everything after the network
//! in one kernel and in place. With `out` the network's prediction:
//!
//! ```text
//! out = without + w * (out - without)         if there is a prediction without class;
//! x0  = out, or sqrt(1/abar) * x - sqrt(1/abar - 1) * out if it predicts the noise,
//! clamped to [-1, 1] if asked;
//! DDPM (Ho et al. 2020, eq. 7):
//!     x' = coef1 * x0 + coef2 * x + guidance * exp(d) * grad + sigma * exp(d/2) * z,
//! DDIM (Song et al. 2021, eq. 12):
//!     eps = (sqrt(1/abar) * x - x0) / sqrt(1/abar - 1) - guidance * grad, from the clamped x0,
//!     x0 += sqrt(1/abar - 1) * guidance * grad,
//!     x' = sqrt(abar') * x0 + dir * eps + sigma * z.
//! ```
//!
//! d is 0, or with a learned variance (Nichol and Dhariwal 2021, eq. 15) the
//! logarithm of the ratio that the network's variance channel says the variance
//! has to the lower bound in `sigma` and `guidance`. grad is the gradient of
//! scale * log p(y | x_t) by a classifier (Dhariwal and Nichol 2021): DDPM
//! shifts the mean by variance * grad, DDIM the noise by sqrt(1 - abar) * grad,
//! from which a new x0 follows that is not clamped again. `without` and w are
//! classifier-free guidance (Ho and Salimans 2022).
//!
//! z is drawn in the kernel as [`super::gaussian`] does, on [`STREAM_STEP`]
//! with the loop step in rng[2], or given. All coefficients come from a small
//! tensor that the host writes before each step, so one plan serves them all.

use super::gaussian::{RNG, no_gradient};
use super::quads::{Quads, expect};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Storage, TensorId};
use crate::kernel::{Kernel, KernelOf, read, read_write, write};
use crate::rng::STREAM_STEP;
use crate::{Error, Result, defines, named, params};
use bytemuck::{Pod, Zeroable};

const OP: &str = "denoise";

/// Elements of the coefficient tensor: those of [`denoise_coefs`], padded.
pub const DENOISE_COEFS: usize = 16;

params! {
    struct Params {
        n: u32, len: u32, quads: u32, c: u32, wide: u32, stream: u32, learned: u32,
        unconditional: u32,
    }
}

defines! {
    struct Defines {
        vec: bool,
        /// The prediction has more channels or more images than x.
        wide: bool,
        /// The noise is drawn.
        drawn: bool,
        /// The noise is an operand.
        given: bool,
        /// A classifier's gradient guides the step.
        guided: bool,
        /// The predicted clean image is wanted.
        keep_x0: bool,
    }
    where |d| d.drawn != d.given
}

static DENOISE: KernelOf<Params, Defines> = KernelOf::new(
    "denoise",
    include_str!("../../shaders/denoise.wgsl"),
    &[
        read_write("x"),
        read("prediction"),
        read("coefs"),
        read("rng").when("DRAWN"),
        read("given").when("GIVEN"),
        read("gradient").when("GUIDED"),
        write("x0").when("KEEP_X0"),
    ],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![DENOISE.with_variants()]
}

/// [`Update::kind`] of an ancestral (DDPM) step.
pub const UPDATE_DDPM: u32 = 0;
/// [`Update::kind`] of a DDIM step.
pub const UPDATE_DDIM: u32 = 1;

/// One sampling step for the fused kernel; its coefficients, field by field.
///
/// With x = x_t, z a standard normal, out and v the network's image and
/// variance channels, grad the gradient of scale * log p(y | x_t), and the
/// optional terms left out where there is no such operand:
/// ```text
/// out = out without class + guidance_free (out - out without class)
/// x0  = predicts_x0 ? out : sqrt_recip_abar x - sqrt_recipm1_abar out
/// x0  = clip ? clamp(x0, -1, 1) : x0
/// DDPM: d      = log_variance_offset + log_variance_slope v
///       x_prev = coef1 x0 + coef2 x + guidance exp(d) grad + sigma exp(d/2) z
/// DDIM: eps    = (sqrt_recip_abar x - x0) / sqrt_recipm1_abar - guidance grad
///       x0     = sqrt_recip_abar x - sqrt_recipm1_abar eps
///       x_prev = sqrt_abar_prev x0 + dir eps + sigma z
/// ```
/// Guidance by a classifier: Dhariwal and Nichol 2021, algorithms 1 and 2;
/// without one: Ho and Salimans 2022.
#[repr(C)]
#[derive(Debug, Clone, Copy, PartialEq, Pod, Zeroable)]
pub struct Update {
    /// [`UPDATE_DDPM`] or [`UPDATE_DDIM`].
    pub kind: u32,
    /// 1 if the network predicts x_0, 0 if it predicts the noise.
    pub predicts_x0: u32,
    /// 1 to clamp x_0 to -1..=1.
    pub clip: u32,
    /// sqrt(1 / abar).
    pub sqrt_recip_abar: f32,
    /// sqrt(1 / abar - 1).
    pub sqrt_recipm1_abar: f32,
    /// DDPM: weight of x_0 in the posterior mean.
    pub coef1: f32,
    /// DDPM: weight of x_t in the posterior mean.
    pub coef2: f32,
    /// DDIM: sqrt(abar of the step arrived at).
    pub sqrt_abar_prev: f32,
    /// DDIM: sqrt(1 - abar of the step arrived at - sigma^2); 0 for DDPM.
    pub dir: f32,
    /// Standard deviation of the added noise, of a learned variance its lower
    /// bound; 0 at the last step.
    pub sigma: f32,
    /// Factor of a classifier's gradient. DDPM: the variance, of a learned one
    /// its lower bound; DDIM: sqrt(1 - abar).
    pub guidance: f32,
    /// DDPM with a learned variance: its logarithm above the lower bound's
    /// where the variance channel is 0.
    pub log_variance_offset: f32,
    /// The same logarithm's slope in the variance channel.
    pub log_variance_slope: f32,
    /// Scale of classifier-free guidance: 0 ignores the class, 1 is the
    /// conditional network alone, more exaggerates the class.
    pub guidance_free: f32,
}

/// An update's coefficients in the order the kernel reads them; flags become
/// 0 or 1.
pub fn denoise_coefs(update: &Update) -> [f32; DENOISE_COEFS] {
    let mut coefs = [0.0; DENOISE_COEFS];
    coefs[..14].copy_from_slice(&[
        update.kind as f32,
        update.predicts_x0 as f32,
        update.clip as f32,
        update.sqrt_recip_abar,
        update.sqrt_recipm1_abar,
        update.coef1,
        update.coef2,
        update.sqrt_abar_prev,
        update.dir,
        update.sigma,
        update.guidance,
        update.log_variance_offset,
        update.log_variance_slope,
        update.guidance_free,
    ]);
    coefs
}

/// Operands of [`denoise`].
#[derive(Debug, Clone, Copy)]
pub struct DenoiseInputs {
    /// x_t [n, h, w, c], an input of the graph; overwritten.
    pub x: TensorId,
    /// The network's output [n, h, w, co], co >= c. With co = 2 c the further
    /// channels are the variance's, looked at if the coefficients say so; any
    /// others are not looked at.
    pub out: TensorId,
    /// `[16]`, from [`denoise_coefs`].
    pub coefs: TensorId,
    /// u32 `[4]`: seed low word, seed high word, loop step, index of the first
    /// image.
    pub rng: TensorId,
    /// Noise of x's shape that replaces the drawn one.
    pub noise: Option<TensorId>,
    /// Gradient of scale * log p(y | x_t) by x_t, of x's shape.
    pub guidance: Option<TensorId>,
    /// Whether `out` is [2 n, h, w, co]: first the images with their class,
    /// then all of them again without.
    pub unconditional: bool,
}

#[derive(Debug)]
struct Denoise {
    inputs: DenoiseInputs,
    quads: Quads,
    c: u32,
    wide: u32,
}

/// Steps `x` to the next, less noisy, image in place (or to a noisier one, as
/// the coefficients say). Returns the predicted clean image [n, h, w, c] if
/// `keep_x0`.
///
/// # Errors
/// [`Error::Shape`] if an operand does not fit, [`Error::Config`] if x is not
/// an input.
pub fn denoise(g: &mut Graph, inputs: DenoiseInputs, keep_x0: bool) -> Result<Option<TensorId>> {
    let DenoiseInputs { x, out, coefs, rng, noise, guidance, unconditional } = inputs;
    let shape = g.dims(OP, x)?;
    let [n, h, w, c] = shape;
    let wide = g.dims::<4>(OP, out)?[3];
    let rows = if unconditional { 2 * n } else { n };
    expect(g, OP, "x", x, DType::F32, &shape)?;
    expect(g, OP, "out", out, DType::F32, &[rows, h, w, wide.max(c)])?;
    expect(g, OP, "coefs", coefs, DType::F32, &[DENOISE_COEFS])?;
    expect(g, OP, "rng", rng, DType::U32, RNG)?;
    for (operand, id) in [("noise", noise), ("guidance", guidance)] {
        if let Some(id) = id {
            expect(g, OP, operand, id, DType::F32, &shape)?;
        }
    }
    if g.tensors[x.index()].storage != Storage::Pinned {
        return Err(Error::Config("denoise: only an input can be updated in place".into()));
    }
    let op = Denoise { inputs, quads: Quads::of(OP, &shape)?, c: c as u32, wide: wide as u32 };
    // What is given is not drawn.
    let rng = if noise.is_some() { None } else { Some(rng) };
    let operands = named![x, out, coefs, rng, noise, guidance];
    let outputs: &[(_, &[usize])] = if keep_x0 { &[("x0", &shape)] } else { &[] };
    Ok(g.add_node(op, &operands, outputs).first().copied())
}

impl Op for Denoise {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Quads { n, len, quads } = self.quads;
        let Denoise { inputs, c, wide, .. } = *self;
        let p = Params {
            n,
            len,
            quads,
            c,
            wide,
            stream: STREAM_STEP,
            learned: (wide == 2 * c).into(),
            unconditional: inputs.unconditional.into(),
        };
        let [noise, guidance] = ["noise", "guidance"].map(|name| node.optional_input(name));
        let x0 = node.optional_output("x0");
        let given = noise.is_some();
        lower.launch(Launch {
            kernel: &DENOISE,
            defines: Defines {
                vec: self.quads.vec(),
                wide: wide != c || inputs.unconditional,
                drawn: !given,
                given,
                guided: guidance.is_some(),
                keep_x0: x0.is_some(),
            },
            params: p,
            bindings: &named![
                x: node.input("x")?,
                prediction: node.input("out")?,
                coefs: node.input("coefs")?,
                rng: node.optional_input("rng"),
                given: noise,
                gradient: guidance,
                x0,
            ],
            groups: self.quads.groups(),
            flops: if given { 20 } else { 70 } * self.quads.elements(),
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Err(no_gradient(OP))
    }
}
