//! Group norm against its twin: odd sizes, one-channel groups, AdaGN, SiLU,
//! means far above the deviation, split reductions, folded dispatches.

mod harness;

use demist::engine::caps::Caps;
use demist::engine::graph::{DType, Graph, Lower, Plan, PlanOptions};
use demist::engine::ops::{GroupNorm, group_norm};
use demist::reference::group_norm::{GroupNormShape, backward, forward};
use harness::{Args, Case, Twin};

/// x [n, h, w, c] in `groups` groups, with or without emb and SiLU.
fn case(shape: [usize; 4], groups: usize, with_emb: bool, silu: bool) -> Case<'static> {
    let [n, h, w, c] = shape;
    let options = GroupNorm { groups, eps: 1e-5, silu };
    let twin = GroupNormShape { n, hw: h * w, c, groups, eps: f64::from(options.eps), silu };
    let mut inputs = vec![shape.to_vec()];
    if with_emb {
        inputs.push(vec![n, 2 * c]);
    }
    Case {
        name: format!("group_norm {shape:?} groups {groups} emb {with_emb} silu {silu}"),
        inputs,
        integers: vec![],
        build: Box::new(move |g, x, _| group_norm(g, x[0], options, x.get(1).copied())),
        twin: Box::new(move |a: &Args| {
            let emb = with_emb.then(|| &a.inputs[1][..]);
            let (x, gamma, beta) = (&a.inputs[0], &a.params[0], &a.params[1]);
            let grads = backward(&twin, x, gamma, beta, emb, a.dy);
            let mut input_grads = vec![grads.dx];
            input_grads.extend(grads.demb);
            Twin {
                y: forward(&twin, x, gamma, beta, emb).y,
                input_grads,
                param_grads: vec![grads.dgamma, grads.dbeta],
            }
        }),
        tolerance: 1e-5,
        // A group of one value is constant: its differences are rounding.
        differentiable: h * w * c > groups,
    }
}

#[test]
fn plain_and_fused_variants_agree_with_the_twin() {
    for (emb, silu) in [(false, false), (false, true), (true, false), (true, true)] {
        case([3, 17, 13, 33], 3, emb, silu).check();
        case([3, 5, 7, 64], 32, emb, silu).check();
        case([3, 5, 7, 64], 32, emb, silu).check_half();
    }
}

/// Between other nodes, the gradient of y is of no use after that of x is made of it.
#[test]
fn the_gradient_overwrites_the_one_it_is_made_of() {
    use demist::engine::ops::add;
    let double = |v: &[f32]| v.iter().map(|v| 2.0 * v).collect::<Vec<_>>();
    for (channels, silu) in [(33, false), (33, true), (48, true)] {
        let inner = case([2, 6, 5, channels], 3, false, silu);
        let options = GroupNorm { groups: 3, eps: 1e-5, silu };
        let twin = inner.twin;
        let wrapped = Case {
            name: format!("{} between additions", inner.name),
            inputs: inner.inputs,
            integers: vec![],
            build: Box::new(move |g, x, _| {
                let x = add(g, x[0], x[0])?;
                let y = group_norm(g, x, options, None)?;
                add(g, y, y)
            }),
            twin: Box::new(move |a: &Args| {
                let (inputs, dy) = ([double(&a.inputs[0])], double(a.dy));
                let t = twin(&Args { inputs: &inputs, dy: &dy, ..*a });
                Twin { y: double(&t.y), input_grads: vec![double(&t.input_grads[0])], ..t }
            }),
            ..inner
        };
        wrapped.check();
        if channels % 4 == 0 {
            wrapped.check_half();
        }
    }
}

