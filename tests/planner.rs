//! Properties of plans, on graphs without a device.

use demist::engine::caps::Caps;
use demist::engine::graph::{
    DType, FileLayout, Graph, Init, Lower, ParamInfo, ParamLayout, Place, Plan, PlanOptions, Slots,
    TensorId, verify_slots,
};
use demist::engine::kernel::Access;
use demist::engine::ops::{self, Conv2d, GroupNorm};

/// A residual chain of `depth` blocks, each a checkpoint region on request.
fn chain(depth: usize, checkpoint: bool) -> (Graph, TensorId, TensorId) {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 8, 8, 8], DType::F32);
    let mut h = g.scope("stem", |g| ops::conv2d(g, x, Conv2d::k3(8), None, None)).unwrap();
    for i in 0..depth {
        let block = |g: &mut Graph| {
            g.scope(format!("b{i}"), |g| {
                let a = g.scope("1", |g| ops::conv2d(g, h, Conv2d::k3(8), None, None)).unwrap();
                let b = g.scope("2", |g| ops::conv2d(g, a, Conv2d::k3(8), None, None)).unwrap();
                g.scope("3", |g| ops::conv2d(g, b, Conv2d::k3(8), None, Some(h))).unwrap()
            })
        };
        h = if checkpoint { g.checkpoint(block) } else { block(&mut g) };
    }
    (g, x, h)
}

fn training_plan(depth: usize, checkpoint: bool, options: PlanOptions) -> Plan {
    let (mut g, _, h) = chain(depth, checkpoint);
    let shape = g.shape(h).to_vec();
    let seed = g.input("seed", &shape, DType::F32);
    let mut lower = Lower::new(&g, &Caps::default());
    lower.forward(&g).unwrap();
    lower.backward(&g, &[(h, seed)], &[]).unwrap();
    Plan::new(&g, lower, &[h], options).unwrap()
}

#[test]
fn plans_pass_the_independent_verifier() {
    for checkpoint in [false, true] {
        for no_reuse in [false, true] {
            let plan = training_plan(5, checkpoint, PlanOptions { no_reuse, ..Default::default() });
            verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
        }
    }
}

/// What the verifier says to a plan whose slots were changed.
fn faulty(change: impl Fn(&mut Slots)) -> String {
    let mut plan = training_plan(3, false, PlanOptions { no_reuse: true, ..Default::default() });
    change(&mut plan.slots);
    verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap_err()
}

/// Every tensor into one slot, `apart` bytes from the one before.
fn into_one(slots: &mut Slots, apart: u64) {
    let mut places: Vec<_> = slots.of.iter_mut().collect();
    places.sort_by_key(|(id, _)| **id);
    for (i, (_, place)) in places.into_iter().enumerate() {
        *place = Place { slot: 0, offset: i as u64 * apart };
    }
    slots.sizes[0] = 1 << 30;
}

#[test]
fn the_verifier_finds_clashes() {
    let written = faulty(|slots| into_one(slots, 0));
    assert!(written.contains("read and written"), "{written}");
    // Also where no byte is shared.
    let apart = faulty(|slots| into_one(slots, 1 << 16));
    assert!(apart.contains("read and written"), "{apart}");
    let small = faulty(|slots| slots.sizes.fill(256));
    assert!(small.contains("beyond the end"), "{small}");
    let crooked = faulty(|slots| {
        slots.sizes.iter_mut().for_each(|s| *s += 4);
        slots.of.values_mut().for_each(|p| p.offset = 4);
    });
    assert!(crooked.contains("lies at 4"), "{crooked}");
    // Two slots that take turns: what was written is gone when it is read again.
    let lost = faulty(|slots| {
        slots.sizes[..3].fill(1 << 20);
        let mut places: Vec<_> = slots.of.iter_mut().collect();
        places.sort_by_key(|(id, _)| **id);
        for (i, (_, place)) in places.into_iter().enumerate() {
            *place = Place { slot: i % 3, offset: 0 };
        }
    });
    assert!(lost.contains("does not hold it") || lost.contains("read and written"), "{lost}");
}

/// A norm between two convolutions, in training.
fn normed(options: PlanOptions) -> Plan {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 8, 8, 8], DType::F32);
    let a = g.scope("a", |g| ops::conv2d(g, x, Conv2d::k3(8), None, None)).unwrap();
    let norm = GroupNorm { groups: 4, eps: 1e-5, silu: true };
    let h = g.scope("n", |g| ops::group_norm(g, a, norm, None)).unwrap();
    let b = g.scope("b", |g| ops::conv2d(g, h, Conv2d::k3(8), None, None)).unwrap();
    let seed = g.input("seed", &[2, 8, 8, 8], DType::F32);
    let mut lower = Lower::new(&g, &Caps::default());
    lower.forward(&g).unwrap();
    lower.backward(&g, &[(b, seed)], &[]).unwrap();
    Plan::new(&g, lower, &[b], options).unwrap()
}

#[test]
fn a_gradient_overwrites_the_one_it_is_made_of() {
    let grads = |plan: &Plan| {
        let found = plan.dispatches.iter().find(|d| d.kernel.name == "group_norm_grads");
        let d = found.unwrap().clone();
        let dx = d.bindings.iter().find(|b| b.0 == 5).unwrap().2;
        (d.kernel.define(&d.defines, "INPLACE"), d.bindings.len(), dx)
    };
    let (inside, apart) = (
        normed(PlanOptions::default()),
        normed(PlanOptions { no_reuse: true, ..Default::default() }),
    );
    assert_eq!(grads(&inside), (1, 6, Access::ReadWrite));
    assert_eq!(grads(&apart), (0, 7, Access::Write));
    for plan in [&inside, &apart] {
        verify_slots(&plan.tensors, &plan.dispatches, &plan.slots).unwrap();
    }
    assert_eq!(inside.slots.of.len() + 1, apart.slots.of.len());
    assert!(inside.report().lower_bound <= apart.report().lower_bound);
}

