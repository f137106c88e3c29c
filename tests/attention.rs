//! Attention against its CPU twin, both channel orders.

mod harness;

use demist::ops::{AttentionOrder, attention};
use demist::reference::attention as twin;
use harness::*;

fn check(n: usize, [h, w]: [usize; 2], heads: usize, d: usize, order: AttentionOrder) {
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
    .check();
}

#[test]
fn small_heads_of_both_orders() {
    for order in [AttentionOrder::Legacy, AttentionOrder::New] {
        check(2, [4, 4], 2, 16, order);
        check(3, [7, 5], 3, 32, order);
        check(1, [1, 1], 4, 32, order);
        check(2, [3, 3], 2, 33, order);
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
fn channels_that_do_not_divide_into_heads_are_an_error() {
    let mut g = demist::graph::Graph::new();
    let qkv = g.input("qkv", &[1, 4, 4, 96], demist::graph::DType::F32);
    let message = attention(&mut g, qkv, 5, AttentionOrder::New).unwrap_err().to_string();
    assert!(message.contains("attention") && message.contains('5'), "{message}");
}
