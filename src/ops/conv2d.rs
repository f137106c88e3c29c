//! Convolution, 3x3 or 1x1, stride 1 or 2, padding kernel/2, NHWC.
//!
//! y[n,oy,ox,co] = bias[co] + sum over r,s,ci of
//!     x[n, oy*stride+r-pad, ox*stride+s-pad, ci] * weight[r,s,ci,co]
//!
//! Two additions can ride on the store: a per-image channel bias `emb` (the
//! additive timestep embedding) and a `residual` of y's shape.
//!
//! Backward keeps only x:
//!     dx      = dy convolved with the transposed weight (gathered),
//!     dweight = x correlated with dy, summed over pixels in two stages,
//!     dbias   = dy summed over pixels (rides on dweight's kernel),
//!     demb    = dy summed over the pixels of each image,
//!     dresidual = dy.
//!
//! In half precision x, y, the weight and the gradients of x and y are stored
//! as half; sums, the bias, emb and the weight's gradient have 32 bits. A stem
//! reads a 32-bit image and weight and writes half.
//!
//! [`super::linear`] runs the same kernels on 1x1 images.

use super::add::give_grad;
use super::staged::{self, Block};
use super::tiles::{
    Product, TILES, Tile, UNIFORM_TILES, UNIFORM_WEIGHT_TILES, WEIGHT_TILES, Way, choose, divide,
    lanes_for, uniform_fits, wanted_invocations,
};
use super::winograd::{self, Additions};
use super::{GROUP, LOOP_TURNS, groups, sum_rows};
use crate::graph::{
    DType, FileLayout, Graph, Init, Launch, Lower, Node, Op, ParamInfo, Target, TensorId, bucket,
};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Error, Result, params};

params! {
    pub(super) struct Params {
        n: u32, h: u32, w: u32, cin: u32, oh: u32, ow: u32, cout: u32,
        kernel: u32, stride: u32, pad: u32, tiles_n: u32, tiles: u32,
    }
}

params! {
    struct WeightParams {
        n: u32, h: u32, w: u32, cin: u32, oh: u32, ow: u32, cout: u32,
        kernel: u32, stride: u32, pad: u32, tiles_m: u32, tiles_n: u32, tiles: u32, rows_per_split: u32,
    }
}

params! {
    struct SplitParams { weights: u32, biases: u32, splits: u32 }
}

