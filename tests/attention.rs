//! Attention against its CPU twin, both channel orders.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::ops::{AttentionOrder, attention};
use demist::reference::attention as twin;
use forward::{Input, forward};
use harness::*;

fn case(
    n: usize,
    [h, w]: [usize; 2],
    heads: usize,
    d: usize,
    order: AttentionOrder,
) -> Case<'static> {
    let c = heads * d;
    Case {
        name: format!("attention n {n}, {h}x{w}, {heads} heads of {d}, {order:?}"),
        inputs: vec![vec![n, h, w, 3 * c]],
        integers: vec![],
        build: Box::new(move |g, x, _| attention(g, x[0], heads, order)),
        twin: Box::new(move |a| {
            let order = match order {
                AttentionOrder::Legacy => twin::Order::Legacy,
                AttentionOrder::New => twin::Order::New,
            };
            let shape = twin::AttentionShape { n, t: h * w, c, heads, order };
            Twin {
                y: twin::forward(&shape, &a.inputs[0]).y,
                input_grads: vec![twin::backward(&shape, &a.inputs[0], a.dy)],
                param_grads: vec![],
            }
        }),
        tolerance: 1e-5,
        differentiable: true,
    }
}

fn check(n: usize, size: [usize; 2], heads: usize, d: usize, order: AttentionOrder) {
    let case = case(n, size, heads, d, order);
    case.check();
    if (heads * d).is_multiple_of(4) {
        case.check_half();
    }
}

#[test]
fn small_heads_of_both_orders() {
    for order in [AttentionOrder::Legacy, AttentionOrder::New] {
        check(2, [4, 4], 2, 16, order);
        check(3, [7, 5], 3, 32, order);
        check(1, [1, 1], 4, 32, order);
        check(2, [3, 3], 2, 33, order);
        // In half precision heads that are no multiple of 4 run in 32 bits.
        check(2, [3, 3], 4, 18, order);
    }
    check(2, [8, 8], 2, 64, AttentionOrder::New);
}

#[test]
fn large_heads() {
    for (d, order) in [
        (65, AttentionOrder::Legacy),
        (128, AttentionOrder::New),
        (192, AttentionOrder::Legacy),
        (256, AttentionOrder::New),
    ] {
        check(2, [3, 5], 2, d, order);
    }
}

#[test]
fn tiles_for_gpus() {
    case(2, [4, 5], 2, 32, AttentionOrder::Legacy).check_alone_on(parallel_device());
}

#[test]
fn more_tokens_of_a_large_head_than_a_loop_may_turn() {
    // 4096 / 2 keys times 33 blocks of channels: some drivers leave a loop
    // after 65,535 turns. The twin is slow at this size, so keys are equal.
    let (side, d) = (64, 128);
    let mut g = Graph::new();
    let qkv = g.input("qkv", &[1, side, side, 3 * d], DType::F32);
    let y = attention(&mut g, qkv, 1, AttentionOrder::New).unwrap();
    let x = values(5, side * side * 3 * d);
    // A softmax over equal keys is their values' mean, whatever the query.
    let equal: Vec<f32> =
        x.chunks(3 * d).flat_map(|t| [&t[..d], &[0.0; 128], &t[2 * d..]].concat()).collect();
    let mean: Vec<f32> = (0..d)
        .map(|c| {
            equal.iter().skip(2 * d + c).step_by(3 * d).map(|v| f64::from(*v)).sum::<f64>() / 4096.0
        })
        .map(|v| v as f32)
        .collect();
    let flat = forward(&g, None, &[(qkv, Input::F32(&equal))], &[y]).remove(0);
    let worst = flat.chunks(d).map(|row| rel_err(row, &mean)).fold(0.0, f64::max);
    assert!(worst < 1e-4, "{worst:.2e}");
}

#[test]
fn channels_that_do_not_divide_into_heads_are_an_error() {
    let mut g = Graph::new();
    let qkv = g.input("qkv", &[1, 4, 4, 96], DType::F32);
    let message = attention(&mut g, qkv, 5, AttentionOrder::New).unwrap_err().to_string();
    assert!(message.contains("attention") && message.contains('5'), "{message}");
}
