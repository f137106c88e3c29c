//! Guard words: a kernel that writes one element before or after what it was given is
//! found, wherever the tensor lies; one that keeps to it is not blamed.

mod harness;

use demist::engine::graph::{
    DType, FileLayout, FlatKind, Graph, Init, Launch, Lower, Node, Op, ParamInfo, ParamLayout,
    Plan, PlanOptions, TensorId,
};
use demist::engine::kernel::{KernelOf, read, write};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Program};
use demist::{Result, named, params};
use harness::guarded_device;

params! {
    struct Params { len: u32, shift: i32 }
}

static COPY: KernelOf<Params, ()> = KernelOf::new(
    "shifted_copy",
    "
struct Params { len: u32, shift: i32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) id: vec3<u32>) {
    if id.x < p.len {
        y[i32(id.x) + p.shift] = x[id.x];
    }
}
",
    &[read("x"), write("y")],
);

/// y[i + shift] = x[i], and as its gradient d of a parameter [i + shift] = dy[i].
#[derive(Debug)]
struct ShiftedCopy {
    forward: i32,
    backward: i32,
}

fn copy(lower: &mut Lower, x: TensorId, y: TensorId, shift: i32) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>() as u32;
    lower.launch(Launch {
        kernel: &COPY,
        defines: (),
        params: Params { len, shift },
        bindings: &named![x, y],
        groups: u64::from(len.div_ceil(64)),
        flops: 0,
    })
}

impl Op for ShiftedCopy {
    fn name(&self) -> &'static str {
        "shifted_copy"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        copy(lower, node.input("x")?, node.output("y")?, self.forward)
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        match lower.grad_target(node.input("w")?) {
            Some(dw) => copy(lower, dy, dw.tensor, self.backward),
            None => Ok(()),
        }
    }
}

/// Copies `len` numbers twice, so that the first copy lies in a slot, the second in a
/// buffer of its own, and gradients in a flat buffer. One copy writes `shift` elements
/// too far: the first, the second, or the gradient. Returns what a run says.
fn run(len: usize, which: usize, shift: i32) -> Result<()> {
    let (gpu, pipelines) = guarded_device();
    let shifts = |at: usize| if at == which { shift } else { 0 };
    let mut g = Graph::new();
    let x = g.input("x", &[len], DType::F32);
    let w = g.param(ParamInfo {
        name: "w".into(),
        shape: vec![len],
        layout: FileLayout::Plain,
        init: Init::Zeros,
    });
    let first = ShiftedCopy { forward: shifts(0), backward: 0 };
    let h = g.add_node(first, &named![x, w], &[("y", &[len])])[0];
    let second = ShiftedCopy { forward: shifts(1), backward: shifts(2) };
    let y = g.add_node(second, &named![x: h, w], &[("y", &[len])])[0];
    let seed = g.input("seed", &[len], DType::F32);
    let mut lower = Lower::new(&g, &gpu.caps);
    lower.forward(&g)?;
    lower.backward(&g, &[(y, seed)], &[])?;
    let plan = Plan::new(&g, lower, &[y], PlanOptions::default())?;
    let layout = g.param_layout(gpu.caps.max_binding);
    let flat = FlatBuffers::new(gpu, &layout, &[FlatKind::Weights, FlatKind::Grads])?;
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options)?;
    let values = harness::values(1, len);
    program.write(gpu, x, &values)?;
    program.write(gpu, seed, &values)?;
    program.run(gpu)?;
    assert_eq!(program.read(gpu, &[y])?[0], values);
    assert_eq!(flat.read(gpu, FlatKind::Grads, &g.params)?[0], values);
    Ok(())
}

/// Lengths with and without room up to the next multiple of 256 bytes.
const LENGTHS: [usize; 3] = [1, 64, 200];

#[test]
fn a_kernel_that_keeps_to_its_tensor_is_not_blamed() {
    for len in LENGTHS {
        run(len, 0, 0).unwrap();
    }
}

#[test]
fn one_element_too_far_is_found_on_both_sides_and_everywhere() {
    for len in LENGTHS {
        for (which, shift) in [(0, 1), (0, -1), (1, 1), (1, -1), (2, 1), (2, -1)] {
            let message = run(len, which, shift).unwrap_err().to_string();
            let side = match (which, shift) {
                (2, -1) => "at the start of the buffer of",
                (2, _) if len % 64 != 0 => "right after",
                (2, _) => "at the end of the buffer of",
                (_, -1) => "before",
                _ => "after",
            };
            let expected = format!("kernel shifted_copy: 1 guard words {side} ");
            assert!(message.starts_with(&expected), "{message}");
        }
    }
}

#[test]
fn a_plan_for_another_device_is_refused() {
    let (gpu, pipelines) = harness::device();
    let mut caps = gpu.caps.clone();
    caps.guarded = !caps.guarded;
    let g = Graph::new();
    let plan = Plan::new(&g, Lower::new(&g, &caps), &[], PlanOptions::default()).unwrap();
    let flat = FlatBuffers::new(gpu, &ParamLayout::new(&[], 1024), &[]).unwrap();
    let ctx = Context { gpu, pipelines };
    let message = Program::compile(ctx, plan, &flat, CompileOptions::default()).err().unwrap();
    assert!(message.to_string().contains("guarded"), "{message}");
}