pub(super) static FORWARD: Kernel = Kernel {
    name: "conv2d",
    source: include_str!("../../shaders/conv2d.wgsl"),
    bindings: &[
        read("x").half("HALF_X"),
        read("weight").half("HALF_X"),
        read("bias"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("HALF_Y"),
        write("y").half("HALF_Y"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "TM", "TN", "UNI", "WG", "EMB", "RESIDUAL", "HALF_X", "HALF_Y"],
};

pub(super) static BACKWARD_X: Kernel = Kernel {
    name: "conv2d_dx",
    source: include_str!("../../shaders/conv2d_dx.wgsl"),
    bindings: &[
        read("dy").half("HALF_Y"),
        read("weight").half("HALF_X"),
        accumulate("dx").half("HALF_X"),
    ],
    params: Params::FIELDS,
    defines: &["VEC", "TM", "TN", "UNI", "WG", "STRIDE1", "ACC", "HALF_X", "HALF_Y"],
};

static BACKWARD_W: Kernel = Kernel {
    name: "conv2d_dw",
    source: include_str!("../../shaders/conv2d_dw.wgsl"),
    bindings: &[
        read("x").half("HALF_X"),
        read("dy").half("HALF_Y"),
        write("partial").when("SPLIT"),
        accumulate("dweight").when("WHOLE"),
        accumulate("dbias").when("WHOLE"),
    ],
    params: WeightParams::FIELDS,
    defines: &["VEC", "TM", "TN", "UNI", "WG", "PX", "HALF_X", "HALF_Y", "SPLIT", "WHOLE", "ACC"],
};

/// SPLIT, WHOLE and ACC: sums of splits, or the gradient itself, assigned or added.
const RESULTS: [[i64; 3]; 3] = [[1, 0, 0], [0, 1, 0], [0, 1, 1]];

static SUM_SPLITS: Kernel = Kernel {
    name: "sum_splits",
    source: include_str!("../../shaders/sum_splits.wgsl"),
    bindings: &[read("partial"), accumulate("dweight"), accumulate("dbias")],
    params: SplitParams::FIELDS,
    defines: &["ACC"],
};

/// Pixels of a row that a turn of the uniform weight gradient takes, by
/// divisibility of the row.
const PIXELS: [u32; 3] = [4, 2, 1];

/// VEC, TM, TN, UNI, WG.
fn tile_defines(vec: i64, tile: Tile, lanes: u32) -> [i64; 5] {
    let [tm, tn, uni, wg] = tile.defines(lanes);
    [vec, tm, tn, uni, wg]
}

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let mut variants = [Vec::new(), Vec::new(), Vec::new()];
    // VEC, HALF_X, HALF_Y: 32 bits, the border to half (a stem), half.
    for [vec, x, y] in [[1, 0, 0], [0, 0, 0], [1, 0, 1], [0, 0, 1], [1, 1, 1]] {
        let uniform = |tiles: &[Tile]| if vec == 1 { tiles.to_vec() } else { Vec::new() };
        for t in [WEIGHT_TILES.to_vec(), uniform(&UNIFORM_WEIGHT_TILES)].concat() {
            for wg in t.widths() {
                for px in if t.uniform { &PIXELS[..] } else { &[1] } {
                    let [vec, tm, tn, uni, wg] = tile_defines(vec, t, wg);
                    variants[2].push(vec![vec, tm, tn, uni, wg, i64::from(*px), x, y]);
                }
            }
        }
        for t in [TILES.to_vec(), uniform(&UNIFORM_TILES)].concat() {
            for wg in t.widths() {
                for (a, b) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                    let variant = [&tile_defines(vec, t, wg)[..], &[a, b, x, y]].concat();
                    variants[0].push(variant.clone());
                    variants[1].push(variant);
                }
            }
        }
    }
    // Stems and heads, whose channels are no multiples of four.
    for t in UNIFORM_TILES {
        for (wg, a) in t.widths().into_iter().flat_map(|wg| [(wg, 0), (wg, 1)]) {
            for b in [0, 1] {
                variants[0].push([&tile_defines(0, t, wg)[..], &[a, b, 0, 0]].concat());
            }
        }
    }
    let [forward, dx, dw] = variants;
    vec![
        (&FORWARD, forward),
        (&BACKWARD_X, dx),
        (&BACKWARD_W, dw.iter().flat_map(|v| RESULTS.map(|r| [&v[..], &r].concat())).collect()),
        (&SUM_SPLITS, vec![vec![0], vec![1]]),
    ]
}

/// Sizes of one convolution.
#[derive(Debug, Clone, Copy)]
pub(super) struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub cin: usize,
    pub cout: usize,
    pub kernel: usize,
    pub stride: usize,
}

impl Geometry {
    fn pad(&self) -> usize {
        self.kernel / 2
    }

    fn out(&self, extent: usize) -> usize {
        (extent + 2 * self.pad() - self.kernel) / self.stride + 1
    }

    pub fn oh(&self) -> usize {
        self.out(self.h)
    }

    pub fn ow(&self) -> usize {
        self.out(self.w)
    }

    pub fn vec(&self) -> bool {
        self.cin.is_multiple_of(4) && self.cout.is_multiple_of(4)
    }

    /// Rows of the weight, and their length.
    fn weight_rows(&self) -> [usize; 2] {
        [self.kernel * self.kernel * self.cin, self.cout]
    }

