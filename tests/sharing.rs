//! Sharing memory changes no bit: networks whose tensors lie in shared buffers, full of
//! NaN at first, against the same with a buffer for each tensor.

mod common;
mod harness;
mod tiny;

use demist::engine::graph::{
    DType, Dispatch, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId, verify_slots,
};
use demist::engine::runtime::{CompileOptions, FlatBuffers, Program};
use demist::model::{UNetConfig, UNetInputs, build};
use tiny::{SIDE, bits, context, dense, unet};

/// Two levels with attention and adaptive norms, so tensors of many sizes.
fn model() -> UNetConfig {
    UNetConfig { channel_mult: vec![1.0, 2.0], attention_resolutions: vec![2], ..unet() }
}

/// The output, the image's gradient and all parameter gradients, as bits.
fn computed(half: bool, levels: u32, options: PlanOptions) -> (Vec<Vec<u32>>, Plan) {
    let (ctx, n) = (context(), 2);
    let mut g = Graph::new();
    (g.half, g.recompute_levels) = (half, levels);
    let image = [n, SIDE, SIDE, 3];
    let x = g.input("x", &image, DType::F32);
    let t = g.input("t", &[n], DType::F32);
    let y = g.input("y", &[n], DType::U32);
    let given = UNetInputs { x, t, y: Some(y), low_res: None, rng: None };
    let out = build(&model(), &mut g, given).unwrap();
    let shape = g.shape(out).to_vec();
    let seed = g.input("seed", &shape, DType::F32);
    let mut lower = Lower::new(&g, &ctx.gpu.caps);
    lower.forward(&g).unwrap();
    lower.backward(&g, &[(out, seed)], &[x]).unwrap();
    let keep: [TensorId; 2] = [out, lower.grad(x).unwrap()];
    let plan = Plan::new(&g, lower, &keep, options).unwrap();
    let layout = g.param_layout(ctx.gpu.caps.max_binding);
    let kinds = [FlatKind::Weights, FlatKind::Half, FlatKind::Grads];
    let flat = FlatBuffers::new(ctx.gpu, &layout, &kinds).unwrap();
    flat.write(ctx.gpu, FlatKind::Weights, &g.params, &dense(&g.params, "sharing.")).unwrap();
    let poisoned = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(ctx, plan.clone(), &flat, poisoned).unwrap();
    let values = |id: TensorId, name| common::hash_u(name, g.shape(id).iter().product());
    program.write(ctx.gpu, x, &values(x, "image")).unwrap();
    program.write(ctx.gpu, seed, &values(seed, "seed")).unwrap();
    program.write(ctx.gpu, t, &[20.0f32, 700.0]).unwrap();
    program.write(ctx.gpu, y, &[0u32, 1]).unwrap();
    program.run(ctx.gpu).unwrap();
    let mut found = program.read(ctx.gpu, &keep).unwrap();
    found.extend(flat.read(ctx.gpu, FlatKind::Grads, &g.params).unwrap());
    (found.iter().map(|v| bits(v)).collect(), plan)
}

/// Dispatches that work in place, and that bind what they read as writable.
fn counts(plan: &Plan) -> (usize, usize) {
    let in_place = |d: &&Dispatch| d.kernel.define(&d.defines, "INPLACE") != 0;
    let writable = |d: &&Dispatch| d.writable_reads != 0;
    (
        plan.dispatches.iter().filter(in_place).count(),
        plan.dispatches.iter().filter(writable).count(),
    )
}

#[test]
fn shared_buffers_and_gradients_in_place_change_no_bit() {
    for (half, levels) in [(false, 0), (false, 0b11), (true, 0), (true, 0b01)] {
        let of = |no_reuse, writable_reads| {
            computed(half, levels, PlanOptions { no_reuse, writable_reads })
        };
        let (want, apart) = of(true, false);
        assert_eq!(counts(&apart), (0, 0));
        assert!(want.iter().all(|v| v.iter().any(|b| b << 1 != 0)), "all gradients are there");
        let (got, shared) = of(false, false);
        assert!(counts(&shared).0 > 5 && counts(&shared).1 == 0, "{:?}", counts(&shared));
        assert!(shared.slots.of.values().any(|place| place.offset > 0));
        assert!(shared.report().slots * 2 < apart.report().slots);
        assert!(got == want, "half {half}, levels {levels:#b}");
        let (got, writable) = of(false, true);
        assert!(counts(&writable).1 > 5, "{:?}", counts(&writable));
        assert!(writable.report().slots <= shared.report().slots);
        verify_slots(&writable.tensors, &writable.dispatches, &writable.slots).unwrap();
        assert!(got == want, "half {half}, levels {levels:#b}, writable reads");
        let mut closed = writable.dispatches.clone();
        closed.iter_mut().for_each(|d| d.writable_reads = 0);
        let fault = verify_slots(&writable.tensors, &closed, &writable.slots).unwrap_err();
        assert!(fault.contains("read and written"), "{fault}");
    }
}
