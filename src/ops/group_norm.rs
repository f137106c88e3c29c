//! Group norm (Wu and He, 2018) with its two usual followers fused in: the
//! timestep's scale and shift (AdaGN of Dhariwal and Nichol, 2021) and SiLU.
//!
//! Over the pixels and channels of a group of one image, with biased variance:
//!     xhat = (x - mean) * rstd,   rstd = 1 / sqrt(var + eps),
//!     z = (xhat * gamma + beta) * (1 + scale) + shift,   y = silu(z) or z.
//! Both passes see z as one multiply-add per channel,
//!     z = a * (x - pivot) + b,   pivot = x of the image's first pixel,
//! whose coefficients the first kernel writes; subtracting the pivot is exact
//! where the mean is far larger than the deviation, so nothing cancels.
//!
//! Backward keeps x and those coefficients. With dz = dy * silu'(z) and, per
//! image and channel, S1 = sum dz and S2 = sum dz * xhat over the pixels:
//!     dscale = gamma * S2 + beta * S1,          dshift = S1,
//!     dgamma = sum over n of (1 + scale) * S2,  dbeta = the same of S1,
//!     dx = rstd * (gamma * (1 + scale) * dz - c1 - xhat * c2),
//! where c1 and c2 are a group's averages of gamma * (1 + scale) times dz and
//! dz * xhat. Again dx = a * dz + k1 + k2 * (x - pivot).
//!
//! Two dispatches each way. A GPU with few images gets the pixels of the sums
//! split over more workgroups, and a third dispatch that merges the parts.

use super::pixels::{Blocks, wanted_invocations};
use super::{GROUP, groups};
use crate::graph::{
    FileLayout, Graph, Init, Launch, Lower, Node, Normed, Op, ParamInfo, Target, TensorId, bucket,
};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Error, Result, params};

params! {
    struct StatsParams {
        n: u32, hw: u32, c: u32, width: u32,
        window: u32, windows: u32, pixels: u32, splits: u32,
        eps: f32, each: u32,
    }
}

params! {
    struct SumsParams {
        n: u32, hw: u32, c: u32, width: u32,
        window: u32, windows: u32, pixels: u32, splits: u32,
    }
}

params! {
    struct ApplyParams { n: u32, hw: u32, c: u32, quads: u32, pixels: u32, blocks: u32 }
}

params! {
    struct GradsParams {
        n: u32, hw: u32, c: u32, quads: u32, pixels: u32, blocks: u32, apply_groups: u32,
    }
}

/// x (or the partials of an earlier launch) to coefficients (or partials).
static STATS: Kernel = Kernel {
    name: "group_norm_stats",
    source: include_str!("../../shaders/group_norm_stats.wgsl"),
    bindings: &[
        read("x").half("HALF_X"),
        read("weight").when("FINISH"),
        read("bias").when("FINISH"),
        read("emb").when("EMB"),
        write("coefs").when("FINISH"),
        read("partials").when("IN"),
        write("partials_out").when("OUT"),
        read("moments").when("MOMENTS"),
    ],
    params: StatsParams::FIELDS,
    defines: &["VEC", "EMB", "IN", "OUT", "FINISH", "HALF_X", "SUBGROUP", "MOMENTS"],
};

static APPLY: Kernel = Kernel {
    name: "group_norm_apply",
    source: include_str!("../../shaders/group_norm_apply.wgsl"),
    bindings: &[read("x").half("HALF_X"), read("coefs"), write("y").half("HALF_Y")],
    params: ApplyParams::FIELDS,
    defines: &["VEC", "SILU", "HALF_X", "HALF_Y"],
};

