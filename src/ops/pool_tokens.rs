//! The two ends of an attention pool (guided-diffusion's `AttentionPool2d`,
//! after Radford et al. 2021, CLIP): the mean of a feature map becomes a token
//! before those of its positions, all get a learned embedding, and after the
//! attention only that token is read.
//!
//! ```text
//! pool_tokens:  y[n, 0, c] = mean over i of x[n, i, c] + positional[0, c]
//!               y[n, 1 + i, c] = x[n, i, c] + positional[1 + i, c]
//! first_token:  y[n, c] = x[n, 0, c]
//! ```
//!
//! Backward keeps nothing: dx[n, i] = dy[n, 1 + i] + dy[n, 0] / positions, and
//! dpositional is dy summed over the images; first_token's dx is dy at token 0
//! and zero elsewhere.

use super::mean_pool::{LANES, WINDOW};
use super::pixels::PixelRuns;
use super::{LOOP_TURNS, groups, sum_rows};
use crate::graph::{FileLayout, Graph, Init, Launch, Lower, Node, Op, ParamInfo, Target, TensorId};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params { n: u32, positions: u32, c: u32, windows: u32 }
}

params! {
    struct BackwardParams {
        n: u32, positions: u32, c: u32, quads: u32, pixels: u32, runs: u32,
    }
}

params! {
    struct FirstParams { n: u32, tokens: u32, c: u32, quads: u32 }
}

defines! {
    struct Defines { vec: bool }
}

static FORWARD: KernelOf<Params, Defines> = KernelOf::new(
    "pool_tokens",
    include_str!("../../shaders/pool_tokens.wgsl"),
    &[read("x"), read("positional"), write("y")],
);

defines! {
    struct BackwardDefines { vec: bool, acc: bool }
}

static BACKWARD: KernelOf<BackwardParams, BackwardDefines> = KernelOf::new(
    "pool_tokens_backward",
    include_str!("../../shaders/pool_tokens_backward.wgsl"),
    &[read("dy"), accumulate("dx")],
);

defines! {
    struct FirstDefines { vec: bool, backward: bool, acc: bool }
    where |d| d.backward || !d.acc
}

static FIRST: KernelOf<FirstParams, FirstDefines> = KernelOf::new(
    "first_token",
    include_str!("../../shaders/first_token.wgsl"),
    &[read("x"), accumulate("y")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![FORWARD.with_variants(), BACKWARD.with_variants(), FIRST.with_variants()]
}

#[derive(Debug, Clone, Copy)]
struct PoolTokens {
    n: usize,
    positions: usize,
    c: usize,
}

/// Tokens of `x` [n, h, w, c] and their mean, [n, 1 + h w, 1, c], plus a new
/// parameter `positional_embedding` [1 + h w, c] of the current scope. Files
/// hold it as [c, 1 + h w], which is how they hold a linear layer.
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4, is empty, or has more than 262,144
/// positions.
pub fn pool_tokens(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let [n, h, w, c] = g.dims("pool_tokens", x)?;
    let positions = h * w;
    if n * positions * c == 0 || positions > LANES * LOOP_TURNS as usize {
        let detail = format!("{:?} is empty or has too many positions", g.shape(x));
        return Err(Error::shape("pool_tokens", detail));
    }
    let positional = g.param(ParamInfo {
        name: "positional_embedding".into(),
        shape: vec![1 + positions, c],
        layout: FileLayout::Linear,
        init: Init::NormalTimes(1.0 / (c as f32).sqrt()),
    });
    let op = PoolTokens { n, positions, c };
    Ok(g.add_node(op, &named![x, positional], &[("y", &[n, 1 + positions, 1, c])])[0])
}

impl Op for PoolTokens {
    fn name(&self) -> &'static str {
        "pool_tokens"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let PoolTokens { n, positions, c } = *self;
        let windows = c.div_ceil(WINDOW);
        let [images, at, channels, w] = [n, positions, c, windows].map(|v| v as u32);
        let p = Params { n: images, positions: at, c: channels, windows: w };
        lower.launch(Launch {
            kernel: &FORWARD,
            defines: Defines { vec: c.is_multiple_of(4) },
            params: p,
            bindings: &named![
                x: node.input("x")?,
                positional: node.input("positional")?,
                y: node.output("y")?,
            ],
            groups: (n * windows) as u64,
            flops: 2 * (n * positions * c) as u64,
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let PoolTokens { n, positions, c } = *self;
        if let Some(dpositional) = lower.grad_target(node.input("positional")?) {
            sum_rows(lower, dy, [1, n, (1 + positions) * c], dpositional)?;
        }
        let Some(dx) = lower.grad_target(node.input("x")?) else { return Ok(()) };
        let runs = PixelRuns::new(lower, n, positions, c.div_ceil(4));
        let p = BackwardParams {
            n: n as u32,
            positions: positions as u32,
            c: c as u32,
            quads: runs.quads as u32,
            pixels: runs.pixels as u32,
            runs: runs.runs as u32,
        };
        lower.launch(Launch {
            kernel: &BACKWARD,
            defines: BackwardDefines { vec: c.is_multiple_of(4), acc: dx.add },
            params: p,
            bindings: &named![dy, dx: dx.tensor],
            groups: groups(runs.invocations as u64),
            flops: 2 * (n * positions * c) as u64,
        })
    }
}

#[derive(Debug, Clone, Copy)]
struct FirstToken {
    n: usize,
    tokens: usize,
    c: usize,
}

/// The first token of each image of `x` [n, h, w, c], in row order: [n, c].
///
/// # Errors
/// [`Error::Shape`] if x is not of rank 4 or is empty.
pub fn first_token(g: &mut Graph, x: TensorId) -> Result<TensorId> {
    let [n, h, w, c] = g.dims("first_token", x)?;
    if n * h * w * c == 0 {
        return Err(Error::shape("first_token", format!("{:?} is empty", g.shape(x))));
    }
    Ok(g.add_node(FirstToken { n, tokens: h * w, c }, &named![x], &[("y", &[n, c])])[0])
}

impl FirstToken {
    fn launch(&self, lower: &mut Lower, x: TensorId, y: Target, backward: bool) -> Result<()> {
        let quads = self.c.div_ceil(4);
        let [n, tokens, c] = [self.n, self.tokens, self.c].map(|v| v as u32);
        let p = FirstParams { n, tokens, c, quads: quads as u32 };
        let rows = if backward && !y.add { self.n * self.tokens } else { self.n };
        lower.launch(Launch {
            kernel: &FIRST,
            defines: FirstDefines { vec: self.c.is_multiple_of(4), backward, acc: y.add },
            params: p,
            bindings: &named![x, y: y.tensor],
            groups: groups((rows * quads) as u64),
            flops: 0,
        })
    }
}

impl Op for FirstToken {
    fn name(&self) -> &'static str {
        "first_token"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        self.launch(lower, node.input("x")?, Target::assign(node.output("y")?), false)
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        match lower.grad_target(node.input("x")?) {
            Some(dx) => self.launch(lower, dy, dx, true),
            None => Ok(()),
        }
    }
}
