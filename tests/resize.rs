//! Resizing to any size against its twins.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::engine::caps::Caps;
use demist::engine::graph::{DType, Graph, Lower, TensorId};
use demist::engine::ops::{add, resize_area, resize_bilinear};
use demist::reference::resize::{ResizeShape, area, bilinear};
use forward::{Input, forward};

type Resize = fn(&mut Graph, TensorId, [usize; 2]) -> demist::Result<TensorId>;
type Twin = fn(&ResizeShape, &[f32]) -> Vec<f32>;

const BOTH: [(&str, Resize, Twin); 2] = [
    ("bilinear", resize_bilinear as Resize, bilinear::<f32> as Twin),
    ("area", resize_area, area::<f32>),
];

fn check(shape: ResizeShape) {
    let ResizeShape { n, from: [h, w], to, c } = shape;
    let x = harness::values(5, n * h * w * c);
    for (name, resize, twin) in BOTH {
        let mut g = Graph::new();
        let input = g.input("x", &[n, h, w, c], DType::F32);
        // Twice itself, so that what is resized lies in a slot.
        let doubled = add(&mut g, input, input).unwrap();
        let y = resize(&mut g, doubled, to).unwrap();
        assert_eq!(g.shape(y), [n, to[0], to[1], c]);
        let got = forward(&g, None, &[(input, Input::F32(&x))], &[y]).remove(0);
        let want: Vec<f32> = twin(&shape, &x).iter().map(|v| 2.0 * v).collect();
        let error = harness::rel_err(&got, &want);
        assert!(error < 1e-6, "{name} {shape:?}: {error:.1e}");
    }
}

#[test]
fn up_and_down_by_any_factor() {
    for (from, to, c) in [
        ([8, 8], [32, 32], 3),
        ([32, 32], [8, 8], 3),
        ([8, 8], [16, 16], 4),
        ([17, 13], [40, 29], 5),
        ([40, 29], [17, 13], 33),
        ([64, 64], [27, 41], 1),
        ([1, 1], [5, 7], 8),
        ([5, 7], [1, 1], 8),
        ([3, 9], [9, 3], 2),
    ] {
        check(ResizeShape { n: 2, from, to, c });
    }
}

#[test]
fn the_same_size_is_the_tensor_itself() {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 8, 6, 3], DType::F32);
    for (_, resize, _) in BOTH {
        assert_eq!(resize(&mut g, x, [8, 6]).unwrap(), x);
    }
    assert!(g.nodes.is_empty());
}

#[test]
fn wrong_sizes_are_errors() {
    let message = |shape: &[usize], to, resize: Resize| {
        let mut g = Graph::new();
        let x = g.input("x", shape, DType::F32);
        resize(&mut g, x, to).unwrap_err().to_string()
    };
    for (_, resize, _) in BOTH {
        assert!(message(&[1, 4, 4, 3], [0, 4], resize).contains("resized to 0x4 pixels"));
        assert!(message(&[1, 4, 4, 3], [4, 40_000], resize).contains("at most 32768 a side"));
        assert!(message(&[4, 4, 3], [8, 8], resize).contains("4 extents are needed"));
    }
    assert!(message(&[1, 512, 512, 1], [1, 1], resize_area).contains("512x512 pixels are too"));
}

#[test]
fn a_gradient_is_refused() {
    for (name, resize, _) in BOTH {
        let mut g = Graph::new();
        let x = g.input("x", &[1, 4, 4, 3], DType::F32);
        let y = resize(&mut g, x, [8, 8]).unwrap();
        let dy = g.input("dy", &[1, 8, 8, 3], DType::F32);
        let mut lower = Lower::new(&g, &Caps::default());
        lower.forward(&g).unwrap();
        // As data it is passed over.
        lower.backward(&g, &[(y, dy)], &[]).unwrap();
        let message = lower.backward(&g, &[(y, dy)], &[x]).unwrap_err().to_string();
        assert!(message.contains(name) && message.contains("no gradient"), "{message}");
    }
}
