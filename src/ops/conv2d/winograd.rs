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
//! * Forward: x and the weight are transformed and multiplied ([`super::gemm`]). The
//!   products are transformed back, and bias, embedding and residual are added.
//! * dx is the same with dy for x. The weight is turned by half a circle and transposed.
//! * dweight = GT [ sum over tiles of (BT d B)^T (A dy AT) ] G; dbias is a
//!   combination of the sums over tiles of A dy AT.
//!
//! The tiles of large images go in several rounds, so that what lies between the
//! transforms stays small. That has 32 bits in half precision too.
//!
//! The transform of the input can apply a group norm that comes before the convolution,
//! and the transform back can leave moments for a group norm that comes after it.

use super::filter::{FILTER_SIZES, Filter, Round, Tiling};
use super::gemm::{self, DepthSplit, Matrices};
use super::geometry::{Additions, Forward, Geometry, InputGrad, WeightGrad, bits};
use crate::graph::{Launch, Lower, Target, TensorId, bucket};
use crate::kernel::{Kernel, KernelOf, accumulate, read, write};
use crate::ops::group_norm::{Moments, Normed, WantsMoments};
use crate::ops::groups;
use crate::{Result, defines, named, params};

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

defines! {
    /// What of a group norm the transform of an image applies.
    enum Norm {
        /// Nothing.
        None = 0,
        /// The norm.
        Plain = 1,
        /// The norm, then SiLU.
        Silu = 2,
    }
}

defines! {
    struct InputDefines {
        m: u32 in FILTER_SIZES,
        /// The image is dy of a weight's gradient.
        grad: bool,
        norm: Norm,
        half: bool,
    }
    where |d| !d.grad || d.norm == Norm::None
}

defines! {
    struct WeightDefines {
        m: u32 in FILTER_SIZES,
        /// The weight is turned by half a circle.
        flip: bool,
        half: bool,
    }
}

defines! {
    struct OutputDefines {
        m: u32 in FILTER_SIZES,
        bias: bool,
        emb: bool,
        residual: bool,
        acc: bool,
        half: bool,
        /// Moments are left for a group norm.
        moments: bool,
    }
    // y has a bias and is assigned; the gradient of x has nothing of its kind.
    where |d| if d.bias { !d.acc } else { !d.emb && !d.residual && !d.moments }
        && (!d.moments || d.m == 4)
}

defines! {
    struct GradDefines { m: u32 in FILTER_SIZES, acc: bool }
}

static INPUT: KernelOf<TileParams, InputDefines> = KernelOf::new(
    "winograd_input",
    include_str!("../../../shaders/winograd_input.wgsl"),
    &[read("x").half("HALF"), write("v"), read("coefs").when("NORM")],
);

static WEIGHTS: KernelOf<WeightParams, WeightDefines> = KernelOf::new(
    "winograd_weights",
    include_str!("../../../shaders/winograd_weights.wgsl"),
    &[read("weight").half("HALF"), write("u")],
);

/// The rounds together define every element of y.
static OUTPUT: KernelOf<TileParams, OutputDefines> = KernelOf::new(
    "winograd_output",
    include_str!("../../../shaders/winograd_output.wgsl"),
    &[
        read("m"),
        read("bias").when("BIAS"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("HALF"),
        accumulate("y").half("HALF"),
        write("moments").when("MOMENTS"),
    ],
);

static GRAD: KernelOf<GradParams, GradDefines> = KernelOf::new(
    "winograd_dw",
    include_str!("../../../shaders/winograd_dw.wgsl"),
    &[read("partial"), accumulate("dweight"), accumulate("dbias")],
);

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    vec![
        INPUT.with_variants(),
        WEIGHTS.with_variants(),
        OUTPUT.with_variants(),
        GRAD.with_variants(),
    ]
}

/// Whether by rule the transform of a convolution's input applies the group norm before
/// it.
const FUSE_NORM: bool = true;

/// Whether by rule the transform of a convolution's result leaves moments for the group
/// norm after it.
const FUSE_MOMENTS: bool = true;

/// The candidates of both: a launch of its own, or a part of the transform.
const APART_OR_FUSED: [&str; 2] = ["apart", "fused"];