static SUMS: Kernel = Kernel {
    name: "group_norm_sums",
    source: include_str!("../../shaders/group_norm_sums.wgsl"),
    bindings: &[
        read("x").when("WALK").half("HALF_X"),
        read("dy").when("WALK").half("HALF_Y"),
        read("coefs"),
        read("weight").when("EMB"),
        read("bias").when("EMB"),
        read("emb").when("EMB"),
        accumulate("demb").when("EMB"),
        write("sums").when("FINISH"),
        read("partials").when("IN"),
        write("partials_out").when("OUT"),
    ],
    params: SumsParams::FIELDS,
    defines: &[
        "VEC", "SILU", "EMB", "ACC", "IN", "OUT", "FINISH", "WALK", "HALF_X", "HALF_Y", "SUBGROUP",
    ],
};

// dweight and dbias are read with ACC_PARAMS, but a kernel has one flag for
// `accumulate`. What is added to are gradients of parameters, which share no memory
// and live on from launch to launch whatever is said here.
static GRADS: Kernel = Kernel {
    name: "group_norm_grads",
    source: include_str!("../../shaders/group_norm_grads.wgsl"),
    bindings: &[
        read("x").half("HALF_X"),
        read("dy").half("HALF_Y").overwritten_by("dx"),
        read("coefs"),
        read("sums"),
        accumulate("dx").half("HALF_X"),
        write("dweight"),
        write("dbias"),
    ],
    params: GradsParams::FIELDS,
    defines: &["VEC", "SILU", "ACC", "ACC_PARAMS", "INPLACE", "HALF_X", "HALF_Y"],
};

/// The parts of a reduction: all in one launch, or partials and their merging.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Stage {
    Whole,
    Partial,
    Merge,
}

impl Stage {
    const ALL: [Stage; 3] = [Stage::Whole, Stage::Partial, Stage::Merge];

    /// The defines IN, OUT, FINISH.
    fn defines(self) -> [i64; 3] {
        [self == Stage::Merge, self == Stage::Partial, self != Stage::Partial].map(i64::from)
    }
}

fn stats_defines(w: Windows, stage: Stage, emb: bool, half: i64) -> Vec<i64> {
    let emb = emb && stage != Stage::Partial;
    let walk = stage != Stage::Merge;
    let [subgroup, moments] = [w.subgroup && walk, w.moments && walk].map(i64::from);
    [&[w.vec.into(), emb.into()][..], &stage.defines(), &[half, subgroup, moments]].concat()
}

fn sums_defines(
    stage: Stage,
    vec: bool,
    silu: bool,
    emb: bool,
    acc: bool,
    half: [i64; 2],
    subgroup: bool,
) -> Vec<i64> {
    let emb = emb && stage != Stage::Partial;
    // Variants that do not differ in text share one set of values.
    let walk = stage != Stage::Merge;
    let flags = [vec && walk, silu && walk, emb, emb && acc].map(i64::from);
    let half = half.map(|h| h * i64::from(walk));
    [&flags[..], &stage.defines(), &[walk.into()], &half, &[(subgroup && walk).into()]].concat()
}

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let mut stats = Vec::new();
    let mut sums = Vec::new();
    for bits in 0..32u32 {
        let [vec, silu, emb, acc, subgroup] = [1, 2, 4, 8, 16].map(|b| bits & b != 0);
        for (stage, half) in Stage::ALL.into_iter().flat_map(|s| HALVES.map(|h| (s, h))) {
            for moments in [false, vec] {
                let w = Windows { vec, subgroup, moments, ..Windows::default() };
                stats.push(stats_defines(w, stage, emb, half[0]));
            }
            sums.push(sums_defines(stage, vec, silu, emb, acc, half, subgroup));
        }
    }
    for list in [&mut stats, &mut sums] {
        list.sort();
        list.dedup();
    }
    // VEC first; halves come in fours.
    let flags = |n: usize| {
        let bits = (0..1i64 << n).map(move |bits| (0..n).map(|i| bits >> i & 1).collect());
        let with = |bits: Vec<i64>| HALVES.map(|half| [&bits[..], &half].concat());
        let packs = |v: &Vec<i64>| v[0] == 1 || v[n..] == [0, 0];
        bits.flat_map(with).filter(packs).collect::<Vec<_>>()
    };
    // What is overwritten is not added to, and has the result's precision.
    let mut grads = flags(5);
    grads.retain(|v| v[4] == 0 || v[2] == 0 && v[5] == v[6]);
    vec![(&STATS, stats), (&APPLY, flags(2)), (&SUMS, sums), (&GRADS, grads)]
}