    /// Staged tiles for the product of `rows` x `columns`, and the rule's.
    fn blocks(
        &self,
        lower: &Lower,
        [rows, columns]: [usize; 2],
        half: bool,
    ) -> (Vec<Block>, Option<Block>) {
        match self.vec() {
            true => staged::conv_blocks(lower, [1, rows, columns], wanted_invocations(lower), half),
            false => (Vec::new(), None),
        }
    }

    /// A multiply-add counts two.
    pub fn flops(&self) -> u64 {
        let taps = self.kernel * self.kernel;
        2 * (self.n * self.oh() * self.ow()) as u64 * (taps * self.cin * self.cout) as u64
    }

    /// What tiles are tuned by: pixels, channels in and out, window, stride and
    /// bits of an element.
    fn key(&self, pixels: usize, half: i64) -> [usize; 6] {
        let bits = if half == 0 { 32 } else { 16 };
        [bucket(pixels), self.cin, self.cout, self.kernel, self.stride, bits]
    }

    pub fn params(&self, tiles_n: u32, tiles: u32) -> Params {
        Params {
            n: self.n as u32,
            h: self.h as u32,
            w: self.w as u32,
            cin: self.cin as u32,
            oh: self.oh() as u32,
            ow: self.ow() as u32,
            cout: self.cout as u32,
            kernel: self.kernel as u32,
            stride: self.stride as u32,
            pad: self.pad() as u32,
            tiles_n,
            tiles,
        }
    }
}

/// y = conv(x, weight) + bias (+ emb) (+ residual).
pub(super) fn launch_forward(
    lower: &mut Lower,
    g: Geometry,
    x: TensorId,
    [weight, bias]: [TensorId; 2],
    emb: Option<TensorId>,
    residual: Option<TensorId>,
    y: TensorId,
) -> Result<()> {
    let rows = g.n * g.oh() * g.ow();
    let key = g.key(rows, lower.half(x));
    let scalar = lower.half(x) == 0 && lower.half(y) == 0;
    let (vec, shared) = (g.vec(), g.weight_rows());
    let (uniform, turns) = (&UNIFORM_TILES, if vec { g.cin / 4 } else { g.cin });
    let columns = g.cout;
    let product = Product { batch: 1, rows, columns, vec, scalar, uniform, shared, turns };
    let half = [x, weight, y].iter().all(|t| lower.half(*t) != 0);
    let blocks = g.blocks(lower, [rows, g.cout], half);
    if let Some(filter) = winograd::choose(lower, ["conv3x3", FORWARD.name], &key, &g, half) {
        lower.consider(|l| divide(l, FORWARD.name, &key, product, blocks));
        let add = Additions { bias: Some(bias), emb, residual, ..Default::default() };
        return winograd::launch_forward(lower, &g, filter, [x, weight, y], add);
    }
    let d = match divide(lower, FORWARD.name, &key, product, blocks) {
        Way::Tiles(division) => division,
        Way::Block(block) => {
            let tensors = [x, weight, bias, y];
            return staged::launch_forward(lower, block, &g, tensors, [emb, residual]);
        }
    };
    let [vec, tm, tn, uni, wg] = tile_defines(g.vec().into(), d.tile, d.lanes);
    let (has_emb, has_residual) = (emb.is_some().into(), residual.is_some().into());
    lower.launch(Launch {
        kernel: &FORWARD,
        defines: &[vec, tm, tn, uni, wg, has_emb, has_residual, lower.half(x), lower.half(y)],
        params: bytemuck::bytes_of(&g.params(d.across, d.tiles as u32)),
        bindings: &[Some(x), Some(weight), Some(bias), emb, residual, Some(y)],
        groups: d.groups,
        flops: g.flops(),
    })
}