/// The uniform block of the transforms of an image with `c` channels.
fn tile_params(g: &Geometry, tiling: Tiling, round: Round, c: usize) -> TileParams {
    TileParams {
        h: g.h as u32,
        w: g.w as u32,
        c: c as u32,
        tiles_x: tiling.across as u32,
        tiles_y: tiling.down as u32,
        first_tile: round.first as u32,
        tiles: round.tiles as u32,
    }
}

/// The define M.
fn m(filter: Filter) -> u32 {
    filter.size() as u32
}

/// Arithmetic of a round: its share of the direct sum's.
fn flops(g: &Geometry, tiling: Tiling, round: Round) -> u64 {
    g.flops() / tiling.all as u64 * round.tiles as u64
}

/// An image to be transformed.
#[derive(Debug, Clone, Copy)]
struct Source {
    image: TensorId,
    channels: usize,
    norm: Norm,
    /// Coefficients of the group norm that is still to be applied.
    coefs: Option<TensorId>,
}

impl Source {
    fn plain(image: TensorId, channels: usize) -> Self {
        Source { image, channels, norm: Norm::None, coefs: None }
    }

    /// The input of a convolution. If it is the result of a group norm, the transform
    /// can apply that itself. Nobody then computes or keeps the result, unless something
    /// else reads it.
    fn input(lower: &mut Lower, g: &Geometry, x: TensorId) -> Self {
        let plain = Source::plain(x, g.cin);
        let Some(normed) = lower.noted::<Normed>(x) else { return plain };
        let key = [bucket(g.input_pixels()), g.cin, bits(lower, normed.x)];
        match lower.choose("norm_conv", &key, &APART_OR_FUSED, FUSE_NORM.into()) {
            0 => plain,
            _ => Source {
                image: normed.x,
                channels: g.cin,
                norm: if normed.silu { Norm::Silu } else { Norm::Plain },
                coefs: Some(normed.coefs),
            },
        }
    }
}

