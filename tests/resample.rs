//! Doubling and halving of images against their twins.

mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::ops::{downsample2, upsample2};
use demist::reference::resample::{
    ResampleShape, down_backward, down_forward, up_backward, up_forward,
};
use harness::{Args, Case, Twin};

fn up(shape: [usize; 4]) -> Case<'static> {
    let [n, h, w, c] = shape;
    let s = ResampleShape { n, h, w, c };
    Case {
        name: format!("upsample2 {shape:?}"),
        inputs: vec![shape.to_vec()],
        integers: vec![],
        build: Box::new(|g, x, _| upsample2(g, x[0])),
        twin: Box::new(move |a: &Args| Twin {
            y: up_forward(&s, &a.inputs[0]),
            input_grads: vec![up_backward(&s, a.dy)],
            param_grads: vec![],
        }),
        tolerance: 1e-6,
        differentiable: true,
    }
}

fn down(shape: [usize; 4]) -> Case<'static> {
    let [n, h, w, c] = shape;
    let s = ResampleShape { n, h, w, c };
    Case {
        name: format!("downsample2 {shape:?}"),
        build: Box::new(|g, x, _| downsample2(g, x[0])),
        twin: Box::new(move |a: &Args| Twin {
            y: down_forward(&s, &a.inputs[0]),
            input_grads: vec![down_backward(&s, a.dy)],
            param_grads: vec![],
        }),
        ..up(shape)
    }
}

#[test]
fn odd_sizes_and_single_pixels() {
    for shape in [[3, 17, 13, 33], [2, 8, 8, 32], [1, 1, 1, 1], [3, 1, 1, 4], [1, 1, 70, 5]] {
        up(shape).check();
        let [n, h, w, c] = shape;
        down([n, 2 * h, 2 * w, c]).check();
        if c.is_multiple_of(4) {
            up(shape).check_half();
            down([n, 2 * h, 2 * w, c]).check_half();
        }
    }
}

#[test]
fn folded_dispatches() {
    up([3, 37, 21, 12]).check_on(harness::narrow_device(), |_, v| v);
    down([3, 54, 38, 13]).check_on(harness::narrow_device(), |_, v| v);
}

#[test]
fn more_workgroups_than_one_dimension_holds() {
    // Rows of one pixel and one channel: an invocation each, 64 in a workgroup.
    up([1, 65_536 * 64 + 1, 1, 1]).check_alone();
    down([1, 2 * (65_536 * 64 + 1), 2, 1]).check_alone();
}

#[test]
fn odd_extents_cannot_be_halved() {
    for (h, w) in [(5, 4), (4, 5)] {
        let mut g = Graph::new();
        let x = g.input("x", &[1, h, w, 3], DType::F32);
        let message = downsample2(&mut g, x).unwrap_err().to_string();
        assert!(message.contains(&format!("{h}x{w} pixels cannot be halved")), "{message}");
    }
    let mut g = Graph::new();
    let x = g.input("x", &[4, 4, 3], DType::F32);
    assert!(upsample2(&mut g, x).unwrap_err().to_string().contains("4 extents are needed"));
}