/// Precisions of x and y: 32 bits, within the half-precision torso, out of it
/// and into it.
const HALVES: [[i64; 2]; 4] = [[0, 0], [1, 1], [1, 0], [0, 1]];

/// Options of [`group_norm`].
#[derive(Debug, Clone, Copy)]
pub struct GroupNorm {
    /// Runs of channels that are normalised together.
    pub groups: usize,
    /// Added to the variance.
    pub eps: f32,
    /// Apply SiLU to the result.
    pub silu: bool,
}

impl GroupNorm {
    /// The reference's GroupNorm32: 32 groups, eps 1e-5, no SiLU.
    pub fn g32() -> Self {
        GroupNorm { groups: 32, eps: 1e-5, silu: false }
    }

    /// The same followed by SiLU.
    pub fn with_silu(self) -> Self {
        GroupNorm { silu: true, ..self }
    }
}

/// Most channels of a group: a workgroup holds a group's channels in its memory.
const MAX_WIDTH: usize = 256;

/// Most turns of a loop over pixels or images: llvmpipe of Mesa 22.3 silently
/// leaves a kernel's loops after 65,535 turns in all.
const MAX_TURNS: usize = 32_768;

#[derive(Debug)]
struct GroupNormOp {
    options: GroupNorm,
    n: usize,
    hw: usize,
    c: usize,
    has_emb: bool,
}

/// Normalises `x` [n, h, w, c] or [n, c] with new parameters `weight` and `bias` `[c]` of
/// the current scope. `emb` [n, 2c] modulates the result: its first half is
/// the scale (1 is added to it), its second the shift. x may be of either
/// precision; the result is half under [`Graph::half`].
///
/// # Errors
/// [`Error::Shape`] if the groups do not divide the channels, a group has
/// more than 256 channels, there are more than 32,768 images, or emb does not
/// fit.
pub fn group_norm(
    g: &mut Graph,
    x: TensorId,
    options: GroupNorm,
    emb: Option<TensorId>,
) -> Result<TensorId> {
    let shape = g.shape(x).to_vec();
    let [n, h, w, c] = match shape[..] {
        [n, c] => [n, 1, 1, c],
        _ => g.dims("group_norm", x)?,
    };
    let fail = |detail| Err(Error::shape("group_norm", detail));
    if n * h * w * c == 0 {
        return fail(format!("x {:?} is empty", g.shape(x)));
    }
    if n > MAX_TURNS {
        return fail(format!("a batch of {n} images is more than the supported {MAX_TURNS}"));
    }
    if options.groups == 0 || !c.is_multiple_of(options.groups) {
        return fail(format!("{c} channels cannot be cut into {} groups", options.groups));
    }
    if c / options.groups > MAX_WIDTH {
        let width = c / options.groups;
        return fail(format!("a group has {width} channels, at most {MAX_WIDTH} are supported"));
    }
    if let Some(emb) = emb
        && g.shape(emb) != [n, 2 * c]
    {
        return fail(format!("emb is {:?}, {:?} is needed", g.shape(emb), [n, 2 * c]));
    }
    let [weight, bias] = [("weight", Init::Ones), ("bias", Init::Zeros)].map(|(name, init)| {
        g.param(ParamInfo { name: name.into(), shape: vec![c], layout: FileLayout::Plain, init })
    });
    let mut inputs = vec![x, weight, bias];
    inputs.extend(emb);
    let op = GroupNormOp { options, n, hw: h * w, c, has_emb: emb.is_some() };
    let dtype = g.result_dtype("group_norm", c)?;
    Ok(g.push_as(op, &inputs, &[&shape, &[n, 4, c]], dtype)[0])
}