#[test]
fn slots_are_shared_and_near_the_lower_bound() {
    let shared = training_plan(6, false, PlanOptions::default());
    let apart = training_plan(6, false, PlanOptions { no_reuse: true, ..Default::default() });
    let (shared, apart) = (shared.report(), apart.report());
    assert!(shared.slots < apart.slots, "{} of {}", shared.slots, apart.slots);
    assert!(shared.slots >= shared.lower_bound);
    assert!(
        shared.slots as f64 <= 1.1 * shared.lower_bound as f64,
        "{} over {}",
        shared.slots,
        shared.lower_bound
    );
}

#[test]
fn inference_needs_no_more_as_the_network_grows() {
    let peak = |depth| {
        let (g, _, h) = chain(depth, false);
        let mut lower = Lower::new(&g, &Caps::default());
        lower.forward(&g).unwrap();
        Plan::new(&g, lower, &[h], PlanOptions::default()).unwrap().report().slots
    };
    assert_eq!(peak(3), peak(9));
}

#[test]
fn checkpointing_trades_memory_for_work() {
    let plain = training_plan(8, false, PlanOptions::default()).report();
    let recomputed = training_plan(8, true, PlanOptions::default()).report();
    assert!(recomputed.slots < plain.slots, "{} and {}", recomputed.slots, plain.slots);
    assert!(recomputed.flops > plain.flops);
}

#[test]
fn results_nobody_reads_are_not_computed() {
    let (mut g, x, h) = chain(2, false);
    let unused = g.scope("unused", |g| ops::conv2d(g, x, Conv2d::k1(4), None, None)).unwrap();
    let plan_of = |keep: &[TensorId]| {
        let mut lower = Lower::new(&g, &Caps::default());
        lower.forward(&g).unwrap();
        Plan::new(&g, lower, keep, PlanOptions::default()).unwrap().dispatches.len()
    };
    assert_eq!(plan_of(&[h]) + 1, plan_of(&[h, unused]));
}

#[test]
fn a_tensor_too_large_for_the_device_is_an_error_with_both_sizes() {
    let (g, _, h) = chain(1, false);
    let caps = Caps { max_binding: 1024, ..Caps::default() };
    let mut lower = Lower::new(&g, &caps);
    lower.forward(&g).unwrap();
    let message = Plan::new(&g, lower, &[h], PlanOptions::default()).unwrap_err().to_string();
    assert!(message.contains("4.00 KiB") && message.contains("1.00 KiB"), "{message}");
}

#[test]
fn parameters_lie_aligned_in_chunks() {
    let info = |n: usize| ParamInfo {
        name: format!("p{n}"),
        shape: vec![n],
        layout: FileLayout::Plain,
        init: Init::Zeros,
    };
    let params: Vec<_> = [1, 65, 64, 1000, 3].into_iter().map(info).collect();
    let layout = ParamLayout::new(&params, 1024);
    assert_eq!(layout.places, [(0, 0), (0, 64), (0, 192), (1, 0), (2, 0)]);
    assert_eq!(layout.chunks, [256, 1024, 64]);
}

#[test]
fn parameters_that_are_read_as_half_lie_first() {
    let mut g = Graph::new();
    let mut add = |len: usize, dtype| {
        let shape = vec![len];
        let (layout, init) = (FileLayout::Plain, Init::Zeros);
        g.param_as(ParamInfo { name: format!("p{len}"), shape, layout, init }, dtype);
    };
    for (len, dtype) in [(65, DType::F32), (132, DType::F16), (4, DType::F32), (8, DType::F16)] {
        add(len, dtype);
    }
    assert_eq!(g.packed_params(), [false, true, false, true]);
    let layout = g.param_layout(4096);
    // Starts are multiples of 256 bytes in either form.
    assert_eq!(layout.places, [(1, 0), (0, 0), (1, 128), (0, 256)]);
    assert_eq!((&layout.chunks[..], layout.packed), (&[384, 192][..], 1));
    assert_eq!((layout.bytes(), layout.packed_bytes()), (4 * 576, 2 * 384));
    assert_eq!(layout.inference_bytes(), 2 * 384 + 4 * 192);
}

#[test]
fn weights_survive_the_way_to_the_device_and_back() {
    let info = |shape: &[usize], layout| ParamInfo {
        name: "w".into(),
        shape: shape.to_vec(),
        layout,
        init: Init::Zeros,
    };
    for p in [
        info(&[3, 3, 5, 7], FileLayout::Conv2d),
        info(&[1, 1, 5, 7], FileLayout::Conv1d),
        info(&[5, 7], FileLayout::Linear),
        info(&[35], FileLayout::Plain),
    ] {
        let file: Vec<f32> = (0..p.len()).map(|i| i as f32).collect();
        assert_eq!(p.to_file(&p.to_device(&file)), file);
    }
    // Element [o=1, i=2, h=0, w=1] of OIHW lies at [h, w, i, o] on the device.
    let p = info(&[3, 3, 5, 7], FileLayout::Conv2d);
    let mut file = vec![0.0; p.len()];
    file[((5 + 2) * 3) * 3 + 1] = 1.0;
    assert_eq!(p.to_device(&file)[(5 + 2) * 7 + 1], 1.0);
    assert_eq!(p.file_shape(), [7, 5, 3, 3]);
}
