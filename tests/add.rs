//! Residual add: the twin, aliasing of gradients, and a launch of more than
//! 65,535 workgroups.

mod harness;

use demist::engine::ops;
use demist::reference;
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
