//! Conversion to half and back: rounding, the ends of the range, tensors whose
//! type does not suit an op.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::engine::graph::{DType, Graph, TensorId};
use demist::engine::ops;
use demist::reference::cast as twin;
use forward::{Input, forward};
use harness::{Case, Twin};

/// x, as half, as float again.
fn there_and_back(x: &[f32]) -> Vec<f32> {
    let mut g = Graph::new();
    let id = g.input("x", &[x.len()], DType::F32);
    let h = ops::cast(&mut g, id, DType::F16).unwrap();
    let y = ops::cast(&mut g, h, DType::F32).unwrap();
    let mut both = forward(&g, None, &[(id, Input::F32(x))], &[h, y]);
    let y = both.pop().unwrap();
    assert_eq!(y, both[0], "reading halves and widening them agree");
    y
}

#[test]
fn results_are_the_nearest_halves() {
    // Every exponent of normal halves, ties, and both signs.
    let mut x = harness::values(1, 4096);
    for (i, v) in x.iter_mut().enumerate() {
        *v *= 2f32.powi(i as i32 % 30 - 13);
    }
    x.extend([1.0 + 0.5f32.powi(11), 1.0 + 3.0 * 0.5f32.powi(11), -1.0 - 0.5f32.powi(11), 0.0]);
    x.extend([65504.0, 65519.99, -65519.99, 6.104e-5]);
    assert_eq!(there_and_back(&x), twin::forward(&x));
}

#[test]
fn what_half_cannot_hold_becomes_infinite() {
    let x = [65520.0, -65520.0, 1e6, 3.4e38, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, -f32::NAN];
    let y = there_and_back(&x);
    assert!(y.iter().all(|v| v.is_infinite()), "{y:?}");
    assert!(y[0] > 0.0 && y[1] < 0.0 && y[4] > 0.0 && y[5] < 0.0);
}

#[test]
fn small_values_are_near() {
    // Subnormal halves are multiples of 2^-24; a device may flush them to zero.
    let x: Vec<f32> = harness::values(2, 256).iter().map(|v| v * 6e-5).collect();
    for (x, y) in x.iter().zip(there_and_back(&x)) {
        assert!(y == 0.0 || (x - y).abs() <= 0.5f32.powi(24), "{x:e} became {y:e}");
    }
}

#[test]
fn gradients_pass_through() {
    // The harness casts x and y; between them lies the identity.
    let case = |shape: Vec<usize>| Case {
        name: format!("cast {shape:?}"),
        inputs: vec![shape],
        integers: vec![],
        build: Box::new(|g, x, _| {
            let wide = ops::cast(g, x[0], DType::F32)?;
            let dtype = g.dtype(x[0]);
            ops::cast(g, wide, dtype)
        }),
        twin: Box::new(|a| Twin {
            y: twin::forward(&a.inputs[0]),
            input_grads: vec![twin::backward(a.dy)],
            param_grads: vec![],
        }),
        tolerance: 1e-6,
        differentiable: true,
    };
    case(vec![3, 17, 13, 12]).check_half();
    case(vec![1, 1, 1, 4]).check_half();
    case(vec![47, 9, 9, 4]).check_half_on(harness::narrow_device(), |_, v| v);
}

#[test]
fn tensors_of_the_wrong_type_are_errors_that_name_it() {
    let mut g = Graph::new();
    let x = g.input("picture", &[1, 4, 4, 8], DType::F16);
    let wide = g.input("wide", &[1, 4, 4, 8], DType::F32);
    let odd = g.input("odd", &[1, 4, 4, 3], DType::F32);
    let labels = g.input("labels", &[4], DType::U32);
    let mut refused = |build: &mut dyn FnMut(&mut Graph) -> demist::Result<TensorId>| {
        build(&mut g).unwrap_err().to_string()
    };
    let message = refused(&mut |g| ops::cast(g, odd, DType::F16));
    assert!(message.contains("[1, 4, 4, 3]"), "{message}");
    assert!(refused(&mut |g| ops::cast(g, labels, DType::F32)).contains("U32"));
    let message = refused(&mut |g| ops::add(g, x, wide));
    assert!(message.contains("picture is F16") && message.contains("wide is F32"), "{message}");
    let conv = ops::Conv2d::k3(8);
    assert!(refused(&mut |g| ops::conv2d(g, x, conv, None, None)).contains("cast x"));
    g.half = true;
    let mut refused = |build: &mut dyn FnMut(&mut Graph) -> demist::Result<TensorId>| {
        build(&mut g).unwrap_err().to_string()
    };
    let message = refused(&mut |g| ops::conv2d(g, x, ops::Conv2d::k3(6), None, None));
    assert!(message.contains("6 channels cannot be stored as half"), "{message}");
    let message = refused(&mut |g| ops::conv2d(g, x, conv, None, Some(wide)));
    assert!(message.contains("residual is F32"), "{message}");
}

/// An op that knows 32 bits only, given halves: refused when it is lowered.
#[test]
fn kernels_do_not_misread_halves() {
    let mut g = Graph::new();
    let x = g.input("picture", &[1, 4, 4, 4], DType::F16);
    let goal = g.input("goal", &[1, 4, 4, 4], DType::F32);
    ops::mse(&mut g, x, goal).unwrap();
    let caps = demist::engine::caps::Caps::default();
    let mut lower = demist::engine::graph::Lower::new(&g, &caps);
    let message = lower.forward(&g).unwrap_err().to_string();
    assert!(message.contains("mse") && message.contains("picture is F16"), "{message}");
}