/// At the torso's ends x and y differ in precision.
#[test]
fn into_and_out_of_half_precision() {
    use demist::engine::ops::cast;
    let options = GroupNorm { groups: 8, eps: 1e-5, silu: true };
    let out = Case {
        name: "group_norm out of half".into(),
        build: Box::new(move |g, x, _| {
            g.half = false;
            let y = group_norm(g, x[0], options, Some(x[1]))?;
            assert_eq!(g.dtype(y), DType::F32);
            cast(g, y, DType::F16)
        }),
        ..case([2, 5, 7, 32], 8, true, true)
    };
    out.check_half();
    let into = Case {
        name: "group_norm into half".into(),
        build: Box::new(move |g, x, _| {
            let x0 = cast(g, x[0], DType::F32)?;
            group_norm(g, x0, options, Some(x[1]))
        }),
        ..case([2, 5, 7, 32], 8, true, true)
    };
    into.check_half();
}

#[test]
fn widths_of_groups() {
    // Channels, groups: one-channel groups; 6 (windows of 36 channels, the
    // last one short); 10; a window of one wide group; 65 (no common window
    // for vectors); the widest; a single group of odd width.
    for (c, groups) in
        [(32, 32), (192, 32), (320, 32), (128, 2), (260, 4), (512, 2), (249, 1), (4, 1), (1, 1)]
    {
        case([2, 5, 3, c], groups, true, true).check();
        if c % 4 == 0 {
            case([2, 5, 3, c], groups, true, true).check_half();
        }
    }
}

#[test]
fn one_pixel_images() {
    case([3, 1, 1, 64], 16, true, true).check();
    case([3, 1, 1, 64], 16, true, true).check_half();
    case([3, 1, 1, 33], 11, true, false).check();
    // Groups of one value: dx is the difference of two terms of size rstd =
    // 316 and should be 0, so what the tolerance bounds is their rounding.
    Case { tolerance: 1e-4, ..case([1, 1, 1, 32], 32, false, true) }.check();
}

#[test]
fn vectors_are_images_of_one_pixel() {
    Case { inputs: vec![vec![3, 2048]], ..case([3, 1, 1, 2048], 32, false, true) }.check();
}

#[test]
fn a_mean_far_above_the_deviation() {
    for offset in [100.0, -1000.0] {
        let mut case = case([2, 9, 8, 64], 32, true, true);
        // The step of a finite difference would be of the size of x's rounding.
        case.differentiable = false;
        case.check_on(harness::device(), |input, v| {
            let by = if input == 0 { offset } else { 0.0 };
            v.iter().map(|v| v + by).collect()
        });
    }
}

#[test]
fn an_outlying_first_pixel() {
    let mut case = case([2, 32, 32, 32], 8, false, false);
    case.differentiable = false;
    case.check_on(harness::device(), |_, mut v| {
        v[..32].iter_mut().for_each(|v| *v += 1000.0);
        v
    });
}

#[test]
fn reductions_split_over_workgroups() {
    let device = harness::parallel_device();
    for (shape, groups) in [([1, 40, 27, 33], 3), ([2, 32, 32, 32], 32), ([1, 16, 16, 192], 32)] {
        let case = case(shape, groups, true, true);
        case.check_on(device, |_, v| v);
        if shape[3] % 4 == 0 {
            case.check_half_on(device, |_, v| v);
        }
    }
}

/// Windows of one, two, four and eight quads of channels: the fewer, the more of a
/// subgroup's lanes stand on one channel; the rows do not come out even. Then a
/// last window that is shorter, and windows whose rows no subgroup can merge.
#[test]
fn rows_merged_within_subgroups() {
    let device = harness::subgroup_device();
    let powers = [([3, 17, 13, 4], 2), ([3, 17, 13, 8], 2), ([2, 9, 5, 16], 4), ([2, 9, 7, 32], 8)];
    let short = [([2, 7, 5, 40], 10), ([3, 1, 1, 16], 4), ([1, 40, 27, 3], 3)];
    let others = [([2, 7, 5, 44], 22), ([3, 5, 7, 96], 32), ([2, 5, 3, 256], 1)];
    let split = [([1, 64, 64, 8], 2), ([1, 40, 27, 16], 8), ([1, 131, 67, 4], 4)];
    for (shape, groups) in [&powers[..], &short, &others, &split].concat() {
        let case = case(shape, groups, true, true);
        case.check_on(device, |_, v| v);
        if shape[3] % 4 == 0 {
            case.check_half_on(device, |_, v| v);
        }
    }
    // Means and deviations far apart, and rows without a pixel.
    for (shape, groups) in [([2, 9, 8, 16], 4), ([2, 1, 3, 4], 1)] {
        let mut case = case(shape, groups, true, true);
        case.differentiable = false;
        case.check_on(device, |i, v| {
            v.iter().map(|v| v + if i == 0 { 100.0 } else { 0.0 }).collect()
        });
    }
}

