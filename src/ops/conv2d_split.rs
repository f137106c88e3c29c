//! Convolutions whose product is split: where an image is small and its channels many,
//! as in the middle of a U-Net at batch 1, the tiles of a result are too few for a GPU's
//! processors. Several workgroups then share a tile, each with some of the window's taps,
//! and a second launch adds their sums up and everything else that y is made of.

use super::conv2d::Geometry;
use super::groups;
use crate::graph::{Launch, Lower, Target, TensorId, bucket};
use crate::kernel::{Kernel, accumulate, read, write};
use crate::{Result, params};

params! {
    struct Params { quads: u32, splits: u32, cin: u32, oh: u32, ow: u32, cout: u32 }
}

const SOURCE: &str = include_str!("../../shaders/conv2d_sum.wgsl");

static SUM: Kernel = Kernel {
    name: "conv2d_sum",
    source: SOURCE,
    bindings: &[
        read("partial"),
        read("bias"),
        read("emb").when("EMB"),
        read("residual").when("RESIDUAL").half("HALF"),
        write("y").half("HALF"),
    ],
    params: Params::FIELDS,
    defines: &["EMB", "RESIDUAL", "HALF", "DX", "ACC"],
};

static SUM_DX: Kernel = Kernel {
    name: "conv2d_dx_sum",
    source: SOURCE,
    bindings: &[read("partial"), accumulate("dx").half("HALF")],
    params: Params::FIELDS,
    defines: SUM.defines,
};

pub(super) fn kernels() -> Vec<(&'static Kernel, Vec<Vec<i64>>)> {
    let (mut forward, mut dx) = (Vec::new(), Vec::new());
    for half in [0, 1] {
        for flag in [0, 1] {
            forward.extend([0, 1].map(|emb| vec![emb, flag, half, 0, 0]));
            dx.push(vec![0, 0, half, 1, flag]);
        }
    }
    vec![(&SUM, forward), (&SUM_DX, dx)]
}

/// Among how many workgroups the nine taps of a window are divided.
const SPLITS: [(&str, u32); 3] = [("whole", 1), ("split3", 3), ("split9", 9)];

/// Workgroups that occupy a GPU: large ones have up to some 140 multiprocessors, each of
/// which holds a few of these.
const BUSY: u64 = 256;

/// How many workgroups share a tile, of which there are `tiles`, summing over `depth`
/// channels a tap.
pub(super) fn splits(lower: &mut Lower, g: &Geometry, tiles: u64, depth: usize) -> u32 {
    if g.kernel != 3 {
        return 1;
    }
    let enough = SPLITS.iter().position(|s| tiles * u64::from(s.1) >= BUSY);
    let rule = if lower.caps.software { 0 } else { enough.unwrap_or(SPLITS.len() - 1) };
    let key = [bucket(tiles as usize), depth];
    SPLITS[lower.choose("conv2d_split", &key, &SPLITS.map(|s| s.0), rule)].1
}

/// y = the sum of `partial` [splits, n, oh, ow, cout] + bias (+ emb) (+ residual).
pub(super) fn launch_sum(
    lower: &mut Lower,
    g: &Geometry,
    (partial, splits): (TensorId, u32),
    bias: TensorId,
    add: [Option<TensorId>; 2],
    y: TensorId,
) -> Result<()> {
    let [emb, residual] = add.map(|t| i64::from(t.is_some()));
    let p = params(g, splits, g.n * g.oh() * g.ow() * g.cout);
    lower.launch(Launch {
        kernel: &SUM,
        defines: &[emb, residual, lower.half(y), 0, 0],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(partial), Some(bias), add[0], add[1], Some(y)],
        groups: groups(p.quads.into()),
        flops: 0,
    })
}

/// Adds or assigns dx, the sum of `partial` [splits, n, h, w, cin].
pub(super) fn launch_sum_dx(
    lower: &mut Lower,
    g: &Geometry,
    (partial, splits): (TensorId, u32),
    dx: Target,
) -> Result<()> {
    let p = params(g, splits, g.n * g.h * g.w * g.cin);
    lower.launch(Launch {
        kernel: &SUM_DX,
        defines: &[0, 0, lower.half(dx.tensor), 1, dx.add.into()],
        params: bytemuck::bytes_of(&p),
        bindings: &[Some(partial), Some(dx.tensor)],
        groups: groups(p.quads.into()),
        flops: 0,
    })
}

fn params(g: &Geometry, splits: u32, elements: usize) -> Params {
    Params {
        quads: (elements / 4) as u32,
        splits,
        cin: g.cin as u32,
        oh: g.oh() as u32,
        ow: g.ow() as u32,
        cout: g.cout as u32,
    }
}