/// Adds or assigns dx.
pub(super) fn launch_backward_x(
    lower: &mut Lower,
    g: Geometry,
    dy: TensorId,
    weight: TensorId,
    dx: Target,
) -> Result<()> {
    let rows = g.n * g.h * g.w;
    let key = g.key(rows, lower.half(dy));
    let (vec, shared) = (g.vec(), g.weight_rows());
    let (scalar, uniform, turns) = (false, &UNIFORM_TILES, g.cout / 4);
    let columns = g.cin;
    let product = Product { batch: 1, rows, columns, vec, scalar, uniform, shared, turns };
    let half = [dy, weight, dx.tensor].iter().all(|t| lower.half(*t) != 0);
    let blocks = g.blocks(lower, [rows, g.cin], half);
    let names = ["conv3x3_dx", BACKWARD_X.name];
    if let Some(filter) = winograd::choose(lower, names, &key, &g, half) {
        lower.consider(|l| divide(l, BACKWARD_X.name, &key, product, blocks));
        return winograd::launch_backward_x(lower, &g, filter, [dy, weight], dx);
    }
    let d = match divide(lower, BACKWARD_X.name, &key, product, blocks) {
        Way::Tiles(division) => division,
        Way::Block(block) => {
            return staged::launch_backward_x(lower, block, &g, [dy, weight], dx);
        }
    };
    let [vec, tm, tn, uni, wg] = tile_defines(g.vec().into(), d.tile, d.lanes);
    let stride1 = (g.stride == 1).into();
    lower.launch(Launch {
        kernel: &BACKWARD_X,
        defines: &[
            vec,
            tm,
            tn,
            uni,
            wg,
            stride1,
            dx.add.into(),
            lower.half(dx.tensor),
            lower.half(dy),
        ],
        params: bytemuck::bytes_of(&g.params(d.across, d.tiles as u32)),
        bindings: &[Some(dy), Some(weight), Some(dx.tensor)],
        groups: d.groups,
        flops: g.flops(),
    })
}

/// A tile of input by output channels that does not waste them.
fn choose_weight_tile(lower: &mut Lower, g: Geometry, key: &[usize]) -> Tile {
    let tm = match g.cin {
        0..=4 => 4,
        16.. if lower.caps.software && g.vec() => 16,
        _ => 8,
    };
    let tn = if g.cout > 4 { 8 } else { 4 };
    let fits = |t: &Tile| match t.tm {
        4 => true,
        8 => g.cin > 4,
        _ => g.cin >= 16,
    };
    let wide = |t: &Tile| t.tn == 4 || g.cout > 4;
    let plain = WEIGHT_TILES.into_iter().filter(|t| fits(t) && wide(t));
    let pixels = g.n * g.oh() * g.ow();
    let shares = g.vec() && uniform_fits(lower, [pixels, g.cout], g.ow());
    let divides = |t: &Tile| g.cout.is_multiple_of(t.tn as usize);
    let uniform = UNIFORM_WEIGHT_TILES.into_iter().filter(|t| shares && divides(t));
    let tiles: Vec<Tile> = uniform.chain(plain).collect();
    let rule = tiles.iter().find(|t| t.uniform || (t.tm, t.tn) == (tm, tn)).unwrap_or(&tiles[0]);
    let rule = *rule;
    choose(lower, BACKWARD_W.name, key, tiles, rule)
}