/// Transforms the round's tiles of an image, which is `grad`: dy of a weight's gradient.
fn transform(
    lower: &mut Lower,
    g: &Geometry,
    tiling: Tiling,
    round: Round,
    source: Source,
    grad: bool,
) -> Result<TensorId> {
    let Source { image, channels: c, norm, coefs } = source;
    let name = if grad { "winograd dy" } else { "winograd x" };
    let v = lower.temp(name, &[tiling.filter.points(), round.tiles, c]);
    lower.launch(Launch {
        kernel: &INPUT,
        defines: InputDefines { m: m(tiling.filter), grad, norm, half: lower.is_half(image) },
        params: tile_params(g, tiling, round, c),
        bindings: &named![x: image, v, coefs],
        groups: groups((round.tiles * c / 4) as u64),
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
    lower.launch(Launch {
        kernel: &WEIGHTS,
        defines: WeightDefines { m: m(filter), flip, half: lower.is_half(weight) },
        params: WeightParams { rows: g.cin as u32, quads: (g.cout / 4) as u32 },
        bindings: &named![weight, u],
        groups: groups((g.cin * g.cout / 4) as u64),
        flops: 0,
    })?;
    Ok(u)
}

/// The image that products are transformed back to.
#[derive(Debug, Clone, Copy)]
struct Destination {
    image: Target,
    channels: usize,
    /// None for a gradient.
    add: Option<Additions>,
    /// Where the image's moments go, if they are wanted.
    moments: Option<TensorId>,
}

/// Transforms the round's products back.
fn transform_back(
    lower: &mut Lower,
    g: &Geometry,
    tiling: Tiling,
    round: Round,
    products: TensorId,
    to: Destination,
) -> Result<()> {
    let Destination { image, channels: c, add, moments } = to;
    let (bias, emb, residual) =
        (add.map(|a| a.bias), add.and_then(|a| a.emb), add.and_then(|a| a.residual));
    lower.launch(Launch {
        kernel: &OUTPUT,
        defines: OutputDefines {
            m: m(tiling.filter),
            bias: bias.is_some(),
            emb: emb.is_some(),
            residual: residual.is_some(),
            acc: image.add,
            half: lower.is_half(image.tensor),
            moments: moments.is_some(),
        },
        params: tile_params(g, tiling, round, c),
        bindings: &named![m: products, bias, emb, residual, y: image.tensor, moments],
        groups: groups((round.tiles * c / 4) as u64),
        flops: 0,
    })
}

/// Convolves `from` with the weight, or with `input_grad` with the turned weight.
fn convolve(
    lower: &mut Lower,
    g: &Geometry,
    tiling: Tiling,
    from: Source,
    u: TensorId,
    to: Destination,
    input_grad: bool,
) -> Result<()> {
    let points = tiling.filter.points();
    for round in tiling.rounds() {
        let v = transform(lower, g, tiling, round, from, false)?;
        let products = lower.temp("winograd products", &[points, round.tiles, to.channels]);
        let shape = gemm::Shape {
            batch: points,
            rows: round.tiles,
            columns: to.channels,
            depth: from.channels,
        };
        let matrices = Matrices { a: v, b: u, c: products };
        gemm::launch(lower, shape, matrices, input_grad, flops(g, tiling, round))?;
        transform_back(lower, g, tiling, round, products, to)?;
    }
    Ok(())
}

/// Launches y = conv(x, weight) + additions.
pub(super) fn forward(lower: &mut Lower, g: &Geometry, filter: Filter, t: &Forward) -> Result<()> {
    let moments = moments(lower, g, filter, t.y);
    let u = transform_weight(lower, g, filter, t.weight, false)?;
    let from = Source::input(lower, g, t.x);
    let image = Target::assign(t.y);
    let to = Destination { image, channels: g.cout, add: Some(t.add), moments };
    convolve(lower, g, Tiling::new(filter, g), from, u, to, false)
}

/// Where to put the moments of y's tiles for a group norm, if one wants them. All tiles
/// must have as many pixels, and enough for their moments to be worth it.
fn moments(lower: &mut Lower, g: &Geometry, filter: Filter, y: TensorId) -> Option<TensorId> {
    let whole = g.h.is_multiple_of(filter.size()) && g.w.is_multiple_of(filter.size());
    if filter != Filter::F4 || !whole || lower.noted::<WantsMoments>(y).is_none() {
        return None;
    }
    let key = [bucket(g.input_pixels()), g.cout, bits(lower, y)];
    match lower.choose("conv_moments", &key, &APART_OR_FUSED, FUSE_MOMENTS.into()) {
        0 => None,
        _ => {
            let tiles = g.h * g.w / (filter.size() * filter.size());
            let tensor = lower.temp("moments", &[g.n, tiles, 2, g.cout]);
            lower.note(y, Moments { tensor, tiles });
            Some(tensor)
        }
    }
}

/// Launches the gradient of x.
pub(super) fn input_grad(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    t: &InputGrad,
) -> Result<()> {
    let u = transform_weight(lower, g, filter, t.weight, true)?;
    let from = Source::plain(t.dy, g.cout);
    let to = Destination { image: t.dx, channels: g.cin, add: None, moments: None };
    convolve(lower, g, Tiling::new(filter, g), from, u, to, true)
}

/// Launches the gradients of weight and bias.
pub(super) fn weight_grad(
    lower: &mut Lower,
    g: &Geometry,
    filter: Filter,
    t: &WeightGrad,
) -> Result<()> {
    let tiling = Tiling::new(filter, g);
    let points = filter.points();
    let shape = |depth| gemm::Shape { batch: points, rows: g.cin, columns: g.cout, depth };
    let split = DepthSplit::choose(lower, shape(tiling.round), tiling.rounds().count());
    let splits: usize = tiling.rounds().map(|round| split.splits(round.tiles)).sum();
    let partial = lower.temp("partial", &[splits, points * (g.cin + 1) * g.cout]);
    let (x, dy) = (Source::input(lower, g, t.x), Source::plain(t.dy, g.cout));
    let mut first_split = 0;
    for round in tiling.rounds() {
        let v = transform(lower, g, tiling, round, x, false)?;
        let m = transform(lower, g, tiling, round, dy, true)?;
        let matrices = Matrices { a: v, b: m, c: partial };
        let flops = flops(g, tiling, round);
        gemm::launch_dw(lower, shape(round.tiles), split, matrices, first_split, flops)?;
        first_split += split.splits(round.tiles);
    }
    let params =
        GradParams { rows: g.cin as u32, quads: (g.cout / 4) as u32, splits: splits as u32 };
    lower.launch(Launch {
        kernel: &GRAD,
        defines: GradDefines { m: m(filter), acc: t.dweight.add },
        params,
        bindings: &named![partial, dweight: t.dweight.tensor, dbias: t.dbias.tensor],
        groups: groups(((g.cin + 1) * g.cout / 4) as u64),
        flops: 0,
    })
}
