//! Multi-head self-attention over the pixels (tokens) of an image.
//!
//! qkv [n, h, w, 3c] holds a query, a key and a value of d = c / heads
//! channels per token and head. With i, j over the t = h*w tokens of one image:
//!     s[i,j] = dot(q[i], k[j]) / sqrt(d)
//!     w[i,j] = softmax over j of s[i,j]
//!     y[i]   = sum over j of w[i,j] * v[j]
//! (the reference scales q and k by d^-1/4 each, which is the same).
//!
//! The t x t weights are never stored: the softmax is streamed with a running
//! maximum (Milakov and Gimelshein 2018, "Online normalizer calculation for
//! softmax"; Dao et al. 2022, "FlashAttention"). Backward keeps qkv, y and one
//! number per query, lse[i] = log2 of the sum over j of exp(s[i,j]), rebuilds
//! w from it and forms
//!     delta[i] = dot(dy[i], y[i])
//!     ds[i,j]  = w[i,j] * (dot(dy[i], v[j]) - delta[i])
//!     dq[i]    = sum over j of ds[i,j] * k[j] / sqrt(d)
//!     dk[j]    = sum over i of ds[i,j] * q[i] / sqrt(d)
//!     dv[j]    = sum over i of w[i,j] * dy[i]
//! in two launches: one over queries (dq, delta), one over keys (dk, dv).
//!
//! An invocation owns a few rows (queries or keys) and streams the others, so
//! each load serves several rows. Heads of up to [`HOLD_LIMIT`] channels keep
//! their rows in registers; larger ones read them again block by block, and
//! several invocations share the channels of the result.

use super::{GROUP, LOOP_TURNS, cast};
use crate::graph::{DType, Graph, Launch, Lower, Node, Op, Target, TensorId, bucket};
use crate::kernel::{Kernel, accumulate, read, read_write, write};
use crate::{Error, Result, params};

params! {
    struct Params {
        tokens: u32, heads: u32, channels: u32,
        head_stride: u32, k_off: u32, v_off: u32,
        chunks: u32, blocks: u32, tasks: u32, scale: f32,
    }
}

static FORWARD: Kernel = Kernel {
    name: "attention",
    source: include_str!("../../shaders/attention.wgsl"),
    bindings: &[read("qkv").half("HALF"), write("y").half("HALF"), write("lse")],
    params: Params::FIELDS,
    defines: &["VEC", "D", "TQ", "TK", "HOLD", "SLICES", "UNI", "HALF"],
};

static BACKWARD_Q: Kernel = Kernel {
    name: "attention_dq",
    source: include_str!("../../shaders/attention_dq.wgsl"),
    // dqkv counts as fully written: the launch that follows writes the rest.
    bindings: &[
        read("qkv").half("HALF"),
        read("y").half("HALF"),
        read("dy").half("HALF"),
        read("lse"),
        write("delta"),
        accumulate("dqkv").half("HALF"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "D", "TQ", "TK", "HOLD", "SLICES", "UNI", "HALF", "ACC"],
};

static BACKWARD_KV: Kernel = Kernel {
    name: "attention_dkv",
    source: include_str!("../../shaders/attention_dkv.wgsl"),
    // dqkv is read_write in every variant: it keeps dq.
    bindings: &[
        read("qkv").half("HALF"),
        read("dy").half("HALF"),
        read("lse"),
        read("delta"),
        read_write("dqkv").half("HALF"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "D", "TQ", "TK", "HOLD", "SLICES", "UNI", "HALF", "ACC"],
};

/// Head sizes that models of the reference use, and some that they do not.
const LISTED_HEADS: [usize; 9] = [16, 24, 32, 33, 64, 96, 128, 192, 256];

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let mut variants = [Vec::new(), Vec::new(), Vec::new()];
    for d in LISTED_HEADS {
        for tile in CANDIDATES.iter().filter_map(|c| c.tile(d)) {
            let on = 0..=i64::from(d.is_multiple_of(4));
            for (uniform, half) in on.clone().flat_map(|u| on.clone().map(move |h| (u, h))) {
                let of = |pass| tile.defines(pass, d, [uniform, half]);
                variants[0].push(of(Pass::Forward));
                for acc in [0, 1] {
                    variants[1].push([of(Pass::Queries), vec![acc]].concat());
                    variants[2].push([of(Pass::Keys), vec![acc]].concat());
                }
            }
        }
    }
    for v in &mut variants {
        v.sort();
        v.dedup();
    }
    let [forward, dq, dkv] = variants;
    vec![(&FORWARD, forward), (&BACKWARD_Q, dq), (&BACKWARD_KV, dkv)]
}

/// How the 3c channels of qkv are laid out; the sizes are the same, so a
/// checkpoint does not tell (the reference's `use_new_attention_order`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttentionOrder {
    /// `[heads][q, k, v][d]`, the reference's default.
    Legacy,
    /// `[q, k, v][heads][d]`.
    New,
}

