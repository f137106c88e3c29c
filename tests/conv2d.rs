//! Convolution and linear layers against their CPU twins: odd sizes, both
//! strides, stems and heads of three channels, fused additions.

mod harness;

use demist::graph::{DType, FileLayout, Graph, Init, TensorId};
use demist::ops::{self, LinearOptions};
use demist::reference;
use demist::reference::conv2d::Conv2dShape;
use demist::reference::linear::LinearShape;
use harness::{Args, Case, Twin, parallel_device};

#[derive(Clone, Copy)]
struct Shape {
    n: usize,
    h: usize,
    w: usize,
    cin: usize,
    cout: usize,
    kernel: usize,
    stride: usize,
}

const fn shape(
    n: usize,
    [h, w]: [usize; 2],
    [cin, cout]: [usize; 2],
    kernel: usize,
    stride: usize,
) -> Shape {
    Shape { n, h, w, cin, cout, kernel, stride }
}

fn conv_twin(s: Shape, emb: bool, residual: bool, a: &Args) -> Twin {
    let Shape { n, h, w, cin, cout, kernel, stride } = s;
    let r = Conv2dShape { n, h, w, cin, cout, kernel, stride, pad: kernel / 2 };
    let (weight, bias) = (&a.params[0], &a.params[1]);
    let e = emb.then(|| a.inputs[1].as_slice());
    let res = residual.then(|| a.inputs[1 + usize::from(emb)].as_slice());
    let mut input_grads = vec![reference::conv2d::backward_x(&r, a.dy, weight)];
    if emb {
        input_grads.push(reference::conv2d::backward_emb(&r, a.dy));
    }
    if residual {
        input_grads.push(a.dy.to_vec());
    }
    Twin {
        y: reference::conv2d::forward(&r, &a.inputs[0], weight, Some(bias), res, e),
        input_grads,
        param_grads: vec![
            reference::conv2d::backward_weight(&r, &a.inputs[0], a.dy),
            reference::conv2d::backward_bias(&r, a.dy),
        ],
    }
}

fn conv_case(s: Shape, emb: bool, residual: bool) -> Case<'static> {
    let (oh, ow) = ((s.h - 1) / s.stride + 1, (s.w - 1) / s.stride + 1);
    let mut inputs = vec![vec![s.n, s.h, s.w, s.cin]];
    if emb {
        inputs.push(vec![s.n, s.cout]);
    }
    if residual {
        inputs.push(vec![s.n, oh, ow, s.cout]);
    }
    Case {
        name: format!(
            "conv2d {}x{}x{} {}->{} {}x{} stride {} emb {emb} residual {residual}",
            s.n, s.h, s.w, s.cin, s.cout, s.kernel, s.kernel, s.stride
        ),
        inputs,
        integers: vec![],
        build: Box::new(move |g, x, _| {
            let options =
                ops::Conv2d { kernel: s.kernel, stride: s.stride, ..ops::Conv2d::k3(s.cout) };
            let e = emb.then(|| x[1]);
            let r = residual.then(|| x[1 + usize::from(emb)]);
            ops::conv2d(g, x[0], options, e, r)
        }),
        twin: Box::new(move |a| conv_twin(s, emb, residual, a)),
        tolerance: 1e-5,
        differentiable: true,
    }
}

/// Also in half precision, where x is half or, with odd channels, a stem's.
fn check_conv(s: Shape, emb: bool, residual: bool) {
    let case = conv_case(s, emb, residual);
    case.check();
    if s.cout.is_multiple_of(4) {
        case.check_half();
    }
}

#[test]
fn conv2d_of_odd_sizes() {
    for s in [
        shape(3, [17, 13], [33, 5], 3, 1),
        shape(1, [1, 1], [1, 1], 3, 1),
        shape(2, [7, 5], [3, 32], 3, 2),
        shape(1, [5, 9], [6, 7], 1, 1),
        shape(2, [1, 6], [4, 12], 3, 2),
    ] {
        check_conv(s, false, false);
    }
}

#[test]
fn conv2d_of_network_sizes() {
    for s in [
        shape(2, [8, 8], [32, 64], 3, 1),
        shape(2, [8, 8], [3, 32], 3, 1),
        shape(2, [8, 8], [32, 3], 3, 1),
        shape(2, [8, 8], [32, 6], 3, 1),
        shape(2, [16, 16], [16, 32], 3, 2),
        shape(2, [6, 6], [32, 64], 1, 1),
        // Enough pixels for the largest tile.
        shape(2, [32, 32], [16, 16], 3, 1),
    ] {
        check_conv(s, false, false);
    }
}