/// Channels that workgroups of the reductions cover, and splits of the pixels.
#[derive(Debug, Clone, Copy, Default)]
struct Windows {
    vec: bool,
    /// What is walked down are moments of tiles, not pixels.
    moments: bool,
    /// Rows stand a power of two apart, and subgroups are to merge them.
    subgroup: bool,
    window: usize,
    windows: usize,
    /// Places to walk down in an image: pixels, or tiles.
    places: usize,
    /// Those of a split.
    pixels: usize,
    splits: usize,
}

fn lcm(a: usize, b: usize) -> usize {
    let (mut x, mut y) = (a, b);
    while y != 0 {
        (x, y) = (y, x % y);
    }
    a / x * b
}

/// Splits of the pixels that can be asked for instead of the rule's ("auto").
const SPLITS: [(usize, &str); 7] = [
    (1, "splits1"),
    (2, "splits2"),
    (4, "splits4"),
    (8, "splits8"),
    (16, "splits16"),
    (32, "splits32"),
    (64, "splits64"),
];

/// Channels from which reads of one pixel are well coalesced (128 bytes).
const WINDOW: usize = 32;

/// The same on a software driver with images for all its cores: merging, which
/// workgroups do each for itself, costs it more than walking.
const WIDE_WINDOW: usize = 128;

impl GroupNormOp {
    fn width(&self) -> usize {
        self.c / self.options.groups
    }

    fn emb(&self, node: &Node) -> Option<TensorId> {
        self.has_emb.then(|| node.inputs[3])
    }

    /// Whether windows hold whole quads of channels.
    fn vec(&self) -> bool {
        self.c.is_multiple_of(4) && lcm(self.width(), 4) <= MAX_WIDTH
    }

    /// Windows hold whole groups, and whole quads for vector loads. Where there are moments
    /// of `tiles`, these are walked down.
    fn windows(
        &self,
        lower: &mut Lower,
        op: &'static str,
        half: i64,
        tiles: Option<usize>,
    ) -> Windows {
        let vec = self.vec();
        let unit = if vec { lcm(self.width(), 4) } else { self.width() };
        let wide = lower.caps.software && self.n >= 4;
        let wanted = if wide { WIDE_WINDOW } else { WINDOW };
        let window = (unit * wanted.div_ceil(unit)).min(self.c);
        let windows = self.c.div_ceil(window);
        // The last window may be a shorter one.
        let quads = [window, self.c - (windows - 1) * window].map(|c| c.div_ceil(4));
        let subgroup = lower.caps.subgroups
            && quads.iter().all(|q| q.is_power_of_two() && *q < GROUP as usize);
        // A split should leave each invocation some pixels to walk, and on a
        // software driver repay its second dispatch.
        let rows = (GROUP as usize / window.div_ceil(4)).max(1);
        let least = if lower.caps.software { 1024 * rows } else { 8 * rows };
        let wanted = wanted_invocations(lower).div_ceil(GROUP as usize * self.n * windows);
        let places = tiles.unwrap_or(self.hw);
        let splits = wanted.min(places / least).max(places.div_ceil(MAX_TURNS * rows));
        let pixels = self.choose_pixels(lower, op, half, [places, rows], places.div_ceil(splits));
        let splits = places.div_ceil(pixels);
        Windows { vec, moments: tiles.is_some(), subgroup, window, windows, places, pixels, splits }
    }

