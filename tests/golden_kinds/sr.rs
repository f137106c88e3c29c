//! Golden kind "sr": a super-resolution network, which is given a small image
//! beside the noisy one, and the means of areas that small images are made by.

use demist::engine::graph::{DType, Graph, Lower, Plan, PlanOptions};
use demist::engine::ops::resize_area;
use demist::engine::runtime::{CompileOptions, FlatBuffers, Program};
use serde_json::Value;

use crate::common::golden::{Checker, Golden};
use crate::common::{hash_u, nhwc_to_nchw};
use crate::engine::{Outputs, context, nhwc, text};
use crate::unet;

/// Relative l2 error of a mean of areas.
const AREA_TOLERANCE: f64 = 1e-6;

/// As kind "unet", and the area means of `hi` by [`run_area`].
pub fn check(
    golden: &Golden,
    run: impl FnOnce(&unet::Case) -> Outputs,
) -> Result<(f64, String), String> {
    let small = golden.config_usize("/small_size")?;
    // The reference keeps this size outside of the network's arguments.
    let mut model = golden.config["model"].clone();
    model["small_size"] = Value::from(small);
    let mut case = unet::case(golden, &model)?;
    let [n, c, size, _] = case.shape;
    case.low_res =
        Some((small, hash_u(&format!("{}in.low_res", case.salt), n * c * small * small)));
    let outputs = run(&case)?;
    let mut checker = Checker::new(golden);
    unet::compare(&mut checker, &outputs)?;

    let hi = hash_u(&format!("{}in.hi", case.salt), c * size * size);
    let means = run_area([1, c, size, size], &hi, small)?;
    checker.close_f32("out.hi_area", &means, AREA_TOLERANCE)?;
    checker.finish()
}

/// Row-major NCHW to the same at `small` pixels a side.
fn run_area(shape: [usize; 4], hi: &[f32], small: usize) -> Result<Vec<f32>, String> {
    let ctx = context();
    let [n, c, h, w] = shape;
    let mut g = Graph::new();
    let x = g.input("x", &[n, h, w, c], DType::F32);
    let y = resize_area(&mut g, x, [small, small]).map_err(text)?;
    let mut lower = Lower::new(&g, &ctx.gpu.caps);
    lower.forward(&g).map_err(text)?;
    let plan = Plan::new(&g, lower, &[y], PlanOptions::default()).map_err(text)?;
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &[]).map_err(text)?;
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).map_err(text)?;
    program.write(ctx.gpu, x, &nhwc(shape, hi)).map_err(text)?;
    program.run(ctx.gpu).map_err(text)?;
    let values = program.read(ctx.gpu, &[y]).map_err(text)?.remove(0);
    Ok(nhwc_to_nchw(&values, [n, c, small, small]))
}
