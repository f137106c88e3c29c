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
use crate::graph::{DType, Graph, Launch, Lower, NamedTensor, Node, Op, Target, TensorId, bucket};
use crate::kernel::{Examples, Kernel, KernelOf, accumulate, read, read_write, write};
use crate::{Error, Result, defines, named, params};

params! {
    struct Params {
        tokens: u32, heads: u32, channels: u32,
        head_stride: u32, k_off: u32, v_off: u32,
        chunks: u32, blocks: u32, tasks: u32, scale: f32,
    }
}

/// Channels of a head. The examples are those of the published networks, and some others.
const HEADS: Examples<11> =
    Examples { range: 1..=u32::MAX, listed: [16, 24, 32, 33, 64, 96, 128, 144, 192, 256, 512] };

/// Among how many invocations the examples' results are divided.
const SLICES: Examples<8> = Examples { range: 1..=u32::MAX, listed: [1, 2, 3, 4, 5, 6, 8, 16] };

defines! {
    struct Defines {
        vec: bool,
        /// Channels of a head.
        d: u32 in HEADS,
        /// Rows that an invocation owns.
        owned: u32 in OWNED,
        /// Rows that it streams at a time.
        streamed: u32 in STREAMED,
        /// Owned rows stay in registers.
        hold: bool,
        /// Invocations that share the channels of a result.
        slices: u32 in SLICES,
        uni: bool,
        half: bool,
    }
    where |v| v.exists()
}

defines! {
    struct BackwardDefines {
        vec: bool,
        d: u32 in HEADS,
        owned: u32 in OWNED,
        streamed: u32 in STREAMED,
        hold: bool,
        slices: u32 in SLICES,
        uni: bool,
        half: bool,
        acc: bool,
    }
    where |v| v.forward().exists()
}

impl Defines {
    /// Whether some candidate cuts heads of this size up so. Only whole quads of channels
    /// are loaded together or stored as half.
    fn exists(self) -> bool {
        let Defines { vec, d, owned, streamed, hold, slices, uni, half } = self;
        let [owned, streamed, slices] = [owned, streamed, slices].map(|v| v as usize);
        let tile = Some(Tile { owned, streamed, hold, slices });
        CANDIDATES.iter().any(|c| c.tile(d as usize) == tile)
            && vec == d.is_multiple_of(4)
            && (vec || !(uni || half))
    }

    fn backward(self, acc: bool) -> BackwardDefines {
        let Defines { vec, d, owned, streamed, hold, slices, uni, half } = self;
        BackwardDefines { vec, d, owned, streamed, hold, slices, uni, half, acc }
    }
}

impl BackwardDefines {
    fn forward(self) -> Defines {
        let BackwardDefines { vec, d, owned, streamed, hold, slices, uni, half, acc: _ } = self;
        Defines { vec, d, owned, streamed, hold, slices, uni, half }
    }
}

static FORWARD: KernelOf<Params, Defines> = KernelOf::new(
    "attention",
    include_str!("../../shaders/attention.wgsl"),
    &[read("qkv").half("HALF"), write("y").half("HALF"), write("lse")],
);

/// dqkv counts as fully written: the launch that follows writes the rest.
static BACKWARD_Q: KernelOf<Params, BackwardDefines> = KernelOf::new(
    "attention_dq",
    include_str!("../../shaders/attention_dq.wgsl"),
    &[
        read("qkv").half("HALF"),
        read("y").half("HALF"),
        read("dy").half("HALF"),
        read("lse"),
        write("delta"),
        accumulate("dqkv").half("HALF"),
    ],
);

/// dqkv is read_write in every variant: it keeps dq.
static BACKWARD_KV: KernelOf<Params, BackwardDefines> = KernelOf::new(
    "attention_dkv",
    include_str!("../../shaders/attention_dkv.wgsl"),
    &[
        read("qkv").half("HALF"),
        read("dy").half("HALF"),
        read("lse"),
        read("delta"),
        read_write("dqkv").half("HALF"),
    ],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![FORWARD.with_variants(), BACKWARD_Q.with_variants(), BACKWARD_KV.with_variants()]
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

/// How the work of a pass is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tile {
    /// Rows an invocation owns.
    owned: usize,
    /// Rows it streams at a time.
    streamed: usize,
    /// Whether its rows stay in registers.
    hold: bool,
    /// Invocations that share the channels of its result.
    slices: usize,
}