#[test]
fn conv2d_with_fused_additions() {
    for s in [
        shape(3, [5, 4], [8, 12], 3, 1),
        shape(2, [3, 3], [3, 5], 3, 1),
        shape(2, [6, 5], [4, 8], 3, 2),
    ] {
        for (emb, residual) in [(true, false), (false, true), (true, true)] {
            check_conv(s, emb, residual);
        }
    }
}

#[test]
fn tiles_for_gpus() {
    for s in [shape(2, [16, 16], [32, 64], 3, 1), shape(2, [5, 7], [6, 9], 3, 2)] {
        conv_case(s, true, true).check_alone_on(parallel_device());
    }
    conv_case(shape(2, [16, 16], [32, 64], 3, 1), true, true)
        .check_half_on(parallel_device(), |_, v| v);
}

#[test]
fn sums_over_more_pixels_than_a_loop_may_turn() {
    // 147,456 pixels: some drivers leave a loop after 65,535 turns.
    let s = shape(1, [384, 384], [1, 4], 1, 1);
    check_conv(s, true, false);
}

/// A linear layer against its twin.
fn linear_case(
    [n, cin, cout]: [usize; 3],
    build: impl Fn(&mut Graph, TensorId) -> demist::Result<TensorId> + 'static,
) -> Case<'static> {
    let s = LinearShape { n, cin, cout };
    Case {
        name: format!("linear {n} {cin}->{cout}"),
        inputs: vec![vec![n, cin]],
        integers: vec![],
        build: Box::new(move |g, x, _| build(g, x[0])),
        twin: Box::new(move |a| {
            let (weight, bias) = (&a.params[0], &a.params[1]);
            Twin {
                y: reference::linear::forward(&s, &a.inputs[0], weight, Some(bias)),
                input_grads: vec![reference::linear::backward_x(&s, a.dy, weight)],
                param_grads: vec![
                    reference::linear::backward_weight(&s, &a.inputs[0], a.dy),
                    reference::linear::backward_bias(&s, a.dy),
                ],
            }
        }),
        tolerance: 1e-5,
        differentiable: true,
    }
}

#[test]
fn linear_layers() {
    for (n, cin, cout) in [(1, 1, 1), (3, 33, 7), (16, 32, 128), (2, 128, 256), (5, 12, 20)] {
        linear_case([n, cin, cout], move |g, x| ops::linear(g, x, cout)).check();
    }
}

#[test]
fn linear_layers_stored_as_convolutions() {
    for (layout, file_shape) in [
        (FileLayout::Linear, vec![7, 12]),
        (FileLayout::Conv1d, vec![7, 12, 1]),
        (FileLayout::Conv2d, vec![7, 12, 1, 1]),
    ] {
        let options = LinearOptions { outputs: 7, layout, zeroed: true };
        linear_case([3, 12, 7], move |g, x| ops::linear_with(g, x, options)).check();
        let mut g = Graph::new();
        let x = g.input("x", &[3, 12], DType::F32);
        ops::linear_with(&mut g, x, options).unwrap();
        assert_eq!(g.params[0].file_shape(), file_shape);
        assert_eq!(g.params.iter().map(|p| p.init).collect::<Vec<_>>(), [Init::Zeros; 2]);
        // Output 1 of input 2 is row 1 of the file and column 1 of the device.
        let mut file = vec![0.0; 84];
        file[12 + 2] = 1.0;
        assert_eq!(g.params[0].to_device(&file)[2 * 7 + 1], 1.0);
    }
}

#[test]
fn wrong_shapes_are_errors_that_name_the_op() {
    let mut g = Graph::new();
    let x = g.input("x", &[1, 4, 4, 8], DType::F32);
    let e = g.input("e", &[1, 5], DType::F32);
    let message =
        ops::conv2d(&mut g, x, ops::Conv2d::k3(4), Some(e), None).unwrap_err().to_string();
    assert!(message.contains("conv2d") && message.contains("[1, 5]"), "{message}");
    let flat = g.input("flat", &[4, 4], DType::F32);
    assert!(ops::conv2d(&mut g, flat, ops::Conv2d::k3(4), None, None).is_err());
    let five = ops::Conv2d { kernel: 5, ..ops::Conv2d::k3(4) };
    assert!(ops::conv2d(&mut g, x, five, None, None).is_err());
    assert!(ops::linear(&mut g, x, 3).is_err());
}
