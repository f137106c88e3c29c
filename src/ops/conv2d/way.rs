//! The chooser: in which way a convolution or a product is computed.
//!
//! A way is decided by [`Lower::choose`], so it can be forced and tuned; here are the
//! candidates and the rules. Nothing is launched here.

use super::filter::{Filter, Tiling};
use super::geometry::{
    Direction, Forward, Geometry, InputGrad, Product, WeightGrad, all_half, bits,
};
use super::tiles::{
    COOP_TILES, Division, RegisterTile, STAGED_GROUP, STAGED_TILES, StagedTile, TILES,
    UNIFORM_TILES, UNIFORM_WEIGHT_TILES, WEIGHT_TILES, busy_invocations, uniform_fits,
};
use crate::graph::{Lower, bucket};

/// How a convolution, or the gradient of its input, is computed.
#[derive(Debug, Clone, Copy)]
pub(super) enum Way {
    /// By a Winograd filter: transforms around a batch of products.
    Winograd(Filter),
    /// As the direct sum.
    Direct(Tiles),
}

/// Which tiles a product is computed in.
#[derive(Debug, Clone, Copy)]
pub(super) enum Tiles {
    /// Each invocation owns a tile.
    Register(Division),
    /// Each workgroup owns a tile.
    Staged(StagedTile),
}

/// How the gradient of a weight is computed.
#[derive(Debug, Clone, Copy)]
pub(super) enum WeightWay {
    /// By a Winograd filter.
    Winograd(Filter),
    /// As the direct sum; each invocation owns a tile of input by output channels.
    Direct(RegisterTile),
}

/// The names of a pass's choices.
struct ChoiceNames {
    /// Whether a filter is used, and which.
    filter: &'static str,
    /// Which tile is used otherwise.
    tile: &'static str,
}

const FORWARD: ChoiceNames = ChoiceNames { filter: "conv3x3", tile: "conv2d" };
const INPUT_GRAD: ChoiceNames = ChoiceNames { filter: "conv3x3_dx", tile: "conv2d_dx" };
const WEIGHT_GRAD: ChoiceNames = ChoiceNames { filter: "conv3x3_dw", tile: "conv2d_dw" };

/// The way of a forward convolution.
pub(super) fn choose_forward(lower: &mut Lower, g: &Geometry, t: &Forward) -> Way {
    let operands = Operands {
        half: all_half(lower, &[t.x, t.weight, t.y]),
        bits: bits(lower, t.x),
        uniform_scalars: !lower.is_half(t.x) && !lower.is_half(t.y),
        turns: if g.vec() { g.cin / 4 } else { g.cin },
    };
    choose(lower, FORWARD, g, Direction::Forward, operands)
}

/// The way of the gradient of a convolution's input.
pub(super) fn choose_input_grad(lower: &mut Lower, g: &Geometry, t: &InputGrad) -> Way {
    let operands = Operands {
        half: all_half(lower, &[t.dy, t.weight, t.dx.tensor]),
        bits: bits(lower, t.dy),
        uniform_scalars: false,
        turns: g.cout / 4,
    };
    choose(lower, INPUT_GRAD, g, Direction::InputGrad, operands)
}

/// What a way depends on besides the sizes.
struct Operands {
    /// Both images and the weight are stored as half.
    half: bool,
    /// Bits of an element of the image that is read.
    bits: usize,
    /// Uniform tiles can load single channels.
    uniform_scalars: bool,
    /// Turns of the direct sum's loop at a tap of the window.
    turns: usize,
}

fn choose(
    lower: &mut Lower,
    names: ChoiceNames,
    g: &Geometry,
    direction: Direction,
    operands: Operands,
) -> Way {
    let Product { rows, columns, .. } = g.product(direction);
    let key = key(g, rows, operands.bits);
    let product = TiledProduct {
        batch: 1,
        rows,
        columns,
        vec: g.vec(),
        uniform_scalars: operands.uniform_scalars,
        uniform: &UNIFORM_TILES,
        shared: [g.taps() * g.cin, g.cout],
        turns: operands.turns,
    };
    let staged = match g.vec() {
        true => {
            staged_for_convolutions(lower, [rows, columns], busy_invocations(lower), operands.half)
        }
        false => Staged::default(),
    };
    let op = names.tile;
    match choose_filter(lower, names, &key, g, operands.half) {
        Some(filter) => {
            lower.consider(|l| choose_tiles(l, op, &key, product, staged));
            Way::Winograd(filter)
        }
        None => Way::Direct(choose_tiles(lower, op, &key, product, staged)),
    }
}

/// What ways are tuned by: pixels of the result, channels in and out, window, stride and
/// bits of an element.
fn key(g: &Geometry, pixels: usize, bits: usize) -> [usize; 6] {
    [bucket(pixels), g.cin, g.cout, g.kernel, g.stride, bits]
}

/// Most bytes of a transformed weight. Larger ones belong to deep levels, whose few
/// pixels repay no transform.
const WEIGHT_BYTES: u64 = 64 << 20;