/// Adds or assigns the gradients of weight and bias.
pub(super) fn launch_backward_weight(
    lower: &mut Lower,
    g: Geometry,
    x: TensorId,
    dy: TensorId,
    dweight: Target,
    dbias: Target,
) -> Result<()> {
    let key = g.key(g.n * g.oh() * g.ow(), lower.half(dy));
    if let Some(filter) = winograd::choose(lower, ["conv3x3_dw", BACKWARD_W.name], &key, &g, false)
    {
        lower.consider(|l| choose_weight_tile(l, g, &key));
        return winograd::launch_backward_weight(lower, &g, filter, [x, dy], dweight, dbias);
    }
    let tile = choose_weight_tile(lower, g, &key);
    let (tiles_m, tiles_n) = (g.cin.div_ceil(tile.tm as usize), g.cout.div_ceil(tile.tn as usize));
    let taps = g.kernel * g.kernel;
    let lanes = if tile.uniform { lanes_for(taps * tiles_m) } else { GROUP as u32 };
    let px = PIXELS.into_iter().find(|p| tile.uniform && g.ow().is_multiple_of(*p as usize));
    let outputs = (taps * tiles_m * tiles_n) as u64;
    let rows = (g.n * g.oh()) as u64;
    let wanted = wanted_invocations(lower).div_ceil(outputs).min(64);
    let longest = (LOOP_TURNS / (g.ow() as u64 + 1)).max(1);
    let rows_per_split = rows.div_ceil(wanted.min(rows)).min(longest);
    let splits = rows.div_ceil(rows_per_split);
    let weights = taps * g.cin * g.cout;
    // One split needs no sum: it is the gradient.
    let partial = (splits > 1).then(|| lower.temp("partial", &[splits as usize, weights + g.cout]));
    let result = RESULTS[if partial.is_some() { 0 } else { 1 + usize::from(dweight.add) }];
    let p = g.params(0, 0);
    let wp = WeightParams {
        n: p.n,
        h: p.h,
        w: p.w,
        cin: p.cin,
        oh: p.oh,
        ow: p.ow,
        cout: p.cout,
        kernel: p.kernel,
        stride: p.stride,
        pad: p.pad,
        tiles_m: tiles_m as u32,
        tiles_n: tiles_n as u32,
        tiles: (outputs * splits) as u32,
        rows_per_split: rows_per_split as u32,
    };
    let [vec, tm, tn, uni, wg] = tile_defines(g.vec().into(), tile, lanes);
    let px = px.unwrap_or(1).into();
    lower.launch(Launch {
        kernel: &BACKWARD_W,
        defines: &[&[vec, tm, tn, uni, wg, px, lower.half(x), lower.half(dy)][..], &result]
            .concat(),
        params: bytemuck::bytes_of(&wp),
        bindings: &[Some(x), Some(dy), partial, Some(dweight.tensor), Some(dbias.tensor)],
        groups: if tile.uniform {
            ((taps * tiles_m) as u64).div_ceil(lanes.into()) * tiles_n as u64 * splits
        } else {
            groups(outputs * splits)
        },
        flops: g.flops(),
    })?;
    let Some(partial) = partial else { return Ok(()) };
    let sp = SplitParams { weights: weights as u32, biases: p.cout, splits: splits as u32 };
    lower.launch(Launch {
        kernel: &SUM_SPLITS,
        defines: &[dweight.add.into()],
        params: bytemuck::bytes_of(&sp),
        bindings: &[Some(partial), Some(dweight.tensor), Some(dbias.tensor)],
        groups: groups((weights + g.cout) as u64),
        flops: splits * (weights + g.cout) as u64,
    })
}

/// Options of [`conv2d`].
#[derive(Debug, Clone, Copy)]
pub struct Conv2d {
    /// Output channels.
    pub cout: usize,
    /// Window: 1 or 3.
    pub kernel: usize,
    /// 1 or 2.
    pub stride: usize,
    /// Start at zero (the reference's `zero_module`).
    pub zero: bool,
    /// Layout of the weight in files.
    pub layout: FileLayout,
}

impl Conv2d {
    /// A 3x3 convolution of stride 1.
    pub fn k3(cout: usize) -> Self {
        Conv2d { cout, kernel: 3, stride: 1, zero: false, layout: FileLayout::Conv2d }
    }

    /// A 1x1 convolution.
    pub fn k1(cout: usize) -> Self {
        Conv2d { kernel: 1, ..Self::k3(cout) }
    }

    /// The same with zero initial weights.
    pub fn zeroed(self) -> Self {
        Conv2d { zero: true, ..self }
    }
}

#[derive(Debug)]
struct Op2d {
    geometry: Geometry,
    has_emb: bool,
    has_residual: bool,
}