/// Largest head that is held in registers.
const HOLD_LIMIT: usize = 64;

/// Channels of a larger head's result that one invocation forms.
const SLICE: usize = 32;

/// Rows owned and rows streamed at a time in [`CANDIDATES`].
const OWNED: [u32; 3] = [1, 2, 4];
const STREAMED: [u32; 5] = [1, 2, 4, 8, 16];

/// A way to cut a pass up, by name.
struct Candidate {
    name: &'static str,
    owned: usize,
    streamed: usize,
    hold: bool,
}

/// All ways. Names say rows owned x rows streamed at a time.
const CANDIDATES: [Candidate; 9] = {
    const fn rows(name: &'static str, owned: usize, streamed: usize) -> Candidate {
        Candidate { name, owned, streamed, hold: true }
    }
    const fn slices(name: &'static str, streamed: usize) -> Candidate {
        Candidate { name, owned: 1, streamed, hold: false }
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
            (true, 33..=HOLD_LIMIT) => self.owned == 1,
            (true, _) => false,
            (false, _) => d > 32,
        };
        let slices = if self.hold { 1 } else { d.div_ceil(SLICE) };
        fits.then_some(Tile { owned: self.owned, streamed: self.streamed, hold: self.hold, slices })
    }
}

impl Tile {
    /// What suits heads of `d` channels. More rows an invocation spare loads,
    /// but the text grows with rows times channels: software drivers then take
    /// minutes to compile, and GPUs spill.
    fn of(d: usize, software: bool) -> Tile {
        match d {
            // Software drivers keep registers in memory anyway.
            0..=32 if software => Tile { owned: 4, streamed: 1, hold: true, slices: 1 },
            0..=32 => Tile { owned: 2, streamed: 1, hold: true, slices: 1 },
            33..=HOLD_LIMIT => Tile { owned: 1, streamed: 1, hold: true, slices: 1 },
            _ => Tile { owned: 1, streamed: 2, hold: false, slices: d.div_ceil(SLICE) },
        }
    }

    /// The tile of a pass: [`Tile::of`], bounded, unless something else is asked for.
    fn choose(lower: &mut Lower, op: &'static str, g: Geometry, half: bool) -> Tile {
        let rule = Tile::of(g.d(), lower.caps.software).bounded(g);
        // The loops of large heads are kept short, with no more rows streamed at a time
        // than that takes.
        let possible = |t: &Tile| {
            *t == rule || t.hold || (t.turns(g) <= LOOP_TURNS && t.streamed <= 2 * rule.streamed)
        };
        let (names, tiles): (Vec<_>, Vec<_>) = CANDIDATES
            .iter()
            .filter_map(|c| Some((c.name, c.tile(g.d()).filter(possible)?)))
            .unzip();
        let bits = if half { 16 } else { 32 };
        let key = [bucket(g.n * g.heads), bucket(g.tokens), g.d(), bits];
        let rule = tiles.iter().position(|t| *t == rule).unwrap_or(0);
        tiles[lower.choose(op, &key, &names, rule)]
    }

    /// Turns of all loops of a large head.
    fn turns(&self, g: Geometry) -> u64 {
        (g.tokens.div_ceil(self.streamed) * (g.d().div_ceil(4) + 1)) as u64
    }

    /// The same with enough rows streamed at a time that the loops of a large
    /// head stay within what a driver turns.
    fn bounded(self, g: Geometry) -> Tile {
        let with = |streamed| Tile { streamed, ..self };
        let short = |streamed: &usize| with(*streamed).turns(g) <= LOOP_TURNS;
        let streamed = [self.streamed, 4, 8, 16].into_iter().find(short);
        if self.hold { self } else { with(streamed.unwrap_or(16)) }
    }

