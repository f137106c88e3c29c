//! The pooling heads' ops against their twins: channel means, the ends of an
//! attention pool, ReLU.

mod harness;

use demist::engine::graph::{DType, FileLayout, Graph, Init};
use demist::engine::ops::{first_token, mean_features, mean_pool, pool_tokens, relu};
use demist::reference::mean_pool::{self as mean_twin, MeanPoolShape};
use demist::reference::pool_tokens as tokens_twin;
use demist::reference::relu as relu_twin;
use harness::{Args, Case, Twin, narrow_device, parallel_device};

fn shape([n, h, w, c]: [usize; 4]) -> MeanPoolShape {
    MeanPoolShape { n, hw: h * w, c }
}

fn mean(dims: [usize; 4]) -> Case<'static> {
    let s = shape(dims);
    Case {
        name: format!("mean_pool {dims:?}"),
        inputs: vec![dims.to_vec()],
        integers: vec![],
        build: Box::new(|g, x, _| mean_pool(g, x[0])),
        twin: Box::new(move |a: &Args| Twin {
            y: mean_twin::forward(&s, &a.inputs[0]),
            input_grads: vec![mean_twin::backward(&s, a.dy)],
            param_grads: vec![],
        }),
        tolerance: 2e-6,
        differentiable: true,
    }
}

fn features(maps: Vec<[usize; 4]>) -> Case<'static> {
    let n = maps[0][0];
    let build_twin = {
        let maps = maps.clone();
        move |a: &Args| {
            let wide: usize = maps.iter().map(|m| m[3]).sum();
            let mut y = vec![0.0; n * wide];
            let (mut input_grads, mut offset) = (Vec::new(), 0);
            for (map, x) in maps.iter().zip(a.inputs) {
                let (s, c) = (shape(*map), map[3]);
                let means = mean_twin::forward(&s, x);
                let mut dy = Vec::new();
                for image in 0..n {
                    let columns = image * wide + offset..image * wide + offset + c;
                    y[columns.clone()].copy_from_slice(&means[image * c..][..c]);
                    dy.extend_from_slice(&a.dy[columns]);
                }
                input_grads.push(mean_twin::backward(&s, &dy));
                offset += c;
            }
            Twin { y, input_grads, param_grads: vec![] }
        }
    };
    Case {
        name: format!("mean_features {maps:?}"),
        inputs: maps.iter().map(|m| m.to_vec()).collect(),
        build: Box::new(|g, x, _| mean_features(g, x)),
        twin: Box::new(build_twin),
        ..mean(maps[0])
    }
}

fn tokens(dims: [usize; 4]) -> Case<'static> {
    let s = shape(dims);
    Case {
        name: format!("pool_tokens {dims:?}"),
        build: Box::new(|g, x, _| pool_tokens(g, x[0])),
        twin: Box::new(move |a: &Args| {
            let (dx, dpositional) = tokens_twin::backward(&s, a.dy);
            let y = tokens_twin::forward(&s, &a.inputs[0], &a.params[0]);
            Twin { y, input_grads: vec![dx], param_grads: vec![dpositional] }
        }),
        ..mean(dims)
    }
}

fn first([n, h, w, c]: [usize; 4]) -> Case<'static> {
    Case {
        name: format!("first_token {:?}", [n, h, w, c]),
        build: Box::new(|g, x, _| first_token(g, x[0])),
        twin: Box::new(move |a: &Args| Twin {
            y: tokens_twin::first_forward(n, c, &a.inputs[0]),
            input_grads: vec![tokens_twin::first_backward(n, h * w, a.dy)],
            param_grads: vec![],
        }),
        ..mean([n, h, w, c])
    }
}

fn rectified(dims: &[usize]) -> Case<'static> {
    Case {
        name: format!("relu {dims:?}"),
        inputs: vec![dims.to_vec()],
        integers: vec![],
        build: Box::new(|g, x, _| relu(g, x[0])),
        twin: Box::new(|a: &Args| Twin {
            y: relu_twin::forward(&a.inputs[0]),
            input_grads: vec![relu_twin::backward(&a.inputs[0], a.dy)],
            param_grads: vec![],
        }),
        tolerance: 1e-6,
        // A step may cross the kink.
        differentiable: false,
    }
}

const SHAPES: [[usize; 4]; 5] =
    [[3, 17, 13, 33], [2, 8, 8, 64], [1, 1, 1, 1], [3, 1, 1, 4], [2, 5, 7, 130]];

#[test]
fn odd_sizes_and_single_pixels() {
    for dims in SHAPES {
        mean(dims).check();
        tokens(dims).check();
        first(dims).check();
    }
    for dims in [&[3, 7, 33][..], &[2, 2048], &[5], &[1, 4]] {
        rectified(dims).check();
    }
}

#[test]
fn maps_of_several_sizes_side_by_side() {
    features(vec![[3, 16, 16, 32], [3, 8, 8, 64], [3, 4, 4, 64]]).check();
    // No column of the later ones is aligned to vectors.
    features(vec![[2, 5, 3, 7], [2, 1, 1, 8], [2, 9, 9, 40]]).check();
}

#[test]
fn sums_split_over_workgroups() {
    mean([1, 70, 61, 33]).check_on(parallel_device(), |_, v| v);
    features(vec![[2, 64, 64, 32], [2, 32, 32, 36]]).check_on(parallel_device(), |_, v| v);
    // More rows than an invocation may walk.
    mean([1, 1024, 513, 4]).check_alone();
}

#[test]
fn folded_dispatches() {
    let dims = [60, 9, 7, 68];
    mean(dims).check_on(narrow_device(), |_, v| v);
    tokens(dims).check_on(narrow_device(), |_, v| v);
    first(dims).check_on(narrow_device(), |_, v| v);
    rectified(&dims).check_on(narrow_device(), |_, v| v);
}

#[test]
fn wrong_shapes_are_errors() {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 4, 4, 8], DType::F32);
    let other = g.input("other", &[3, 4, 4, 8], DType::F32);
    let flat = g.input("flat", &[2, 8], DType::F32);
    let empty = g.input("empty", &[2, 0, 4, 8], DType::F32);
    for (result, part) in [
        (mean_features(&mut g, &[]), "no map"),
        (mean_features(&mut g, &[x, other]), "among maps of 2 images"),
        (mean_pool(&mut g, flat), "4 extents are needed"),
        (mean_pool(&mut g, empty), "among maps"),
        (pool_tokens(&mut g, flat), "4 extents are needed"),
        (pool_tokens(&mut g, empty), "is empty"),
        (first_token(&mut g, flat), "4 extents are needed"),
        (first_token(&mut g, empty), "is empty"),
    ] {
        let message = result.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[test]
fn the_embedding_has_the_layout_and_size_of_the_reference() {
    let mut g = Graph::new();
    let x = g.input("x", &[1, 2, 3, 64], DType::F32);
    g.scope("out.2", |g| pool_tokens(g, x)).unwrap();
    let p = &g.params[0];
    assert_eq!(p.name, "out.2.positional_embedding");
    assert_eq!((p.file_shape(), p.layout), (vec![64, 7], FileLayout::Linear));
    assert_eq!(p.init, Init::NormalTimes(0.125));
    let values = demist::model::initialise(&g.params, 1).remove(0);
    let rms = (values.iter().map(|v| v * v).sum::<f32>() / values.len() as f32).sqrt();
    assert!((rms - 0.125).abs() < 0.02, "{rms}");
}
