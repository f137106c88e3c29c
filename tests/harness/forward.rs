//! Runs a graph forward once, without gradients, and reads some tensors.

use super::harness::device;
use demist::graph::{Graph, Launch, Lower, ParamLayout, Plan, PlanOptions, TensorId, verify_slots};
use demist::runtime::{CompileOptions, FlatBuffers, Program};

/// What to write into an input before the run.
pub enum Input<'a> {
    F32(&'a [f32]),
    U32(&'a [u32]),
}

/// Runs every node of `graph` and then `extra` on NaN-filled memory.
pub fn forward(
    graph: &Graph,
    extra: Option<Launch>,
    inputs: &[(TensorId, Input)],
    keep: &[TensorId],
) -> Vec<Vec<f32>> {
    let (gpu, pipelines) = device();
    let mut lower = Lower::new(graph, &gpu.caps);
    lower.forward().unwrap();
    if let Some(launch) = extra {
        lower.launch(launch).unwrap();
    }
    let plan = Plan::new(graph, lower, keep, PlanOptions::default()).unwrap();
    verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
    let flat = FlatBuffers::new(gpu, &ParamLayout::new(&[], 1024), &[]).unwrap();
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(gpu, pipelines, plan, &flat, options).unwrap();
    for (id, input) in inputs {
        match input {
            Input::F32(v) => program.write(gpu, *id, v).unwrap(),
            Input::U32(v) => program.write(gpu, *id, v).unwrap(),
        }
    }
    program.run(gpu).unwrap();
    program.read(gpu, keep).unwrap()
}
