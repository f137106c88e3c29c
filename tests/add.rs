//! Residual add: the twin, aliasing of gradients, and a launch of more than
//! 65,535 workgroups.

mod harness;

use demist::graph::{DType, Graph, Lower, ParamLayout, Plan, PlanOptions};
use demist::ops;
use demist::reference;
use demist::runtime::{CompileOptions, Context, FlatBuffers, Program};
use harness::{Case, Twin};

fn case(shape: Vec<usize>) -> Case<'static> {
    Case {
        name: format!("add {shape:?}"),
        inputs: vec![shape.clone(), shape],
        integers: vec![],
        build: Box::new(|g, x, _| ops::add(g, x[0], x[1])),
        twin: Box::new(|a| {
            let (da, db) = reference::add::backward(a.dy);
            Twin {
                y: reference::add::forward(&a.inputs[0], &a.inputs[1]),
                input_grads: vec![da, db],
                param_grads: vec![],
            }
        }),
        tolerance: 1e-6,
        differentiable: true,
    }
}

#[test]
fn add_of_odd_sizes() {
    for shape in [vec![1], vec![3, 17, 13, 33], vec![2, 4, 4, 8], vec![7, 5]] {
        case(shape).check();
    }
    case(vec![2, 5, 3, 12]).check_half();
}

#[test]
fn more_than_65535_workgroups() {
    // 256 elements a workgroup.
    let mut case = case(vec![65_536 * 256 + 3]);
    case.differentiable = false;
    case.check_alone();
}

#[test]
fn add_into_keeps_a_running_sum() {
    let (gpu, pipelines) = harness::device();
    let (mut graph, shape) = (Graph::new(), [7, 5]);
    let x = graph.input("x", &shape, DType::F32);
    let mut lower = Lower::new(&graph, &gpu.caps);
    let sum = lower.pinned("sum", &shape, DType::F32);
    let other = lower.pinned("other", &[5, 7], DType::F32);
    assert!(ops::add_into(&mut lower, x, other).is_err());
    ops::add_into(&mut lower, x, sum).unwrap();
    let plan = Plan::new(&graph, lower, &[sum], PlanOptions::default()).unwrap();
    let flat = FlatBuffers::new(gpu, &ParamLayout::new(&[], 1024), &[]).unwrap();
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options).unwrap();
    let mut want = harness::values(1, 35);
    program.write(gpu, sum, &want).unwrap();
    for round in 2..4 {
        let v = harness::values(round, 35);
        program.write(gpu, x, &v).unwrap();
        program.run(gpu).unwrap();
        want.iter_mut().zip(&v).for_each(|(sum, v)| *sum += v);
        assert_eq!(program.read(gpu, &[sum]).unwrap()[0], want);
    }
}