/// The Winograd filter of a convolution whose images and weight are `half` or not, or
/// `None` for the direct sum.
///
/// The rule takes a filter that at least halves the multiplications, if there are enough
/// of them to repay the transforms. On software drivers these are 16 channels and 128
/// pixels. On a GPU they are 64 channels, since the transforms of a pixel move some 20
/// bytes a channel and save 7 multiply-adds for every channel of the other side; and 1024
/// pixels, since the transform of the weight moves 330 bytes for a pair of channels where
/// every pixel saves 7 multiply-adds. The weight's gradient loads both sides anew at
/// every turn of its products; on software drivers it needs uniform loads, too.
fn choose_filter(
    lower: &mut Lower,
    names: ChoiceNames,
    key: &[usize],
    g: &Geometry,
    half: bool,
) -> Option<Filter> {
    let of_weight = names.filter == WEIGHT_GRAD.filter;
    let largest = WEIGHT_BYTES.min(lower.caps.max_binding);
    if (g.kernel, g.stride) != (3, 1) || !g.vec() || Filter::F4.weight_bytes(g) > largest {
        return None;
    }
    if of_weight && Tiling::new(Filter::F4, g).partial_bytes(g) > lower.caps.max_binding {
        return None;
    }
    // Who asks for a tile of the direct sum asks for the direct sum.
    if lower.is_forced(names.tile) && !lower.is_forced(names.filter) {
        return None;
    }
    let (channels, pixels) = if lower.caps.software { (16, 128) } else { (64, 1024) };
    let [all, least] = [g.input_pixels(), g.cin.min(g.cout)];
    let slow_loads = of_weight && lower.caps.software && !lower.caps.uniform_loads;
    let repays =
        least >= channels && all >= pixels && !slow_loads && !cooperates(lower, [all, least], half);
    let halves = |f: Filter| {
        let tiles: usize = f.tiles(g).into_iter().product();
        repays && 9 * g.h * g.w >= 2 * f.points() * tiles
    };
    let filters = [Filter::F4, Filter::F2];
    let rule = filters.into_iter().position(halves).map_or(0, |i| i + 1);
    let candidates = ["direct", Filter::F4.name(), Filter::F2.name()];
    let chosen = lower.choose(names.filter, key, &candidates, rule);
    filters.into_iter().find(|f| f.name() == candidates[chosen])
}

/// Whether the direct sum would run on cooperative matrices. A 3x3 convolution is then
/// better done so, since their rate exceeds that of 32-bit multiply-adds by more than the
/// four that a filter saves at best.
fn cooperates(lower: &Lower, sizes: [usize; 2], half: bool) -> bool {
    staged_for_convolutions(lower, sizes, 0, half).rule.is_some_and(|t| t.coop != 0)
}

/// The staged tiles that suit a product.
#[derive(Debug, Default)]
pub(super) struct Staged {
    /// Those that compute it correctly.
    tiles: Vec<StagedTile>,
    /// The one that the rule takes, if it takes any.
    pub rule: Option<StagedTile>,
}

/// Fewest rows and columns for which a staged tile is taken by rule: less would leave
/// half of it beyond the edges.
const FEWEST: usize = 64;

/// Staged tiles of 32 bits for `batch` products of `rows` x `columns`.
///
/// The rule takes one on GPUs, where at least a tile's rows and columns are there. Each
/// invocation owns at least as many elements as in the smallest register tile, so no
/// parallelism is lost, and an element of a slab is loaded once for 64 products instead
/// of for four to eight. The larger tile is taken where it still leaves `wanted`
/// invocations.
pub(super) fn staged_for_products(
    lower: &Lower,
    [batch, rows, columns]: [usize; 3],
    wanted: u64,
) -> Staged {
    let large = !lower.caps.software && rows >= FEWEST && columns >= FEWEST;
    let busy = |t: &&StagedTile| t.groups(batch, rows, columns) * STAGED_GROUP >= wanted;
    let rule = *STAGED_TILES.iter().find(busy).unwrap_or(&STAGED_TILES[1]);
    Staged { tiles: STAGED_TILES.to_vec(), rule: large.then_some(rule) }
}

/// The same for a convolution. Where images and weight are `half`, tiles on cooperative
/// matrices come first if the device has them.
fn staged_for_convolutions(
    lower: &Lower,
    [rows, columns]: [usize; 2],
    wanted: u64,
    half: bool,
) -> Staged {
    let staged = staged_for_products(lower, [1, rows, columns], wanted);
    let Some(coop) = lower.caps.coop.filter(|_| half) else { return staged };
    let offered = COOP_TILES.into_iter().filter(|t| coop.has(t.coop));
    let tiles: Vec<StagedTile> = offered.chain(staged.tiles).collect();
    let rule = staged.rule.map(|_| tiles[0]);
    Staged { tiles, rule }
}

/// Products of matrices to be divided into tiles.
#[derive(Debug, Clone, Copy)]
pub(super) struct TiledProduct {
    /// Number of products.
    pub batch: usize,
    /// Rows of each result.
    pub rows: usize,
    /// Columns of each result.
    pub columns: usize,
    /// Everything goes by `vec4`s of channels.
    pub vec: bool,
    /// Without `vec`: uniform tiles can load single channels.
    pub uniform_scalars: bool,
    /// The uniform tiles that there are.
    pub uniform: &'static [RegisterTile],
    /// Rows, of all matrices, and row length of the operand that the lanes of uniform
    /// tiles share.
    pub shared: [usize; 2],
    /// Turns of the loop over the depth.
    pub turns: usize,
}

