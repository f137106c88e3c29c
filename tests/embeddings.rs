//! Timestep and label embeddings, and dropout, against their CPU twins.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::{ops, rng};
use demist::reference;
use demist::reference::label_embedding::LabelEmbeddingShape;
use forward::{Input, forward};
use harness::{Case, Twin};

#[test]
fn timestep_embedding_is_accurate_for_large_and_fractional_steps() {
    let t = [0.0f32, 1.0, 17.5, 249.75, 999.0, 3999.25];
    for dim in [2, 32, 33, 128, 256] {
        let mut g = Graph::new();
        let id = g.input("t", &[t.len()], DType::F32);
        let y = ops::timestep_embedding(&mut g, id, dim).unwrap();
        let got = forward(&g, None, &[(id, Input::F32(&t))], &[y]).remove(0);
        let worst = |want: &[f64]| {
            got.iter().zip(want).map(|(a, b)| (f64::from(*a) - b).abs()).fold(0.0, f64::max)
        };
        // Against the exact embedding, the rounding of f and of t f to float32
        // is left: up to half an ulp of 3999 each.
        let exact = worst(&reference::timestep_embedding::forward(&t.map(f64::from), dim));
        assert!(exact < 6e-4, "dim {dim}: {exact:.2e}");
        let rounded = worst(&rounded_embedding(&t, dim));
        // Seen on llvmpipe: 2e-6, or 2e-4 where a frequency rounds the other
        // way, by one ulp.
        assert!(rounded < 3e-4, "dim {dim}: {rounded:.2e}");
    }
}

/// The embedding with frequencies and angles rounded to float32, as networks
/// were trained with.
fn rounded_embedding(t: &[f32], dim: usize) -> Vec<f64> {
    let half = dim / 2;
    let angle = |t: f32, i: usize| f64::from(t * 10_000f64.powf(-(i as f64) / half as f64) as f32);
    let mut y = Vec::new();
    for t in t {
        y.extend((0..half).map(|i| angle(*t, i).cos()));
        y.extend((0..half).map(|i| angle(*t, i).sin()));
        y.resize(y.len().next_multiple_of(dim), 0.0);
    }
    y
}

#[test]
fn timestep_embedding_refuses_impossible_widths() {
    let mut g = Graph::new();
    let t = g.input("t", &[3], DType::F32);
    assert!(ops::timestep_embedding(&mut g, t, 1).is_err());
    assert!(ops::timestep_embedding(&mut g, t, 10_000).is_err());
}

#[test]
fn label_embedding_gathers_and_scatters() {
    for (labels, classes, dim) in [
        (vec![0u32], 1, 1),
        (vec![2, 0, 2, 2], 5, 33),
        ((0..40).map(|i| i * 7 % 10).collect(), 10, 128),
    ] {
        let shape = LabelEmbeddingShape { n: labels.len(), classes, dim };
        Case {
            name: format!("label_embedding {labels:?} of {classes} x {dim}"),
            inputs: vec![],
            integers: vec![labels],
            build: Box::new(move |g, _, i| ops::label_embedding(g, i[0], classes, dim)),
            twin: Box::new(move |a| Twin {
                y: reference::label_embedding::forward(&shape, &a.params[0], &a.integers[0]),
                input_grads: vec![],
                param_grads: vec![reference::label_embedding::backward(
                    &shape,
                    &a.integers[0],
                    a.dy,
                )],
            }),
            tolerance: 1e-6,
            differentiable: true,
        }
        .check();
    }
}

const SEED: u64 = 0x1234_5678_9abc_def0;
const STEP: u32 = 11;

/// Random words of `images` images of `len` elements from number `first`.
fn bits(node: u16, first: u32, images: u32, len: u32) -> Vec<u32> {
    let stream = rng::dropout_stream(node);
    let words = |image| (0..len).map(move |e| rng::word(SEED, STEP, stream, first + image, e));
    (0..images).flat_map(words).collect()
}

#[test]
fn dropout_masks_are_those_of_the_host() {
    let [lo, hi] = rng::key(SEED);
    for (shape, p) in
        [(vec![3, 17, 13, 33], 0.3f32), (vec![2, 4, 4, 8], 0.9), (vec![1, 1, 1, 1], 0.5)]
    {
        let (n, len) = (shape[0] as u32, shape[1..].iter().product::<usize>() as u32);
        let inputs = vec![shape.clone()];
        let case = Case {
            name: format!("dropout {shape:?} {p}"),
            inputs,
            integers: vec![vec![lo, hi, STEP, 40]],
            build: Box::new(move |g, x, i| ops::dropout(g, x[0], p, i[0])),
            twin: Box::new(move |a| {
                let mask = bits(a.node, 40, n, len);
                Twin {
                    y: reference::dropout::forward(&a.inputs[0], &mask, p),
                    input_grads: vec![reference::dropout::backward(a.dy, &mask, p)],
                    param_grads: vec![],
                }
            }),
            tolerance: 1e-6,
            differentiable: true,
        };
        case.check();
        if shape[3].is_multiple_of(4) {
            case.check_half();
        }
    }
}

#[test]
fn dropout_does_not_depend_on_the_batch_split() {
    let run = |images: usize, first: u32, x: &[f32]| {
        let mut g = Graph::new();
        let id = g.input("x", &[images, 5, 3, 7], DType::F32);
        let state = g.input("rng", &[4], DType::U32);
        let y = ops::dropout(&mut g, id, 0.4, state).unwrap();
        let [lo, hi] = rng::key(SEED);
        let inputs = [(id, Input::F32(x)), (state, Input::U32(&[lo, hi, STEP, first]))];
        forward(&g, None, &inputs, &[y]).remove(0)
    };
    let x = harness::values(3, 4 * 105);
    let whole = run(4, 100, &x);
    let halves = [run(2, 100, &x[..210]), run(2, 102, &x[210..])].concat();
    assert_eq!(whole, halves);
    let kept = whole.iter().filter(|v| **v != 0.0).count() as f64 / whole.len() as f64;
    assert!((kept - 0.6).abs() < 0.1, "kept {kept}");
}

#[test]
fn dropout_of_nothing_is_the_tensor_itself() {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 8], DType::F32);
    let state = g.input("rng", &[4], DType::U32);
    assert_eq!(ops::dropout(&mut g, x, 0.0, state).unwrap(), x);
    assert!(ops::dropout(&mut g, x, 1.0, state).is_err());
    assert!(g.nodes.is_empty());
}
