//! Winograd's minimal filtering F(2x2, 3x3) and F(4x4, 3x3) for 3x3 convolutions
//! of stride 1 (Lavin and Gray, arXiv:1509.09308):
//!
//! ```text
//! y = AT [ (G g GT) * (BT d B) ] A
//! ```
//!
//! for every M x M tile of y, the (M + 2)^2 window d of x that it reads and every
//! window g of the weight. The elementwise products, summed over the input
//! channels, are one product of matrices for each of the (M + 2)^2 points, with 36
//! multiplications where the direct sum has 144 (M = 4) or 16 for 36 (M = 2).
//!
//! * forward: transform x and the weight, multiply ([`super::gemm`]), transform back
//!   while bias, embedding and residual are added;
//! * dx is the same with dy for x and the weight turned by half a circle and
//!   transposed;
//! * dweight = GT [ sum over tiles of (BT d B)^T (A dy AT) ] G; dbias is a
//!   combination of the sums over tiles of A dy AT.
//!
//! Large images go in several rounds of tiles, so that what lies between the
//! transforms stays small. It has 32 bits in half precision too.

use super::conv2d::Geometry;
use super::{gemm, groups, staged};
use crate::Result;
use crate::graph::{Launch, Lower, Moments, Target, TensorId, bucket};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::params;

params! {
    struct TileParams {
        h: u32, w: u32, c: u32, tiles_x: u32, tiles_y: u32, first_tile: u32, tiles: u32,
    }
}

params! {
    struct WeightParams { rows: u32, quads: u32 }
}

params! {
    struct GradParams { rows: u32, quads: u32, splits: u32 }
}

static INPUT: Kernel = Kernel {
    name: "winograd_input",
    source: include_str!("../../shaders/winograd_input.wgsl"),
    bindings: &[read("x").half("HALF"), write("v"), read("coefs").when("NORM")],
    params: TileParams::FIELDS,
    defines: &["M", "GRAD", "NORM", "HALF"],
};

static WEIGHTS: Kernel = Kernel {
    name: "winograd_weights",
    source: include_str!("../../shaders/winograd_weights.wgsl"),
    bindings: &[read("weight").half("HALF"), write("u")],
    params: WeightParams::FIELDS,
    defines: &["M", "FLIP", "HALF"],
};

/// The rounds together define every element of y.
static OUTPUT: Kernel = Kernel {
    name: "winograd_output",
    source: include_str!("../../shaders/winograd_output.wgsl"),
    bindings: &[
        read("m"),
        read("bias").when("BIAS"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("HALF"),
        accumulate("y").half("HALF"),
        write("moments").when("MOMENTS"),
    ],
    params: TileParams::FIELDS,
    defines: &["M", "BIAS", "EMB", "RESIDUAL", "ACC", "HALF", "MOMENTS"],
};

static GRAD: Kernel = Kernel {
    name: "winograd_dw",
    source: include_str!("../../shaders/winograd_dw.wgsl"),
    bindings: &[read("partial"), accumulate("dweight"), accumulate("dbias")],
    params: GradParams::FIELDS,
    defines: &["M", "ACC"],
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let mut variants = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
    for m in [2, 4] {
        for half in [0, 1] {
            for norm in 0..3 {
                variants[0].push(vec![m, 0, norm, half]);
            }
            variants[0].push(vec![m, 1, 0, half]);
            for flag in [0, 1] {
                variants[1].push(vec![m, flag, half]);
                variants[2].push(vec![m, 0, 0, 0, flag, half, 0]);
                for residual in [0, 1] {
                    for moments in 0..=i64::from(m == 4) {
                        variants[2].push(vec![m, 1, flag, residual, 0, half, moments]);
                    }
                }
            }
        }
        variants[3].extend([vec![m, 0], vec![m, 1]]);
    }
    let [input, weights, output, grad] = variants;
    vec![(&INPUT, input), (&WEIGHTS, weights), (&OUTPUT, output), (&GRAD, grad)]
}

/// Whether the transform of a convolution's input applies the group norm before it.
const FUSE_NORM: bool = true;

/// Whether the transform of a convolution's result leaves moments for the group norm after it.
const FUSE_MOMENTS: bool = true;

/// Bytes of the transformed tiles of one round: what stays in a large cache.
const ROUND_BYTES: usize = 32 << 20;

/// Results of a tile along each axis.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Filter {
    /// F(2x2, 3x3).
    F2,
    /// F(4x4, 3x3).
    F4,
}