impl TiledProduct {
    fn divide(self, tile: RegisterTile) -> Division {
        Division::new(tile, [self.rows, self.columns], self.batch)
    }
}

/// The tiles of a product. `op` names the choice, `key` is what it is tuned by. The rule
/// takes a staged tile if `staged` has one by rule, else a register tile.
pub(super) fn choose_tiles(
    lower: &mut Lower,
    op: &'static str,
    key: &[usize],
    product: TiledProduct,
    staged: Staged,
) -> Tiles {
    let (register, register_rule) = register_tiles(lower, product);
    let staged_rule = staged.rule.and_then(|r| staged.tiles.iter().position(|t| *t == r));
    let rule = staged_rule.map_or(register_rule, |i| register.len() + i);
    let names = register.iter().map(|t| t.name).chain(staged.tiles.iter().map(|t| t.name));
    let names: Vec<_> = names.collect();
    match lower.choose(op, key, &names, rule) {
        i if i < register.len() => Tiles::Register(product.divide(register[i])),
        i => Tiles::Staged(staged.tiles[i - register.len()]),
    }
}

/// The register tiles that suit a product, and which of them the rule takes: a uniform tile
/// where the driver gains by it and the columns divide, else the largest plain tile that
/// leaves enough invocations and does not waste columns.
fn register_tiles(lower: &Lower, product: TiledProduct) -> (Vec<RegisterTile>, usize) {
    let TiledProduct { rows, columns, vec, .. } = product;
    let shares =
        (vec || product.uniform_scalars) && uniform_fits(lower, product.shared, product.turns);
    let divides = |t: &RegisterTile| match vec {
        true => columns.is_multiple_of(t.tn as usize),
        false => t.tn == 8 || columns >= t.tn as usize,
    };
    let uniform = product.uniform.iter().copied().filter(|t| shares && divides(t));
    let uniform: Vec<RegisterTile> = uniform.collect();
    let plain = TILES.into_iter().filter(|t| columns > 4 || t.tn == 4);
    let plain: Vec<RegisterTile> = plain.collect();
    // Channel by channel large tiles take software drivers too long to compile.
    let largest = match (lower.caps.software, vec) {
        (true, true) => u32::MAX,
        (true, false) => 32,
        (false, _) => 64,
    };
    let fits = |t: &RegisterTile| t.tm * t.tn <= largest;
    let busy = |t: &RegisterTile| product.divide(*t).tiles >= busy_invocations(lower);
    let tall = |t: &RegisterTile| rows >= 8 * t.tm as usize;
    let rule = match uniform.len() {
        0 => plain.iter().position(|t| fits(t) && busy(t)).unwrap_or(plain.len() - 1),
        n => uniform.iter().position(tall).unwrap_or(n - 1),
    };
    ([uniform, plain].concat(), rule)
}

/// The way of the gradients of weight and bias.
pub(super) fn choose_weight_grad(lower: &mut Lower, g: &Geometry, t: &WeightGrad) -> WeightWay {
    let key = key(g, g.output_pixels(), bits(lower, t.dy));
    match choose_filter(lower, WEIGHT_GRAD, &key, g, false) {
        Some(filter) => {
            lower.consider(|l| choose_weight_tile(l, g, &key));
            WeightWay::Winograd(filter)
        }
        None => WeightWay::Direct(choose_weight_tile(lower, g, &key)),
    }
}

/// A tile of input by output channels. The rule takes one that does not waste them.
fn choose_weight_tile(lower: &mut Lower, g: &Geometry, key: &[usize]) -> RegisterTile {
    let tm = match g.cin {
        0..=4 => 4,
        16.. if lower.caps.software && g.vec() => 16,
        _ => 8,
    };
    let tn = if g.cout > 4 { 8 } else { 4 };
    let fits = |t: &RegisterTile| match t.tm {
        4 => true,
        8 => g.cin > 4,
        _ => g.cin >= 16,
    };
    let wide = |t: &RegisterTile| t.tn == 4 || g.cout > 4;
    let plain = WEIGHT_TILES.into_iter().filter(|t| fits(t) && wide(t));
    let shares = g.vec() && uniform_fits(lower, [g.output_pixels(), g.cout], g.ow());
    let divides = |t: &RegisterTile| g.cout.is_multiple_of(t.tn as usize);
    let uniform = UNIFORM_WEIGHT_TILES.into_iter().filter(|t| shares && divides(t));
    let tiles: Vec<RegisterTile> = uniform.chain(plain).collect();
    let rule = tiles.iter().position(|t| t.uniform || (t.tm, t.tn) == (tm, tn)).unwrap_or(0);
    let names: Vec<_> = tiles.iter().map(|t| t.name).collect();
    tiles[lower.choose(WEIGHT_GRAD.tile, key, &names, rule)]
}
