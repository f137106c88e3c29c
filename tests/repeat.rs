//! Repetition of a batch against its CPU twin.

mod harness;

use demist::engine::graph::{DType, Graph};
use demist::engine::ops::repeat_batch;
use demist::reference::repeat;
use harness::{Case, Twin, device, narrow_device};

#[test]
fn matches_its_twin() {
    for (shape, times) in [
        (vec![3], 2),
        (vec![2, 7, 5, 3], 2),
        (vec![1, 8, 8, 4], 3),
        (vec![5, 1, 1, 33], 1),
        (vec![3, 1], 100),
    ] {
        let case = Case {
            name: format!("repeat_batch {shape:?} {times} times"),
            inputs: vec![shape],
            integers: vec![],
            build: Box::new(move |g, x, _| repeat_batch(g, x[0], times)),
            twin: Box::new(move |a| Twin {
                y: repeat::forward(&a.inputs[0], times),
                input_grads: vec![repeat::backward(a.dy, times)],
                param_grads: vec![],
            }),
            tolerance: 1e-6,
            differentiable: true,
        };
        for device in [device(), narrow_device()] {
            case.check_on(device, |_, v| v);
        }
    }
}

#[test]
fn the_batch_grows_and_nothing_else() {
    let mut g = Graph::new();
    let x = g.input("x", &[3, 4, 5, 6], DType::F32);
    let y = repeat_batch(&mut g, x, 2).unwrap();
    assert_eq!(g.shape(y), [6, 4, 5, 6]);
    let labels = g.input("labels", &[3], DType::U32);
    let none = g.input("none", &[0, 4], DType::F32);
    assert!(repeat_batch(&mut g, x, 0).is_err());
    assert!(repeat_batch(&mut g, x, 1 << 20).is_err());
    assert!(repeat_batch(&mut g, none, 2).is_err());
    let error = repeat_batch(&mut g, labels, 2).unwrap_err().to_string();
    assert_eq!(error, "repeat_batch: x is U32 [3], F32 [3] is needed");
}