    fn tiles(&self, g: Geometry) -> usize {
        g.tokens.div_ceil(self.owned)
    }

    /// Workgroups per head, image and slice.
    fn blocks(&self, g: Geometry) -> usize {
        self.tiles(g).div_ceil(GROUP as usize)
    }

    /// Workgroups.
    fn tasks(&self, g: Geometry) -> usize {
        g.n * g.heads * self.slices * self.blocks(g)
    }
}

impl Geometry {
    fn d(&self) -> usize {
        self.channels / self.heads
    }

    /// Whether a workgroup's lanes load what is streamed together.
    fn uniform(&self, lower: &Lower) -> bool {
        let fits = self.d().is_multiple_of(4) && self.tokens < 1 << 15;
        let elements = (self.n * self.tokens).saturating_mul(3 * self.channels);
        lower.caps.uniform_loads && fits && elements < 1 << 25
    }

    fn defines(&self, lower: &Lower, tile: Tile, half: bool) -> Defines {
        Defines {
            vec: self.d().is_multiple_of(4),
            d: self.d() as u32,
            owned: tile.owned as u32,
            streamed: tile.streamed as u32,
            hold: tile.hold,
            slices: tile.slices as u32,
            uni: self.uniform(lower),
            half,
        }
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
    let outputs: [(_, &[usize]); 2] = [("y", &[n, h, w, c3 / 3]), ("lse", &[n, heads, h * w])];
    let dtype = g.dtype(qkv);
    if dtype == DType::F16 && !geometry.d().is_multiple_of(4) {
        // Heads that end within a stored quad of halves: rare, so not worth a kernel.
        let wide = cast(g, qkv, DType::F32)?;
        let y = attention(g, wide, heads, order)?;
        return cast(g, y, dtype);
    }
    Ok(g.add_node_as(Attention(geometry), &named![qkv], &outputs, dtype)[0])
}

impl Attention {
    /// Launches one of the two backward kernels, with `products` products of length d per
    /// pair of tokens.
    fn launch_backward(
        &self,
        lower: &mut Lower,
        kernel: &'static KernelOf<Params, BackwardDefines>,
        products: u64,
        (half, add): (bool, bool),
        bindings: &[NamedTensor],
    ) -> Result<()> {
        let g = self.0;
        let tile = Tile::choose(lower, kernel.name, g, half);
        lower.launch(Launch {
            kernel,
            defines: g.defines(lower, tile, half).backward(add),
            params: g.params(tile),
            bindings,
            groups: tile.tasks(g) as u64,
            flops: g.flops(products),
        })
    }
}

impl Op for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let g = self.0;
        let qkv = node.input("qkv")?;
        let half = lower.is_half(qkv);
        let tile = Tile::choose(lower, FORWARD.name, g, half);
        lower.launch(Launch {
            kernel: &FORWARD,
            defines: g.defines(lower, tile, half),
            params: g.params(tile),
            bindings: &named![qkv, y: node.output("y")?, lse: node.output("lse")?],
            groups: tile.tasks(g) as u64,
            flops: g.flops(2),
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let (y, lse) = (node.output("y")?, node.output("lse")?);
        let Some(dy) = lower.grad(y) else { return Ok(()) };
        let qkv = node.input("qkv")?;
        let Some(Target { tensor: dqkv, add }) = lower.grad_target(qkv) else { return Ok(()) };
        let g = self.0;
        let delta = lower.temp("delta", &[g.n, g.heads, g.tokens]);
        let flags = (lower.is_half(qkv), add);
        let bindings = named![qkv, y, dy, lse, delta, dqkv];
        self.launch_backward(lower, &BACKWARD_Q, 3, flags, &bindings)?;
        let bindings = named![qkv, dy, lse, delta, dqkv];
        self.launch_backward(lower, &BACKWARD_KV, 4, flags, &bindings)
    }
}