/// Convolves `x` [n, h, w, cin] with new parameters `weight` and `bias` of
/// the current scope; `emb` [n, cout] and `residual` (y's shape) are added.
/// Under [`Graph::half`] the result (and a residual) is half, and the weight is
/// read as half if x is.
///
/// # Errors
/// [`Error::Shape`] for an unsupported window or stride, or operands that do
/// not fit, in their element types too.
pub fn conv2d(
    g: &mut Graph,
    x: TensorId,
    options: Conv2d,
    emb: Option<TensorId>,
    residual: Option<TensorId>,
) -> Result<TensorId> {
    let [n, h, w, cin] = g.dims("conv2d", x)?;
    let Conv2d { cout, kernel, stride, zero, layout } = options;
    if !matches!((kernel, stride), (1, 1) | (3, 1) | (3, 2)) {
        return Err(Error::shape(
            "conv2d",
            format!("a {kernel}x{kernel} window of stride {stride} is not supported"),
        ));
    }
    let geometry = Geometry { n, h, w, cin, cout, kernel, stride };
    let out = [n, geometry.oh(), geometry.ow(), cout];
    for (name, id, shape) in [("emb", emb, &[n, cout][..]), ("residual", residual, &out[..])] {
        if let Some(id) = id
            && g.shape(id) != shape
        {
            return Err(Error::shape(
                "conv2d",
                format!("{name} is {:?}, {shape:?} is needed", g.shape(id)),
            ));
        }
    }
    let dtype = g.result_dtype("conv2d", cout)?;
    let from = g.dtype(x);
    if from == DType::F16 && dtype == DType::F32 {
        return Err(Error::shape("conv2d", "x is half, but the result is to be F32: cast x"));
    }
    if let Some(residual) = residual
        && g.dtype(residual) != dtype
    {
        let detail = format!("residual is {:?}, {dtype:?} is needed", g.dtype(residual));
        return Err(Error::shape("conv2d", detail));
    }
    // PyTorch's kaiming_uniform(a = sqrt 5): both bounds are 1/sqrt(fan_in).
    let bound = Init::Uniform(1.0 / ((kernel * kernel * cin) as f32).sqrt());
    let init = if zero { Init::Zeros } else { bound };
    let shape = vec![kernel, kernel, cin, cout];
    let weight = g.param_as(ParamInfo { name: "weight".into(), shape, layout, init }, from);
    let bias = g.param(ParamInfo {
        name: "bias".into(),
        shape: vec![cout],
        layout: FileLayout::Plain,
        init,
    });
    let mut inputs = vec![x, weight, bias];
    inputs.extend(emb);
    inputs.extend(residual);
    let op = Op2d { geometry, has_emb: emb.is_some(), has_residual: residual.is_some() };
    Ok(g.push_as(op, &inputs, &[&out], dtype)[0])
}

impl Op2d {
    fn emb(&self, node: &Node) -> Option<TensorId> {
        self.has_emb.then(|| node.inputs[3])
    }

    fn residual(&self, node: &Node) -> Option<TensorId> {
        self.has_residual.then(|| node.inputs[3 + usize::from(self.has_emb)])
    }
}

impl Op for Op2d {
    fn name(&self) -> &'static str {
        "conv2d"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let i = &node.inputs;
        let (emb, residual) = (self.emb(node), self.residual(node));
        launch_forward(lower, self.geometry, i[0], [i[1], i[2]], emb, residual, node.outputs[0])
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        let g = self.geometry;
        let i = &node.inputs;
        if let (Some(dweight), Some(dbias)) = (lower.grad_target(i[1]), lower.grad_target(i[2])) {
            launch_backward_weight(lower, g, i[0], dy, dweight, dbias)?;
        }
        if let Some(target) = self.emb(node).and_then(|e| lower.grad_target(e)) {
            sum_rows(lower, dy, [g.n, g.oh() * g.ow(), g.cout], target)?;
        }
        if let Some(dx) = lower.grad_target(i[0]) {
            launch_backward_x(lower, g, dy, i[1], dx)?;
        }
        match self.residual(node) {
            Some(r) => give_grad(lower, r, dy),
            None => Ok(()),
        }
    }
}
