//! Convolution and linear layers against their CPU twins: odd sizes, both
//! strides, stems and heads of three channels, fused additions. The variants
//! for GPUs pass the same cases where their channels allow it.

mod harness;

use demist::engine::caps::{Caps, Coop};
use demist::engine::graph::{DType, FileLayout, Graph, Init, Lower, Plan, PlanOptions, TensorId};
use demist::engine::ops::{self, LinearOptions};
use demist::reference;
use demist::reference::conv2d::Conv2dShape;
use demist::reference::linear::LinearShape;
use harness::{Args, Case, Twin, device, narrow_device, parallel_device};

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

/// Channels in multiples of four: less than a tile and its slabs, several tiles, edges
/// of every extent, both strides, all additions.
fn cases_of_quads() -> Vec<(Shape, bool, bool)> {
    vec![
        (shape(2, [8, 8], [32, 64], 3, 1), false, false),
        (shape(2, [6, 6], [32, 64], 1, 1), false, true),
        (shape(3, [5, 4], [8, 12], 3, 1), true, true),
        (shape(2, [6, 5], [4, 8], 3, 2), true, false),
        (shape(2, [1, 6], [4, 12], 3, 2), false, false),
        (shape(1, [5, 9], [36, 72], 1, 1), true, true),
        (shape(2, [9, 15], [68, 20], 3, 1), false, true),
        (shape(2, [16, 16], [16, 132], 3, 2), false, false),
    ]
}

/// 48 tiles of pixels: a launch folded to two dimensions has workgroups without any.
const FOLDED: Shape = shape(3, [32, 32], [4, 8], 3, 1);

/// `candidate` for the direct products, and no Winograd before.
fn direct(s: Shape, candidate: &'static str) -> Vec<(&'static str, &'static str)> {
    let mut forced = vec![("conv2d", candidate), ("conv2d_dx", candidate)];
    if (s.kernel, s.stride) == (3, 1) {
        forced.extend([("conv3x3", "direct"), ("conv3x3_dx", "direct")]);
    }
    forced
}

/// The same with several workgroups to a tile.
fn direct_split(
    s: Shape,
    candidate: &'static str,
    split: &'static str,
) -> Vec<(&'static str, &'static str)> {
    [direct(s, candidate), vec![("conv2d_split", split)]].concat()
}

#[test]
fn staged_convolutions() {
    for candidate in ["staged64x64", "staged128x64"] {
        for (s, emb, residual) in cases_of_quads() {
            let case = conv_case(s, emb, residual);
            case.check_forced(&direct(s, candidate), false);
            case.check_forced(&direct(s, candidate), true);
        }
    }
    let folded = conv_case(FOLDED, true, true);
    folded.check_forced_on(narrow_device(), &direct(FOLDED, "staged64x64"), false);
    for split in ["split3", "split9"] {
        for (s, emb, residual) in cases_of_quads().into_iter().filter(|(s, ..)| s.kernel == 3) {
            let case = conv_case(s, emb, residual);
            case.check_forced(&direct_split(s, "staged64x64", split), false);
            case.check_forced(&direct_split(s, "staged128x64", split), true);
        }
        let forced = direct_split(FOLDED, "staged64x64", split);
        folded.check_forced_on(narrow_device(), &forced, false);
    }
    let linear = linear_case([70, 48, 68], |g, x| ops::linear(g, x, 68));
    linear.check_forced(&[("conv2d", "staged64x64"), ("conv2d_dx", "staged128x64")], false);
}

#[test]
fn staged_products_of_winograds_filters() {
    for filter in ["winograd2", "winograd4"] {
        for product in ["staged64x64", "staged128x64"] {
            for s in [
                shape(2, [8, 8], [32, 64], 3, 1),
                shape(3, [5, 4], [8, 12], 3, 1),
                shape(2, [33, 18], [68, 20], 3, 1),
            ] {
                let forced = [
                    ("conv3x3", filter),
                    ("conv3x3_dx", filter),
                    ("conv3x3_dw", filter),
                    ("gemm", product),
                    ("gemm_dx", product),
                    ("gemm_dw", "staged64x64"),
                ];
                let case = conv_case(s, true, true);
                case.check_forced(&forced, false);
                case.check_forced(&forced, true);
            }
        }
    }
}

/// Runs on what the device offers. Where the environment variable DEMIST_EXPECT_COOP
/// is 1 that must be something; elsewhere a device without cooperative matrices must
/// refuse them.
#[test]
fn convolutions_on_cooperative_matrices() {
    let (gpu, _) = device();
    let s = shape(2, [8, 8], [32, 64], 3, 1);
    let Some(coop) = gpu.caps.coop else {
        let expected = std::env::var("DEMIST_EXPECT_COOP").is_ok_and(|v| v == "1");
        assert!(!expected, "DEMIST_EXPECT_COOP=1, but {} has no cooperative matrices", gpu.summary);
        eprintln!("{} has no cooperative matrices of halves with 32-bit sums", gpu.summary);
        for candidate in ["coop8x8", "coop16x16"] {
            assert_refused(&gpu.caps, s, true, candidate);
        }
        return;
    };
    let sizes = [("coop8x8", coop.size8), ("coop16x16", coop.size16)];
    for (candidate, offered) in sizes {
        if !offered {
            assert_refused(&gpu.caps, s, true, candidate);
            continue;
        }
        // 32-bit operands would have to be rounded.
        assert_refused(&gpu.caps, s, false, candidate);
        for (s, emb, residual) in cases_of_quads() {
            let case = conv_case(s, emb, residual);
            case.check_forced(&direct(s, candidate), true);
            if s.kernel == 3 {
                case.check_forced(&direct_split(s, candidate, "split3"), true);
                case.check_forced(&direct_split(s, candidate, "split9"), true);
            }
        }
        let folded = conv_case(FOLDED, true, true);
        folded.check_forced_on(narrow_device(), &direct(FOLDED, candidate), true);
        let split = direct_split(FOLDED, candidate, "split9");
        folded.check_forced_on(narrow_device(), &split, true);
    }
}