/// Sizes of one attention.
#[derive(Debug, Clone, Copy)]
struct Geometry {
    n: usize,
    tokens: usize,
    channels: usize,
    heads: usize,
    order: AttentionOrder,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pass {
    Forward,
    Queries,
    Keys,
}

/// How the work of a pass is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    /// Rows an invocation owns.
    own: usize,
    /// Rows it streams at a time.
    block: usize,
    /// Whether its rows stay in registers.
    hold: bool,
    /// Invocations that share the channels of its result.
    slices: usize,
}

/// Largest head that is held in registers.
const HOLD_LIMIT: usize = 64;

/// Channels of a larger head's result that one invocation forms.
const SLICE: usize = 32;

/// A way to cut a pass up, by name.
struct Candidate {
    name: &'static str,
    own: usize,
    block: usize,
    hold: bool,
}

/// All ways. Names say rows owned x rows streamed at a time.
const CANDIDATES: [Candidate; 9] = {
    const fn rows(name: &'static str, own: usize, block: usize) -> Candidate {
        Candidate { name, own, block, hold: true }
    }
    const fn slices(name: &'static str, block: usize) -> Candidate {
        Candidate { name, own: 1, block, hold: false }
    }
    [
        rows("rows4x1", 4, 1),
        rows("rows4x2", 4, 2),
        rows("rows2x1", 2, 1),
        rows("rows2x2", 2, 2),
        rows("rows1x1", 1, 1),
        slices("slices1x2", 2),
        slices("slices1x4", 4),
        slices("slices1x8", 8),
        slices("slices1x16", 16),
    ]
};

impl Candidate {
    /// The tile for heads of `d` channels, if it suits them: several owned rows of
    /// large heads take minutes to compile, and slices are for large heads.
    fn tile(&self, d: usize) -> Option<Tile> {
        let fits = match (self.hold, d) {
            (true, 0..=32) => true,
            (true, 33..=HOLD_LIMIT) => self.own == 1,
            (true, _) => false,
            (false, _) => d > 32,
        };
        let slices = if self.hold { 1 } else { d.div_ceil(SLICE) };
        fits.then_some(Tile { own: self.own, block: self.block, hold: self.hold, slices })
    }
}

impl Tile {
    /// What suits heads of `d` channels. More rows an invocation spare loads,
    /// but the text grows with rows times channels: software drivers then take
    /// minutes to compile, and GPUs spill.
    fn of(d: usize, software: bool) -> Tile {
        match d {
            // Software drivers keep registers in memory anyway.
            0..=32 if software => Tile { own: 4, block: 1, hold: true, slices: 1 },
            0..=32 => Tile { own: 2, block: 1, hold: true, slices: 1 },
            33..=HOLD_LIMIT => Tile { own: 1, block: 1, hold: true, slices: 1 },
            _ => Tile { own: 1, block: 2, hold: false, slices: d.div_ceil(SLICE) },
        }
    }

    /// The tile of a pass: [`Tile::of`], bounded, unless something else is asked for.
    fn choose(lower: &mut Lower, op: &'static str, g: Geometry, half: i64) -> Tile {
        let rule = Tile::of(g.d(), lower.caps.software).bounded(g);
        // The loops of large heads are kept short, and a block no longer than that takes.
        let possible = |t: &Tile| {
            *t == rule || t.hold || (t.turns(g) <= LOOP_TURNS && t.block <= 2 * rule.block)
        };
        let (names, tiles): (Vec<_>, Vec<_>) = CANDIDATES
            .iter()
            .filter_map(|c| Some((c.name, c.tile(g.d()).filter(possible)?)))
            .unzip();
        let bits = if half == 0 { 32 } else { 16 };
        let key = [bucket(g.n * g.heads), bucket(g.tokens), g.d(), bits];
        let rule = tiles.iter().position(|t| *t == rule).unwrap_or(0);
        tiles[lower.choose(op, &key, &names, rule)]
    }

    /// Turns of all loops of a large head.
    fn turns(&self, g: Geometry) -> u64 {
        (g.tokens.div_ceil(self.block) * (g.d().div_ceil(4) + 1)) as u64
    }

    /// The same with enough rows streamed at a time that the loops of a large
    /// head stay within what a driver turns.
    fn bounded(self, g: Geometry) -> Tile {
        let with = |block| Tile { block, ..self };
        let short = |block: &usize| with(*block).turns(g) <= LOOP_TURNS;
        let block = [self.block, 4, 8, 16].into_iter().find(short);
        if self.hold { self } else { with(block.unwrap_or(16)) }
    }

    fn tiles(&self, g: Geometry) -> usize {
        g.tokens.div_ceil(self.own)
    }

    /// Workgroups per head, image and slice.
    fn blocks(&self, g: Geometry) -> usize {
        self.tiles(g).div_ceil(GROUP as usize)
    }

    /// Workgroups.
    fn tasks(&self, g: Geometry) -> usize {
        g.n * g.heads * self.slices * self.blocks(g)
    }