impl Filter {
    /// The candidate's name.
    pub fn name(self) -> &'static str {
        match self {
            Filter::F2 => "winograd2",
            Filter::F4 => "winograd4",
        }
    }

    fn size(self) -> usize {
        match self {
            Filter::F2 => 2,
            Filter::F4 => 4,
        }
    }

    /// Points, each with a product of matrices.
    fn points(self) -> usize {
        (self.size() + 2) * (self.size() + 2)
    }

    /// Bytes of a transformed weight, and of its gradient with the bias's.
    fn weight_bytes(self, g: &Geometry) -> u64 {
        (self.points() * (g.cin + 1) * g.cout * size_of::<f32>()) as u64
    }
}

/// Most bytes of a transformed weight. Larger ones belong to deep levels, whose few
/// pixels repay no transform.
const WEIGHT_BYTES: u64 = 64 << 20;

/// Whether, and with which filter, a convolution is done this way; `op` names the
/// choice, `direct` that of tiles otherwise, `key` is its shape. By default it is where products
/// are at least halved and many enough to repay the transforms: on software drivers from
/// 16 channels and 128 pixels on. On a GPU from 64 channels on, since the transforms of
/// a pixel move some 20 bytes a channel and save 7 multiply-adds for every channel of
/// the other side, and from 1024 pixels on, since that of the weight moves 330 bytes for
/// a product of channels where every pixel saves 7 multiply-adds. The weight's gradient,
/// whose products load both sides anew at every turn, also needs uniform loads on
/// software drivers.
pub(super) fn choose(
    lower: &mut Lower,
    [op, direct]: [&'static str; 2],
    key: &[usize],
    g: &Geometry,
    half: bool,
) -> Option<Filter> {
    let largest = WEIGHT_BYTES.min(lower.caps.max_binding);
    let fits = |f: Filter| f.weight_bytes(g) <= largest;
    if (g.kernel, g.stride) != (3, 1) || !g.vec() || !fits(Filter::F4) {
        return None;
    }
    if op == "conv3x3_dw" && Tiling::new(Filter::F4, g).partial_bytes(g) > lower.caps.max_binding {
        return None;
    }
    // Who asks for a tile of the direct sum asks for the direct sum.
    if lower.is_forced(direct) && !lower.is_forced(op) {
        return None;
    }
    let (channels, pixels) = if lower.caps.software { (16, 128) } else { (64, 1024) };
    let [all, least] = [g.n * g.h * g.w, g.cin.min(g.cout)];
    let loads = op == "conv3x3_dw" && lower.caps.software && !lower.caps.uniform_loads;
    let enough = least >= channels && all >= pixels && !loads;
    let enough = enough && !staged::prefers_direct(lower, [all, least], half);
    let halves = |f: Filter| {
        let tiles = g.h.div_ceil(f.size()) * g.w.div_ceil(f.size());
        enough && 9 * g.h * g.w >= 2 * f.points() * tiles
    };
    let filters = [Filter::F4, Filter::F2];
    let rule = filters.into_iter().position(halves).map_or(0, |i| i + 1);
    let names = ["direct", Filter::F4.name(), Filter::F2.name()];
    let chosen = lower.choose(op, key, &names, rule);
    filters.into_iter().find(|f| f.name() == names[chosen])
}

/// The tiles of a batch of images, and how many a round takes.
#[derive(Debug, Clone, Copy)]
struct Tiling {
    filter: Filter,
    x: usize,
    y: usize,
    all: usize,
    round: usize,
}

impl Tiling {
    fn new(filter: Filter, g: &Geometry) -> Self {
        let (x, y) = (g.w.div_ceil(filter.size()), g.h.div_ceil(filter.size()));
        let all = g.n * x * y;
        let tile = filter.points() * g.cin.max(g.cout) * size_of::<f32>();
        let rounds = all.div_ceil((ROUND_BYTES / tile).max(1));
        Tiling { filter, x, y, all, round: all.div_ceil(rounds) }
    }

    /// First tile and number of tiles of every round.
    fn rounds(self) -> impl Iterator<Item = (usize, usize)> {
        (0..self.all)
            .step_by(self.round)
            .map(move |first| (first, self.round.min(self.all - first)))
    }

    /// Bytes of the weight's gradient in one split a round, or as many as the loops of
    /// a round need.
    fn partial_bytes(self, g: &Geometry) -> u64 {
        let splits = self.rounds().count() * self.round.div_ceil(gemm::LEAST_DEPTH);
        self.filter.weight_bytes(g).saturating_mul(splits as u64)
    }

    fn params(self, g: &Geometry, c: usize, (first, tiles): (usize, usize)) -> TileParams {
        TileParams {
            h: g.h as u32,
            w: g.w as u32,
            c: c as u32,
            tiles_x: self.x as u32,
            tiles_y: self.y as u32,
            first_tile: first as u32,
            tiles: tiles as u32,
        }
    }

    fn m(self) -> i64 {
        self.filter.size() as i64
    }
}

/// An image to be transformed.
#[derive(Debug, Clone, Copy)]
struct Source {
    image: TensorId,
    channels: usize,
    /// Coefficients of a group norm that is still to be applied, and whether SiLU
    /// follows it.
    norm: Option<(TensorId, bool)>,
}

impl Source {
    fn plain(image: TensorId, channels: usize) -> Self {
        Source { image, channels, norm: None }
    }

    /// The input of a convolution. If it is the result of a group norm, the transform
    /// can apply that itself; unless something else reads the result, nobody then
    /// computes or keeps it.
    fn input(lower: &mut Lower, g: &Geometry, x: TensorId) -> Self {
        let plain = Source::plain(x, g.cin);
        let Some(normed) = lower.normed(x) else { return plain };
        let bits = if lower.half(normed.x) == 0 { 32 } else { 16 };
        let key = [bucket(g.n * g.h * g.w), g.cin, bits];
        match lower.choose("norm_conv", &key, &["apart", "fused"], FUSE_NORM.into()) {
            0 => plain,
            _ => {
                let norm = Some((normed.coefs, normed.silu));
                Source { image: normed.x, channels: g.cin, norm }
            }
        }
    }
}

/// Transforms the round's tiles of an image.
fn transform(
    lower: &mut Lower,
    g: &Geometry,
    tiling: Tiling,
    round: (usize, usize),
    source: Source,
    grad: bool,
) -> Result<TensorId> {
    let Source { image, channels: c, norm } = source;
    let points = tiling.filter.points();
    let v = lower.temp(if grad { "winograd dy" } else { "winograd x" }, &[points, round.1, c]);
    let kind = norm.map_or(0, |(_, silu)| 1 + i64::from(silu));
    lower.launch(Launch {
        kernel: &INPUT,
        defines: &[tiling.m(), grad.into(), kind, lower.half(image)],
        params: bytemuck::bytes_of(&tiling.params(g, c, round)),
        bindings: &[Some(image), Some(v), norm.map(|n| n.0)],
        groups: groups((round.1 * c / 4) as u64),
        flops: 0,
    })?;
    Ok(v)
}

/// Transforms the weight, turned by half a circle with `flip`.
fn transform_weight(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    weight: TensorId,
    flip: bool,
) -> Result<TensorId> {
    let u = lower.prepared("winograd weight", &[filter.points(), g.cin, g.cout]);
    let p = WeightParams { rows: g.cin as u32, quads: (g.cout / 4) as u32 };
    lower.launch(Launch {
        kernel: &WEIGHTS,
        defines: &[filter.size() as i64, flip.into(), lower.half(weight)],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(weight), Some(u)],
        groups: groups((g.cin * g.cout / 4) as u64),
        flops: 0,
    })?;
    Ok(u)
}

