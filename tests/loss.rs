//! The training loss against its CPU twin: equal and surplus channels, odd
//! sizes, images that one workgroup does not cover, many images.

mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::ops::mse;
use demist::reference::loss::{self, LossShape};
use harness::{Case, Twin};

fn check_mse([n, h, w, wide, c]: [usize; 5]) {
    let s = LossShape { n, hw: h * w, c_pred: wide, c_used: c };
    let case = Case {
        name: format!("mse {n}x{h}x{w}, {wide} channels against {c}"),
        inputs: vec![vec![n, h, w, wide], vec![n, h, w, c]],
        integers: vec![],
        build: Box::new(|g, x, _| mse(g, x[0], x[1])),
        twin: Box::new(move |a| {
            let [pred, target] = [&a.inputs[0], &a.inputs[1]];
            let dpred = loss::backward(&s, pred, target, a.dy);
            // The target sees the first channels with the opposite sign.
            let dtarget = dpred
                .chunks(s.c_pred)
                .flat_map(|pixel| pixel[..s.c_used].iter().map(|d| -d))
                .collect();
            Twin {
                y: loss::forward(&s, pred, target, a.dy).mse,
                input_grads: vec![dpred, dtarget],
                param_grads: vec![],
            }
        }),
        tolerance: 2e-6,
        differentiable: true,
    };
    case.check();
    case.check_on(harness::subgroup_device(), |_, v| v);
}

#[test]
fn mse_of_equal_shapes() {
    check_mse([3, 17, 13, 3, 3]);
    check_mse([2, 16, 16, 3, 3]);
    check_mse([1, 1, 1, 1, 1]);
    check_mse([129, 2, 2, 1, 1]);
}

#[test]
fn mse_ignores_further_channels() {
    check_mse([3, 17, 13, 6, 3]);
    check_mse([2, 8, 8, 8, 4]);
    check_mse([5, 3, 1, 7, 2]);
}

/// 96 x 96 x 3 elements are two splits, 131 x 129 x 3 four uneven ones.
#[test]
fn mse_of_large_images() {
    check_mse([3, 96, 96, 3, 3]);
    check_mse([2, 131, 129, 4, 3]);
}

#[test]
fn impossible_shapes_are_errors() {
    let mut g = Graph::new();
    let pred = g.input("pred", &[2, 4, 4, 3], DType::F32);
    for shape in [[2, 4, 4, 6], [2, 4, 5, 3], [3, 4, 4, 3], [2, 4, 4, 0]] {
        let target = g.input("target", &shape, DType::F32);
        let error = mse(&mut g, pred, target).unwrap_err().to_string();
        assert!(error.starts_with("mse: "), "{error}");
    }
    let labels = g.input("labels", &[2, 4, 4, 3], DType::U32);
    assert!(mse(&mut g, pred, labels).is_err());
}
