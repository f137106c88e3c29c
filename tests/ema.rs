//! Further moving averages of the weights: one step against the CPU twin, and
//! none where the gradient was not finite.

mod harness;

use demist::engine::graph::{
    FileLayout, FlatKind, Graph, Init, Lower, ParamInfo, ParamLayout, Plan, PlanOptions,
};
use demist::engine::ops::{ema, grad_norm};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Program};
use demist::reference::ema as twin;
use harness::{device, rel_err, values};

const AVERAGE: FlatKind = FlatKind::Ema(2);
const KINDS: [FlatKind; 3] = [FlatKind::Weights, FlatKind::Grads, AVERAGE];
const SIZES: [usize; 4] = [1, 300, 64, 4097];

#[test]
fn an_average_follows_the_weights_unless_the_step_was_skipped() {
    let (gpu, pipelines) = device();
    let mut graph = Graph::new();
    for (i, len) in SIZES.iter().enumerate() {
        graph.param(ParamInfo {
            name: format!("p{i}"),
            shape: vec![*len],
            layout: FileLayout::Plain,
            init: Init::Zeros,
        });
    }
    // Small enough that the parameters fall into several chunks.
    let layout = ParamLayout::new(&graph.params, 2048);
    assert!(layout.chunks.len() > 1);
    let mut lower = Lower::new(&graph, &gpu.caps);
    let norm = grad_norm(&mut lower, &layout).unwrap();
    let rate = ema(&mut lower, &layout, 2, norm).unwrap();
    let mut plan = Plan::new(&graph, lower, &[], PlanOptions::default()).unwrap();
    plan.params = layout.clone();
    let flat = FlatBuffers::new(gpu, &layout, &KINDS).unwrap();
    let ctx = Context { gpu, pipelines };
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).unwrap();
    let draw = |seed: u32| -> Vec<Vec<f32>> {
        SIZES.iter().enumerate().map(|(i, n)| values(seed + i as u32, *n)).collect()
    };
    let (weights, before) = (draw(1), draw(20));
    let step = |grad: f32| {
        let mut grads = draw(40);
        grads[3][77] = grad;
        for (kind, v) in KINDS.into_iter().zip([&weights, &grads, &before]) {
            flat.write(gpu, kind, &graph.params, v).unwrap();
        }
        program.write(gpu, rate, &[0.125f32]).unwrap();
        program.run(gpu).unwrap();
        flat.read(gpu, AVERAGE, &graph.params).unwrap()
    };
    for ((found, w), a) in step(0.5).iter().zip(&weights).zip(&before) {
        assert!(rel_err(found, &twin::ema(w, a, 0.125)) < 1e-6);
    }
    assert_eq!(step(f32::NAN), before);
    assert_eq!(step(f32::INFINITY), before);
}
