//! Runs a graph forward once, without gradients, and reads some tensors.
#![allow(dead_code)]

use super::harness::{device, narrow_device};
use demist::engine::gpu::Gpu;
use demist::engine::graph::{Graph, Lower, ParamLayout, Plan, PlanOptions, TensorId, verify_slots};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};

/// What to write into an input before the run.
pub enum Input<'a> {
    F32(&'a [f32]),
    U32(&'a [u32]),
}

/// Adds launches to what a graph's nodes launch.
pub type Extra<'a> = &'a dyn Fn(&mut Lower);

/// Runs every node of `graph` and then `extra` on NaN-filled memory, twice:
/// the second time with launches folded, which must not change a bit.
pub fn forward(
    graph: &Graph,
    extra: Option<Extra>,
    inputs: &[(TensorId, Input)],
    keep: &[TensorId],
) -> Vec<Vec<f32>> {
    let plain = forward_on(device(), graph, extra, inputs, keep);
    let folded = forward_on(narrow_device(), graph, extra, inputs, keep);
    for (plain, folded) in plain.iter().zip(&folded) {
        assert!(
            plain.iter().map(|v| v.to_bits()).eq(folded.iter().map(|v| v.to_bits())),
            "a folded launch gives another result"
        );
    }
    plain
}

/// [`forward`] on one device.
pub fn forward_on(
    (gpu, pipelines): &(Gpu, Pipelines),
    graph: &Graph,
    extra: Option<Extra>,
    inputs: &[(TensorId, Input)],
    keep: &[TensorId],
) -> Vec<Vec<f32>> {
    let mut lower = Lower::new(graph, &gpu.caps);
    lower.forward(graph).unwrap();
    if let Some(launch) = extra {
        launch(&mut lower);
    }
    let plan = Plan::new(graph, lower, keep, PlanOptions::default()).unwrap();
    verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
    let flat = FlatBuffers::new(gpu, &ParamLayout::new(&[], 1024), &[]).unwrap();
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options).unwrap();
    for (id, input) in inputs {
        match input {
            Input::F32(v) => program.write(gpu, *id, v).unwrap(),
            Input::U32(v) => program.write(gpu, *id, v).unwrap(),
        }
    }
    program.run(gpu).unwrap();
    program.read(gpu, keep).unwrap()
}
