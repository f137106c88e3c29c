//! One sampling step from x_t to x_{t-1}, everything after the network in one
//! kernel and in place. With `out` the network's prediction:
//!
//! ```text
//! x0 = out, or sqrt(1/abar) * x - sqrt(1/abar - 1) * out if it predicts the noise,
//! clamped to [-1, 1] if asked;
//! DDPM (Ho et al. 2020, eq. 7):     x' = coef1 * x0 + coef2 * x + sigma * z
//! DDIM (Song et al. 2021, eq. 12):  x' = sqrt(abar') * x0 + dir * eps + sigma * z,
//!     eps = (sqrt(1/abar) * x - x0) / sqrt(1/abar - 1), from the clamped x0.
//! ```
//!
//! z is drawn in the kernel as [`super::gaussian`] does, on [`STREAM_STEP`]
//! with the loop step in rng[2], or given. All coefficients come from a small
//! tensor that the host writes before each step, so one plan serves them all.

use super::blocks::{Blocks, expect};
use super::gaussian::{RNG, no_gradient};
use crate::diffusion::Update;
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Storage, TensorId};
use crate::kernel::{Kernel, read, read_write, write};
use crate::rng::STREAM_STEP;
use crate::{Error, Result, params};

const OP: &str = "denoise";

/// Elements of the coefficient tensor: the ten of [`denoise_coefs`], padded.
pub const DENOISE_COEFS: usize = 16;

params! {
    struct Params { n: u32, len: u32, blocks: u32, c: u32, wide: u32, stream: u32 }
}

static DENOISE: Kernel = Kernel {
    name: "denoise",
    source: include_str!("../../shaders/denoise.wgsl"),
    bindings: &[
        read_write("x"),
        read("prediction"),
        read("coefs"),
        read("rng").when("DRAWN"),
        read("given").when("GIVEN"),
        write("x0").when("KEEP_X0"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "WIDE", "DRAWN", "GIVEN", "KEEP_X0"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let bit = |i: i64, k: u32| (i >> k) & 1;
    let variant = |i| vec![bit(i, 0), bit(i, 1), bit(i, 2), 1 - bit(i, 2), bit(i, 3)];
    vec![(&DENOISE, (0..16).map(variant).collect())]
}

/// An update's coefficients in the order the kernel reads them; flags become
/// 0 or 1.
pub fn denoise_coefs(update: &Update) -> [f32; DENOISE_COEFS] {
    let mut coefs = [0.0; DENOISE_COEFS];
    coefs[..10].copy_from_slice(&[
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
    ]);
    coefs
}

#[derive(Debug)]
struct Denoise {
    blocks: Blocks,
    c: u32,
    wide: u32,
    given: bool,
}

/// Steps `x` [n, h, w, c], an input, to the next less noisy image in place.
///
/// `out` [n, h, w, co] is the network's output, co >= c; channels past c (a
/// learned variance) are not looked at. `coefs` `[16]` comes from
/// [`denoise_coefs`]; `rng` is u32 `[4]`: seed low word, seed high word, loop
/// step, index of the first image; `noise`, of x's shape, replaces the drawn
/// one. Returns the predicted clean image if `keep_x0`.
///
/// # Errors
/// [`Error::Shape`] if an operand does not fit, [`Error::Config`] if x is not
/// an input.
pub fn denoise(
    g: &mut Graph,
    x: TensorId,
    out: TensorId,
    coefs: TensorId,
    rng: TensorId,
    noise: Option<TensorId>,
    keep_x0: bool,
) -> Result<Option<TensorId>> {
    let shape = g.dims(OP, x)?;
    let [n, h, w, c] = shape;
    let wide = g.dims::<4>(OP, out)?[3];
    expect(g, OP, "x", x, DType::F32, &shape)?;
    expect(g, OP, "out", out, DType::F32, &[n, h, w, wide.max(c)])?;
    expect(g, OP, "coefs", coefs, DType::F32, &[DENOISE_COEFS])?;
    expect(g, OP, "rng", rng, DType::U32, RNG)?;
    if let Some(noise) = noise {
        expect(g, OP, "noise", noise, DType::F32, &shape)?;
    }
    if g.tensors[x.index()].storage != Storage::Pinned {
        return Err(Error::Config("denoise: only an input can be updated in place".into()));
    }
    let blocks = Blocks::of(OP, &shape)?;
    let op = Denoise { blocks, c: c as u32, wide: wide as u32, given: noise.is_some() };
    let outputs: &[&[usize]] = if keep_x0 { &[&shape] } else { &[] };
    Ok(g.push(op, &[x, out, coefs, noise.unwrap_or(rng)], outputs).first().copied())
}

impl Op for Denoise {
    fn name(&self) -> &'static str {
        OP
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Blocks { n, len, blocks } = self.blocks;
        let Denoise { c, wide, given, .. } = *self;
        let p = Params { n, len, blocks, c, wide, stream: STREAM_STEP };
        let i = &node.inputs;
        let x0 = node.outputs.first().copied();
        let defines = [self.blocks.vec(), wide != c, !given, given, x0.is_some()].map(i64::from);
        lower.launch(Launch {
            kernel: &DENOISE,
            defines: &defines,
            params: bytemuck::bytes_of(&p),
            bindings: &[
                Some(i[0]),
                Some(i[1]),
                Some(i[2]),
                (!given).then_some(i[3]),
                given.then_some(i[3]),
                x0,
            ],
            groups: self.blocks.groups(),
            flops: if given { 12 } else { 62 } * self.blocks.elements(),
        })
    }

    fn backward(&self, _: &mut Lower, _: &Node) -> Result<()> {
        Err(no_gradient(OP))
    }
}
