//! SiLU against its twin.

mod harness;

use demist::engine::ops::silu;
use demist::reference::silu::{backward, forward};
use harness::{Args, Case, Twin};

fn case(shape: &[usize]) -> Case<'static> {
    Case {
        name: format!("silu {shape:?}"),
        inputs: vec![shape.to_vec()],
        integers: vec![],
        build: Box::new(|g, x, _| silu(g, x[0])),
        twin: Box::new(|a: &Args| Twin {
            y: forward(&a.inputs[0]),
            input_grads: vec![backward(&a.inputs[0], a.dy)],
            param_grads: vec![],
        }),
        tolerance: 1e-6,
        differentiable: true,
    }
}

#[test]
fn any_shape() {
    for shape in [&[3, 17, 13, 33][..], &[2, 8, 8, 32], &[5, 7], &[1], &[1, 1, 1, 4]] {
        case(shape).check();
    }
    case(&[2, 8, 7, 12]).check_half();
    case(&[1, 1, 1, 4]).check_half();
}

#[test]
fn far_from_zero() {
    case(&[4, 257]).check_on(harness::device(), |_, v| v.iter().map(|v| v * 150.0).collect());
}

#[test]
fn folded_dispatches() {
    case(&[3, 99, 131]).check_on(harness::narrow_device(), |_, v| v);
}

#[test]
fn more_workgroups_than_one_dimension_holds() {
    // On a GPU a workgroup owns 256 elements.
    case(&[65_536 * 256 + 4]).check_alone_on(harness::parallel_device());
}
