//! Runs the engine's classifier on a rebuilt golden case, forward and backward.

use std::collections::BTreeMap;

use demist::engine::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions};
use demist::engine::runtime::{CompileOptions, FlatBuffers, Program};
use demist::model::{EncoderConfig, build_encoder};

use crate::common::nhwc_to_nchw;
use crate::encoder::{Case, log_softmax};
use crate::engine::{Outputs, context, nhwc, text, weights};

/// Logits, activations, and the gradients of the sum of log p(y | x) by the
/// image and by every parameter.
pub fn run_encoder(case: &Case) -> Outputs {
    let ctx = context();
    let config: EncoderConfig =
        serde_json::from_value(case.model.clone()).map_err(|e| format!("model: {e}"))?;
    let [n, c, h, w] = case.shape;
    let mut g = Graph::new();
    let x = g.input("x", &[n, h, w, c], DType::F32);
    let t = g.input("t", &[n], DType::F32);
    let logits = build_encoder(&config, &mut g, x, t, None).map_err(text)?;
    let seed = g.input("seed", &[n, config.out_channels], DType::F32);
    let mut lower = Lower::new(&g, &ctx.gpu.caps);
    lower.forward(&g).map_err(text)?;
    lower.backward(&g, &[(logits, seed)], &[x]).map_err(text)?;
    let dx = lower.grad(x).ok_or("the image has no gradient")?;
    let mut names: Vec<String> = vec!["out.y".into(), "out.cond_grad".into()];
    let mut keep = vec![logits, dx];
    for (name, id) in &g.taps {
        names.push(format!("act.{name}"));
        keep.push(*id);
    }
    let plan = Plan::new(&g, lower, &keep, PlanOptions::default()).map_err(text)?;
    let kinds = [FlatKind::Weights, FlatKind::Grads];
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &kinds).map_err(text)?;
    flat.write(ctx.gpu, FlatKind::Weights, &g.params, &weights(&g.params, case.salt))
        .map_err(text)?;
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(ctx, plan, &flat, options).map_err(text)?;
    program.write(ctx.gpu, x, &nhwc(case.shape, &case.x)).map_err(text)?;
    program.write(ctx.gpu, t, &case.t).map_err(text)?;
    // Once for the logits, which the seed depends on.
    program.run(ctx.gpu).map_err(text)?;
    let found = program.read(ctx.gpu, &[logits]).map_err(text)?.remove(0);
    program.write(ctx.gpu, seed, &log_softmax(&found, &case.y).1).map_err(text)?;
    program.run(ctx.gpu).map_err(text)?;

    let shape_of = |id| if id == dx { vec![n, h, w, c] } else { g.shape(id).to_vec() };
    let values = program.read(ctx.gpu, &keep).map_err(text)?;
    let reordered = keep.iter().zip(values).map(|(id, v)| match shape_of(*id)[..] {
        [n, h, w, c] => nhwc_to_nchw(&v, [n, c, h, w]),
        _ => v,
    });
    let mut outputs: BTreeMap<_, _> = names.into_iter().zip(reordered).collect();
    let grads = flat.read(ctx.gpu, FlatKind::Grads, &g.params).map_err(text)?;
    for (p, v) in g.params.iter().zip(grads) {
        outputs.insert(format!("g.{}", p.name), p.to_file(&v));
    }
    Ok(outputs)
}