/// Who merges which rows follows from the lanes, so distances are powers of two.
#[test]
fn subgroups_merge_only_rows_a_power_of_two_apart() {
    let merges = |c: usize, groups: usize, subgroups: bool| {
        let mut g = Graph::new();
        let x = g.input("x", &[4, 16, 16, c], DType::F32);
        let options = GroupNorm { groups, ..GroupNorm::g32() };
        let y = group_norm(&mut g, x, options, None).unwrap();
        let mut lower = Lower::new(&g, &Caps { subgroups, ..Caps::default() });
        lower.forward(&g).unwrap();
        let plan = Plan::new(&g, lower, &[y], PlanOptions::default()).unwrap();
        plan.dispatches.iter().any(|d| d.kernel.uses_subgroups(&d.defines))
    };
    for (c, groups) in [(4, 1), (32, 32), (128, 32), (40, 10), (384, 3)] {
        assert!(merges(c, groups, true), "{c} channels in {groups} groups");
        assert!(!merges(c, groups, false), "{c} channels in {groups} groups");
    }
    // 36 channels a window; a last window of three quads; one row a workgroup.
    for (c, groups) in [(192, 32), (44, 22), (256, 1)] {
        assert!(!merges(c, groups, true), "{c} channels in {groups} groups");
    }
}

#[test]
fn many_images_in_folded_dispatches() {
    // Three workgroups an image: more than one dimension holds.
    case([32_768, 1, 1, 96], 3, true, false).check_alone();
    case([47, 3, 3, 12], 3, true, true).check_on(harness::narrow_device(), |_, v| v);
}

#[test]
fn wrong_shapes_are_errors() {
    let message = |shape: &[usize], groups, emb: Option<&[usize]>| {
        let mut g = Graph::new();
        let x = g.input("x", shape, DType::F32);
        let emb = emb.map(|shape| g.input("emb", shape, DType::F32));
        let options = GroupNorm { groups, ..GroupNorm::g32() };
        group_norm(&mut g, x, options, emb).unwrap_err().to_string()
    };
    assert!(message(&[2, 4, 4, 33], 32, None).contains("33 channels cannot be cut into 32"));
    assert!(message(&[2, 4, 4, 32], 0, None).contains("into 0 groups"));
    assert!(message(&[2, 4, 4, 514], 2, None).contains("257 channels, at most 256"));
    assert!(message(&[32_769, 1, 1, 4], 1, None).contains("a batch of 32769 images"));
    assert!(message(&[2, 4, 4], 1, None).contains("4 extents are needed"));
    assert!(message(&[2, 0, 4, 32], 32, None).contains("is empty"));
    assert!(message(&[2, 4, 4, 32], 32, Some(&[2, 32])).contains("[2, 64] is needed"));
    let mut g = Graph::new();
    g.half = true;
    let x = g.input("x", &[2, 4, 4, 33], DType::F32);
    let message = group_norm(&mut g, x, GroupNorm { groups: 3, ..GroupNorm::g32() }, None);
    assert!(message.unwrap_err().to_string().contains("33 channels cannot be stored as half"));
}

#[test]
fn parameters_start_as_the_identity() {
    use demist::engine::graph::Init;
    let mut g = Graph::new();
    let x = g.input("x", &[1, 2, 2, 64], DType::F32);
    g.scope("norm", |g| group_norm(g, x, GroupNorm::g32(), None)).unwrap();
    let found: Vec<_> = g.params.iter().map(|p| (p.name.as_str(), p.init)).collect();
    assert_eq!(found, [("norm.weight", Init::Ones), ("norm.bias", Init::Zeros)]);
}