/// What is added to a result.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Additions {
    pub bias: Option<TensorId>,
    pub emb: Option<TensorId>,
    pub residual: Option<TensorId>,
    /// Add to what is there.
    pub acc: bool,
    /// Where the result's moments go, if they are wanted.
    pub moments: Option<TensorId>,
}

/// Transforms the round's products back.
fn transform_back(
    lower: &mut Lower,
    g: &Geometry,
    tiling: Tiling,
    round: (usize, usize),
    m: TensorId,
    (y, c): (TensorId, usize),
    add: Additions,
) -> Result<()> {
    let has = |t: Option<TensorId>| i64::from(t.is_some());
    let [bias, emb, residual] = [add.bias, add.emb, add.residual].map(has);
    let (acc, half, moments) = (add.acc.into(), lower.half(y), has(add.moments));
    let defines = [tiling.m(), bias, emb, residual, acc, half, moments];
    lower.launch(Launch {
        kernel: &OUTPUT,
        defines: &defines,
        params: bytemuck::bytes_of(&tiling.params(g, c, round)),
        bindings: &[Some(m), add.bias, add.emb, add.residual, Some(y), add.moments],
        groups: groups((round.1 * c / 4) as u64),
        flops: 0,
    })
}

/// y = conv(x, weight) + additions, or with `input_grad` dx of dy.
fn convolve(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    [x, weight, y]: [TensorId; 3],
    add: Additions,
    input_grad: bool,
) -> Result<()> {
    let tiling = Tiling::new(filter, g);
    let u = transform_weight(lower, g, filter, weight, input_grad)?;
    let (from, to) = if input_grad { (g.cout, g.cin) } else { (g.cin, g.cout) };
    let source = if input_grad { Source::plain(x, from) } else { Source::input(lower, g, x) };
    for round in tiling.rounds() {
        let v = transform(lower, g, tiling, round, source, false)?;
        let m = lower.temp("winograd products", &[filter.points(), round.1, to]);
        let shape = gemm::Shape { batch: filter.points(), rows: round.1, columns: to, depth: from };
        // The arithmetic counts as the direct sum's, shared among the rounds.
        let flops = g.flops() / tiling.all as u64 * round.1 as u64;
        gemm::launch(lower, shape, [v, u, m], input_grad, flops)?;
        transform_back(lower, g, tiling, round, m, (y, to), add)?;
    }
    Ok(())
}