    /// Of the `places` of an image those of a split, by default `rule`: as many as leave one,
    /// two, four, .. splits, each with some for all `rows` of a workgroup's invocations.
    fn choose_pixels(
        &self,
        lower: &mut Lower,
        op: &'static str,
        half: i64,
        [places, rows]: [usize; 2],
        rule: usize,
    ) -> usize {
        let cut = |s: usize| {
            let pixels = places.div_ceil(s);
            let whole = places.div_ceil(pixels) == s && (s == 1 || pixels >= rows);
            (whole && pixels <= MAX_TURNS * rows).then_some(pixels)
        };
        let counts = SPLITS.iter().filter_map(|(s, name)| Some((*name, cut(*s)?)));
        let (names, pixels): (Vec<_>, Vec<_>) = std::iter::once(("auto", rule))
            .chain(counts.filter(|(_, pixels)| *pixels != rule))
            .unzip();
        let bits = if half == 0 { 32 } else { 16 };
        let key = [bucket(self.n), bucket(places), self.c, self.options.groups, bits];
        pixels[lower.choose(op, &key, &names, 0)]
    }

    fn sums_params(&self, w: Windows) -> SumsParams {
        SumsParams {
            n: self.n as u32,
            hw: w.places as u32,
            c: self.c as u32,
            width: self.width() as u32,
            window: w.window as u32,
            windows: w.windows as u32,
            pixels: w.pixels as u32,
            splits: w.splits as u32,
        }
    }

    fn stats_params(&self, w: Windows) -> StatsParams {
        let SumsParams { n, hw, c, width, window, windows, pixels, splits } = self.sums_params(w);
        let (eps, each) = (self.options.eps, (self.hw / w.places) as u32);
        StatsParams { n, hw, c, width, window, windows, pixels, splits, eps, each }
    }

    fn elements(&self) -> u64 {
        self.elements_of(self.hw)
    }

    fn elements_of(&self, places: usize) -> u64 {
        (self.n * places * self.c) as u64
    }

    /// Runs `launch` for the whole reduction at once or for its two stages,
    /// with the partials and the number of workgroups.
    fn reduce(
        &self,
        lower: &mut Lower,
        kernel: &'static Kernel,
        half: i64,
        tiles: Option<usize>,
        launch: impl Fn(&mut Lower, Windows, Stage, Option<TensorId>, u64) -> Result<()>,
    ) -> Result<()> {
        let w = self.windows(lower, kernel.name, half, tiles);
        let workgroups = (self.n * w.windows) as u64;
        if w.splits == 1 {
            return launch(lower, w, Stage::Whole, None, workgroups);
        }
        let partials = lower.temp("partials", &[self.n, w.splits, 2, self.c]);
        launch(lower, w, Stage::Partial, Some(partials), workgroups * w.splits as u64)?;
        launch(lower, w, Stage::Merge, Some(partials), workgroups)
    }

    fn blocks(&self, lower: &Lower) -> Blocks {
        Blocks::new(lower, self.n, self.hw, self.c.div_ceil(4))
    }

    /// S1, S2 and what follows from them; returns the sums [n, 4, c].
    fn sums(&self, lower: &mut Lower, node: &Node, dy: TensorId) -> Result<TensorId> {
        let [x, weight, bias] = [0, 1, 2].map(|i| node.inputs[i]);
        let coefs = node.outputs[1];
        let emb = self.emb(node);
        let demb = emb.map(|e| {
            lower
                .grad_target(e)
                .unwrap_or_else(|| Target::assign(lower.temp("demb", &[self.n, 2 * self.c])))
        });
        let sums = lower.temp("sums", &[self.n, 4, self.c]);
        let half = lower.half(dy);
        self.reduce(lower, &SUMS, half, None, |lower, w, stage, partials, workgroups| {
            let acc = demb.is_some_and(|d| d.add);
            lower.launch(Launch {
                kernel: &SUMS,
                defines: &sums_defines(
                    stage,
                    w.vec,
                    self.options.silu,
                    emb.is_some(),
                    acc,
                    [lower.half(x), lower.half(dy)],
                    w.subgroup,
                ),
                params: bytemuck::bytes_of(&self.sums_params(w)),
                bindings: &[
                    Some(x),
                    Some(dy),
                    Some(coefs),
                    Some(weight),
                    Some(bias),
                    emb,
                    demb.map(|d| d.tensor),
                    Some(sums),
                    partials,
                    partials,
                ],
                groups: workgroups,
                flops: if stage == Stage::Merge { 0 } else { 12 * self.elements() },
            })
        })?;
        Ok(sums)
    }
}

