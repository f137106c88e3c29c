//! Concatenation of channels against its twin.

mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::ops::{add, concat};
use demist::reference::concat::{ConcatShape, backward, forward};
use harness::{Args, Case, Twin};

fn case(n: usize, h: usize, w: usize, ca: usize, cb: usize) -> Case<'static> {
    let s = ConcatShape { n, hw: h * w, ca, cb };
    Case {
        name: format!("concat {n}x{h}x{w} {ca} + {cb}"),
        inputs: vec![vec![n, h, w, ca], vec![n, h, w, cb]],
        integers: vec![],
        build: Box::new(|g, x, _| concat(g, x[0], x[1])),
        twin: Box::new(move |a: &Args| {
            let (da, db) = backward(&s, a.dy);
            Twin {
                y: forward(&s, &a.inputs[0], &a.inputs[1]),
                input_grads: vec![da, db],
                param_grads: vec![],
            }
        }),
        tolerance: 1e-6,
        differentiable: true,
    }
}

#[test]
fn odd_and_even_channels() {
    for (ca, cb) in [(33, 5), (32, 64), (4, 3), (3, 4), (1, 1)] {
        case(3, 17, 13, ca, cb).check();
        case(1, 1, 1, ca, cb).check();
    }
    case(3, 17, 13, 32, 64).check_half();
    case(1, 1, 1, 4, 12).check_half();
}

#[test]
fn folded_dispatches() {
    case(3, 29, 31, 12, 20).check_on(harness::narrow_device(), |_, v| v);
}

#[test]
fn more_workgroups_than_one_dimension_holds() {
    // On a GPU an invocation owns four pixels of a or of b.
    case(1, 1, 65_536 * 128 + 4, 1, 1).check_alone_on(harness::parallel_device());
}

/// concat(a, a), and concat(a, b) where only b has another consumer: the two
/// halves of dy then go to one gradient, or accumulate on one side only.
#[test]
fn gradients_that_meet() {
    let (n, h, w, c) = (2, 3, 5, 8);
    let s = ConcatShape { n, hw: h * w, ca: c, cb: c };
    let base = case(n, h, w, c, c);
    let itself = Case {
        name: "concat of a tensor with itself".into(),
        inputs: vec![vec![n, h, w, c]],
        build: Box::new(|g, x, _| concat(g, x[0], x[0])),
        twin: Box::new(move |a: &Args| {
            let (da, db) = backward(&s, a.dy);
            let sum = da.iter().zip(&db).map(|(a, b)| a + b).collect();
            Twin {
                y: forward(&s, &a.inputs[0], &a.inputs[0]),
                input_grads: vec![sum],
                param_grads: vec![],
            }
        }),
        ..case(n, h, w, c, c)
    };
    let beside = Case {
        name: "concat beside another consumer".into(),
        // y = [a, b] + [b, b]; the second node is walked first.
        build: Box::new(|g, x, _| {
            let first = concat(g, x[0], x[1])?;
            let second = concat(g, x[1], x[1])?;
            add(g, first, second)
        }),
        twin: Box::new(move |a: &Args| {
            let (da, db) = backward(&s, a.dy);
            let y = forward(&s, &a.inputs[0], &a.inputs[1]);
            let yy = forward(&s, &a.inputs[1], &a.inputs[1]);
            Twin {
                y: y.iter().zip(&yy).map(|(a, b)| a + b).collect(),
                input_grads: vec![
                    da.clone(),
                    da.iter().zip(&db).map(|(a, b)| a + 2.0 * b).collect(),
                ],
                param_grads: vec![],
            }
        }),
        ..base
    };
    for case in [itself, beside] {
        case.check();
        case.check_half();
    }
}

#[test]
fn other_extents_must_match() {
    let mut g = Graph::new();
    let a = g.input("a", &[1, 4, 4, 3], DType::F32);
    let b = g.input("b", &[1, 4, 5, 3], DType::F32);
    let message = concat(&mut g, a, b).unwrap_err().to_string();
    assert!(message.contains("differ in more than channels"), "{message}");
}
