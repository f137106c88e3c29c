//! Cross-entropy and accuracies against their CPU twin: few and thousands of
//! classes, logits far apart, and the gradient that guides sampling.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::ops::cross_entropy;
use demist::reference::cross_entropy as twin;
use forward::{Input, forward, forward_on};
use harness::{Case, Twin, device, subgroup_device};

fn check(labels: Vec<u32>, k: usize, spread: f32, tolerance: f64) {
    let case = Case {
        name: format!("cross_entropy of {} rows of {k} spread {spread}", labels.len()),
        inputs: vec![vec![labels.len(), k]],
        integers: vec![labels],
        build: Box::new(|g, x, i| Ok(cross_entropy(g, x[0], i[0])?.loss)),
        twin: Box::new(|a| {
            let (logits, labels) = (&a.inputs[0], &a.integers[0]);
            Twin {
                y: twin::forward(logits, labels).loss,
                input_grads: vec![twin::backward(logits, labels, a.dy)],
                param_grads: vec![],
            }
        }),
        tolerance,
        differentiable: spread < 10.0,
    };
    for device in [device(), subgroup_device()] {
        case.check_on(device, |_, v| v.iter().map(|v| spread * v).collect());
    }
}

#[test]
fn matches_its_twin() {
    check(vec![0], 1, 1.0, 1e-6);
    check(vec![2, 0, 1], 3, 4.0, 2e-6);
    check((0..5).map(|i| i * 15).collect(), 64, 3.0, 2e-6);
    check((0..200).map(|i| i * 7 % 65).collect(), 65, 3.0, 2e-6);
    check(vec![999, 0, 640, 63], 1000, 5.0, 2e-6);
    check(vec![4095, 17], 5003, 2.0, 2e-6);
}

/// exp of these alone is beyond float32. The softmax inherits the rounding of
/// a loss of several hundred; seen on llvmpipe: 7e-6.
#[test]
fn large_logits_do_not_overflow() {
    check(vec![1, 70, 33], 130, 400.0, 3e-5);
}

#[test]
fn accuracies_count_the_scores_above() {
    let k = 70;
    // Row r ranks class c at (c * 37 + r) mod 70, the highest score first.
    let logits: Vec<f32> =
        (0..8).flat_map(|r| (0..k).map(move |c| -(((c * 37 + r) % k) as f32))).collect();
    for rank in [0, 1, 4, 5, 69] {
        let place = |r: usize| (0..k).find(|c| (c * 37 + r) % k == rank).unwrap() as u32;
        let labels: Vec<u32> = (0..8).map(place).collect();
        let mut g = Graph::new();
        let x = g.input("logits", &[8, k], DType::F32);
        let y = g.input("labels", &[8], DType::U32);
        let out = cross_entropy(&mut g, x, y).unwrap();
        let inputs = [(x, Input::F32(&logits)), (y, Input::U32(&labels))];
        let keep = [out.top1, out.top5];
        let got = forward(&g, None, &inputs, &keep);
        assert_eq!(got, forward_on(subgroup_device(), &g, None, &inputs, &keep), "rank {rank}");
        let want = twin::forward(&logits, &labels);
        assert_eq!(got, [want.top1, want.top5], "rank {rank}");
        assert_eq!(got[0], [f32::from(u8::from(rank < 1)); 8], "rank {rank}");
        assert_eq!(got[1], [f32::from(u8::from(rank < 5)); 8], "rank {rank}");
    }
}

/// Equal scores do not push each other out, and few classes are all in reach.
#[test]
fn ties_and_few_classes() {
    let mut g = Graph::new();
    let x = g.input("logits", &[2, 3], DType::F32);
    let y = g.input("labels", &[2], DType::U32);
    let out = cross_entropy(&mut g, x, y).unwrap();
    let inputs = [(x, Input::F32(&[1.0, 1.0, 1.0, 3.0, 2.0, 1.0])), (y, Input::U32(&[2, 2]))];
    let got = forward(&g, None, &inputs, &[out.loss, out.top1, out.top5]);
    assert!((f64::from(got[0][0]) - 3f64.ln()).abs() < 1e-6);
    assert_eq!(got[1..], [[1.0, 0.0], [1.0, 1.0]]);
}

#[test]
fn impossible_operands_are_errors() {
    let mut g = Graph::new();
    let logits = g.input("logits", &[4, 10], DType::F32);
    let few = g.input("few", &[3], DType::U32);
    let floats = g.input("floats", &[4], DType::F32);
    let labels = g.input("labels", &[4], DType::U32);
    let none = g.input("none", &[4, 0], DType::F32);
    for (logits, labels) in [(logits, few), (logits, floats), (none, labels), (labels, labels)] {
        let error = cross_entropy(&mut g, logits, labels).unwrap_err().to_string();
        assert!(error.starts_with("cross_entropy: "), "{error}");
    }
    assert!(cross_entropy(&mut g, logits, labels).is_ok());
}