impl Op for GroupNormOp {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn takes_moments(&self) -> bool {
        self.vec()
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let [x, weight, bias] = [0, 1, 2].map(|i| node.inputs[i]);
        let (y, coefs) = (node.outputs[0], node.outputs[1]);
        let emb = self.emb(node);
        let half = lower.half(x);
        let moments = lower.moments(x).filter(|_| self.vec());
        let tiles = moments.map(|m| m.tiles);
        self.reduce(lower, &STATS, half, tiles, |lower, w, stage, partials, workgroups| {
            lower.launch(Launch {
                kernel: &STATS,
                defines: &stats_defines(w, stage, emb.is_some(), half),
                params: bytemuck::bytes_of(&self.stats_params(w)),
                bindings: &[
                    Some(x),
                    Some(weight),
                    Some(bias),
                    emb,
                    Some(coefs),
                    partials,
                    partials,
                    moments.map(|m| m.tensor),
                ],
                groups: workgroups,
                flops: if stage == Stage::Merge { 0 } else { 6 * self.elements_of(w.places) },
            })
        })?;
        if self.c.is_multiple_of(4) {
            lower.set_normed(y, Normed { x, coefs, silu: self.options.silu });
        }
        let b = self.blocks(lower);
        let p = ApplyParams {
            n: self.n as u32,
            hw: self.hw as u32,
            c: self.c as u32,
            quads: b.quads as u32,
            pixels: b.pixels as u32,
            blocks: b.blocks as u32,
        };
        lower.launch(Launch {
            kernel: &APPLY,
            defines: &[
                self.c.is_multiple_of(4).into(),
                self.options.silu.into(),
                lower.half(x),
                lower.half(y),
            ],
            params: bytemuck::bytes_of(&p),
            bindings: &[Some(x), Some(coefs), Some(y)],
            groups: groups(b.invocations as u64),
            flops: 8 * self.elements(),
        })
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.outputs[0]) else { return Ok(()) };
        let [x, weight, bias] = [0, 1, 2].map(|i| node.inputs[i]);
        let sums = self.sums(lower, node, dy)?;
        // What nobody wants (frozen parameters, the image itself) is written all
        // the same: it is no case worth a variant.
        let mut target = |id, name| {
            lower.grad_target(id).unwrap_or_else(|| Target::assign(lower.temp_like(name, id)))
        };
        let dweight = target(weight, "dweight");
        let dbias = target(bias, "dbias");
        let dx = target(x, "dx");
        let b = self.blocks(lower);
        let apply_groups = groups(b.invocations as u64);
        let p = GradsParams {
            n: self.n as u32,
            hw: self.hw as u32,
            c: self.c as u32,
            quads: b.quads as u32,
            pixels: b.pixels as u32,
            blocks: b.blocks as u32,
            apply_groups: apply_groups as u32,
        };
        lower.launch(Launch {
            kernel: &GRADS,
            defines: &[
                self.c.is_multiple_of(4).into(),
                self.options.silu.into(),
                dx.add.into(),
                dweight.add.into(),
                0,
                lower.half(x),
                lower.half(dy),
            ],
            params: bytemuck::bytes_of(&p),
            bindings: &[
                Some(x),
                Some(dy),
                Some(node.outputs[1]),
                Some(sums),
                Some(dx.tensor),
                Some(dweight.tensor),
                Some(dbias.tensor),
            ],
            groups: apply_groups + groups(self.c as u64),
            flops: 16 * self.elements(),
        })
    }
}