/// y = conv(x, weight) + bias (+ emb) (+ residual).
pub(super) fn launch_forward(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    tensors: [TensorId; 3],
    add: Additions,
) -> Result<()> {
    let moments = moments(lower, g, filter, tensors[2]);
    convolve(lower, g, filter, tensors, Additions { moments, ..add }, false)
}

/// Where to put the moments of y's tiles for a group norm, if one wants them. All tiles
/// must have as many pixels, and enough for their moments to be worth it.
fn moments(lower: &mut Lower, g: &Geometry, filter: Filter, y: TensorId) -> Option<TensorId> {
    let whole = g.h.is_multiple_of(filter.size()) && g.w.is_multiple_of(filter.size());
    if filter != Filter::F4 || !whole || !lower.wants_moments(y) {
        return None;
    }
    let key = [bucket(g.n * g.h * g.w), g.cout, if lower.half(y) == 0 { 32 } else { 16 }];
    match lower.choose("conv_moments", &key, &["apart", "fused"], FUSE_MOMENTS.into()) {
        0 => None,
        _ => {
            let tiles = g.h * g.w / (filter.size() * filter.size());
            let tensor = lower.temp("moments", &[g.n, tiles, 2, g.cout]);
            lower.set_moments(y, Moments { tensor, tiles });
            Some(tensor)
        }
    }
}

/// Adds or assigns dx.
pub(super) fn launch_backward_x(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    [dy, weight]: [TensorId; 2],
    dx: Target,
) -> Result<()> {
    let add = Additions { acc: dx.add, ..Default::default() };
    convolve(lower, g, filter, [dy, weight, dx.tensor], add, true)
}

/// Adds or assigns the gradients of weight and bias.
pub(super) fn launch_backward_weight(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    [x, dy]: [TensorId; 2],
    dweight: Target,
    dbias: Target,
) -> Result<()> {
    let tiling = Tiling::new(filter, g);
    let points = filter.points();
    let shape = |depth| gemm::Shape { batch: points, rows: g.cin, columns: g.cout, depth };
    let plan = gemm::split(lower, shape(tiling.round), tiling.rounds().count());
    let splits: usize = tiling.rounds().map(|(_, tiles)| plan.splits(tiles)).sum();
    let partial = lower.temp("partial", &[splits, points * (g.cin + 1) * g.cout]);
    let mut first_split = 0;
    let (x, dy) = (Source::input(lower, g, x), Source::plain(dy, g.cout));
    for round in tiling.rounds() {
        let v = transform(lower, g, tiling, round, x, false)?;
        let m = transform(lower, g, tiling, round, dy, true)?;
        let flops = g.flops() / tiling.all as u64 * round.1 as u64;
        gemm::launch_dw(lower, shape(round.1), plan, [v, m, partial], first_split, flops)?;
        first_split += plan.splits(round.1);
    }
    let p = GradParams { rows: g.cin as u32, quads: (g.cout / 4) as u32, splits: splits as u32 };
    lower.launch(Launch {
        kernel: &GRAD,
        defines: &[tiling.m(), dweight.add.into()],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(partial), Some(dweight.tensor), Some(dbias.tensor)],
        groups: groups(((g.cin + 1) * g.cout / 4) as u64),
        flops: 0,
    })
}