    /// The defines that all three kernels begin with.
    fn defines(&self, pass: Pass, d: usize, [uniform, half]: [i64; 2]) -> Vec<i64> {
        let (tq, tk) =
            if pass == Pass::Keys { (self.block, self.own) } else { (self.own, self.block) };
        let sizes = [usize::from(d.is_multiple_of(4)), d, tq, tk, self.hold.into(), self.slices];
        [&sizes.map(|v| v as i64)[..], &[uniform, half]].concat()
    }
}

impl Geometry {
    fn d(&self) -> usize {
        self.channels / self.heads
    }

    /// Whether a workgroup's lanes load what is streamed together, as a define.
    fn uniform(&self, lower: &Lower) -> i64 {
        let fits = self.d().is_multiple_of(4) && self.tokens < 1 << 15;
        let elements = (self.n * self.tokens).saturating_mul(3 * self.channels);
        i64::from(lower.caps.uniform_loads && fits && elements < 1 << 25)
    }

    fn params(&self, tile: Tile) -> Params {
        let (c, d) = (self.channels as u32, self.d() as u32);
        let (head_stride, k_off, v_off) = match self.order {
            AttentionOrder::Legacy => (3 * d, d, 2 * d),
            AttentionOrder::New => (d, c, 2 * c),
        };
        Params {
            tokens: self.tokens as u32,
            heads: self.heads as u32,
            channels: c,
            head_stride,
            k_off,
            v_off,
            chunks: d.div_ceil(4),
            blocks: tile.blocks(*self) as u32,
            tasks: tile.tasks(*self) as u32,
            scale: 1.0 / (d as f32).sqrt(),
        }
    }

    /// Of `products` products of length d per pair of tokens.
    fn flops(&self, products: u64) -> u64 {
        2 * products * (self.n * self.tokens) as u64 * (self.tokens * self.channels) as u64
    }
}

#[derive(Debug)]
struct Attention(Geometry);

/// Attends over the pixels of `qkv` [n, h, w, 3c] within each image, with
/// `heads` heads of c / heads channels; the result is [n, h, w, c], of qkv's
/// precision.
///
/// # Errors
/// [`Error::Shape`] if the channels do not divide into three times `heads`.
pub fn attention(
    g: &mut Graph,
    qkv: TensorId,
    heads: usize,
    order: AttentionOrder,
) -> Result<TensorId> {
    let [n, h, w, c3] = g.dims("attention", qkv)?;
    if heads == 0 || c3 == 0 || c3 % (3 * heads) != 0 {
        return Err(Error::shape(
            "attention",
            format!("{c3} channels do not divide into q, k and v of {heads} heads"),
        ));
    }
    let geometry = Geometry { n, tokens: h * w, channels: c3 / 3, heads, order };
    let shapes: [&[usize]; 2] = [&[n, h, w, c3 / 3], &[n, heads, h * w]];
    let dtype = g.dtype(qkv);
    if dtype == DType::F16 && !geometry.d().is_multiple_of(4) {
        // Heads that end within a stored quad of halves: rare, so not worth a kernel.
        let wide = cast(g, qkv, DType::F32)?;
        let y = attention(g, wide, heads, order)?;
        return cast(g, y, dtype);
    }
    Ok(g.push_as(Attention(geometry), &[qkv], &shapes, dtype)[0])
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let g = self.0;
        let half = lower.half(node.inputs[0]);
        let tile = Tile::choose(lower, FORWARD.name, g, half);
        lower.launch(Launch {
            kernel: &FORWARD,
            defines: &tile.defines(Pass::Forward, g.d(), [g.uniform(lower), half]),
            params: bytemuck::bytes_of(&g.params(tile)),
            bindings: &[Some(node.inputs[0]), Some(node.outputs[0]), Some(node.outputs[1])],
            groups: tile.tasks(g) as u64,
            flops: g.flops(2),
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let (y, lse) = (node.outputs[0], node.outputs[1]);
        let Some(dy) = lower.grad(y) else { return Ok(()) };
        let qkv = node.inputs[0];
        let Some(Target { tensor: dqkv, add }) = lower.grad_target(qkv) else { return Ok(()) };
        let g = self.0;
        let delta = lower.temp("delta", &[g.n, g.heads, g.tokens]);
        let passes: [(_, _, &[_], _); 2] = [
            (Pass::Queries, &BACKWARD_Q, &[qkv, y, dy, lse, delta, dqkv], 3),
            (Pass::Keys, &BACKWARD_KV, &[qkv, dy, lse, delta, dqkv], 4),
        ];
        for (pass, kernel, bindings, products) in passes {
            let half = lower.half(qkv);
            let tile = Tile::choose(lower, kernel.name, g, half);
            let mut defines = tile.defines(pass, g.d(), [g.uniform(lower), half]);
            defines.push(add.into());
            lower.launch(Launch {
                kernel,
                defines: &defines,
                params: bytemuck::bytes_of(&g.params(tile)),
                bindings: &bindings.iter().map(|b| Some(*b)).collect::<Vec<_>>(),
                groups: tile.tasks(g) as u64,
                flops: g.flops(products),
            })?;
        }
        Ok(())
    }
}