/// The plan of a convolution alone, forward.
fn plan(
    caps: &Caps,
    s: Shape,
    half: bool,
    forced: &[(&'static str, &'static str)],
) -> demist::Result<Plan> {
    let mut g = Graph::new();
    g.half = half;
    let mut x = g.input("x", &[s.n, s.h, s.w, s.cin], DType::F32);
    if half {
        x = ops::cast(&mut g, x, DType::F16)?;
    }
    let options = ops::Conv2d { kernel: s.kernel, stride: s.stride, ..ops::Conv2d::k3(s.cout) };
    let y = ops::conv2d(&mut g, x, options, None, None)?;
    let mut lower = Lower::new(&g, caps);
    forced.iter().for_each(|(op, candidate)| lower.force(op, candidate));
    lower.forward(&g)?;
    Plan::new(&g, lower, &[y], PlanOptions::default())
}

fn assert_refused(caps: &Caps, s: Shape, half: bool, candidate: &'static str) {
    let refused = plan(caps, s, half, &direct(s, candidate));
    let message = refused.map(|_| ()).expect_err("a variant that is not there").to_string();
    assert!(message.contains(candidate) && message.contains("conv2d"), "{message}");
}

/// What a GPU and a software driver take by rule.
#[test]
fn rules_of_staged_and_cooperative_variants() {
    let coop = |size8, size16| Some(Coop { size8, size16, subgroup: 32 });
    let gpu = Caps { max_binding: 1 << 30, max_buffer: 1 << 30, ..Caps::default() };
    let software = Caps { software: true, coop: coop(true, true), ..gpu.clone() };
    let both = Caps { coop: coop(true, true), ..gpu.clone() };
    let small = Caps { coop: coop(true, false), ..gpu.clone() };
    let taken = |caps: &Caps, s: Shape, half: bool, op: &str| {
        let plan = plan(caps, s, half, &[]).unwrap();
        plan.choices.iter().find(|c| c.op == op).map(|c| c.name())
    };
    let one = shape(1, [16, 16], [64, 64], 1, 1);
    let many = shape(16, [32, 32], [64, 64], 1, 1);
    let three = shape(4, [32, 32], [128, 128], 3, 1);
    assert_eq!(taken(&gpu, one, false, "conv2d"), Some("staged64x64"));
    assert_eq!(taken(&gpu, many, false, "conv2d"), Some("staged128x64"));
    assert_eq!(taken(&gpu, shape(1, [7, 9], [64, 64], 1, 1), false, "conv2d"), Some("tile4x4"));
    assert_eq!(taken(&software, many, true, "conv2d"), Some("tile16x8"));
    assert_eq!(taken(&both, many, true, "conv2d"), Some("coop16x16"));
    assert_eq!(taken(&small, many, true, "conv2d"), Some("coop8x8"));
    assert_eq!(taken(&both, many, false, "conv2d"), Some("staged128x64"));
    assert_eq!(taken(&gpu, three, true, "conv3x3"), Some("winograd4"));
    assert_eq!(taken(&gpu, three, true, "gemm"), Some("staged128x64"));
    assert_eq!(taken(&both, three, true, "conv3x3"), Some("direct"));
    assert_eq!(taken(&both, three, true, "conv2d"), Some("coop16x16"));
    assert_eq!(taken(&both, three, false, "conv3x3"), Some("winograd4"));
    assert_eq!(taken(&software, three, true, "conv3x3"), Some("winograd4"));
    // 8, 128 and 256 tiles.
    let deep = shape(1, [8, 8], [512, 512], 3, 1);
    assert_eq!(taken(&gpu, deep, false, "conv2d"), Some("staged64x64"));
    assert_eq!(taken(&gpu, deep, false, "conv2d_split"), Some("split9"));
    assert_eq!(taken(&both, deep, true, "conv2d_split"), Some("split9"));
    let middle = |cout| shape(1, [31, 31], [1024, cout], 3, 1);
    assert_eq!(taken(&gpu, middle(1024), false, "conv2d_split"), Some("split3"));
    assert_eq!(taken(&gpu, middle(2048), false, "conv2d_split"), Some("whole"));
    assert_eq!(taken(&gpu, one, false, "conv2d_split"), None);
    assert_eq!(taken(&software, deep, false, "conv2d_split"), None);
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
    // Deeper than uniform loads can count.
    for (n, cin, cout) in [(3, 1030, 5), (33, 4100, 8)] {
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
