//! An op of one's own: GELU (Hendrycks and Gimpel, 2016), with its kernel in `gelu.wgsl`,
//! its gradient, and finite differences that tell whether the gradient is right.
use demist::engine::graph::{DType, Graph, Launch, Lower, Node, Op};
use demist::engine::graph::{Plan, PlanOptions, Target, TensorId};
use demist::engine::kernel::{KernelOf, accumulate, read};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::{Result, defines, engine::gpu::Gpu, named, params};

params! { struct Params { len: u32 } }
defines! { struct Defines { backward: bool, acc: bool } where |d| d.backward || !d.acc }

static GELU: KernelOf<Params, Defines> = KernelOf::new(
    "gelu",
    include_str!("gelu.wgsl"),
    &[read("x"), read("dy").when("BACKWARD"), accumulate("y")],
);

#[derive(Debug)]
struct Gelu;

impl Op for Gelu {
    fn name(&self) -> &'static str {
        "gelu"
    }

    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        launch(lower, node.input("x")?, None, Target::assign(node.output("y")?))
    }

    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()> {
        let x = node.input("x")?;
        // Nothing that was made from y has a gradient, or nobody asks for that of x.
        let Some(dy) = lower.grad(node.output("y")?) else { return Ok(()) };
        let Some(dx) = lower.grad_target(x) else { return Ok(()) };
        launch(lower, x, Some(dy), dx)
    }
}

fn launch(lower: &mut Lower, x: TensorId, dy: Option<TensorId>, y: Target) -> Result<()> {
    let len = lower.shape(x).iter().product::<usize>();
    lower.launch(Launch {
        kernel: &GELU,
        defines: Defines { backward: dy.is_some(), acc: y.add },
        params: Params { len: len as u32 },
        bindings: &named![x, dy, y: y.tensor],
        groups: len.div_ceil(64) as u64,
        flops: 10 * len as u64,
    })
}

fn main() -> Result<()> {
    let mut graph = Graph::new();
    let [x, dy] = ["x", "dy"].map(|name| graph.input(name, &[1000], DType::F32));
    let y = graph.add_node(Gelu, &named![x], &[("y", &[1000])])[0];

    let (gpu, pipelines) = (&Gpu::open(None)?, &Pipelines::new());
    let mut lower = Lower::new(&graph, &gpu.caps);
    lower.forward(&graph)?;
    lower.backward(&graph, &[(y, dy)], &[x])?;
    let kept = [Some(y), lower.grad(x)].map(|tensor| tensor.expect("x has a gradient"));
    let plan = Plan::new(&graph, lower, &kept, PlanOptions::default())?;
    let weights = FlatBuffers::new(gpu, &plan.params, &[])?;
    let context = Context { gpu, pipelines };
    let program = Program::compile(context, plan, &weights, CompileOptions::default())?;

    let run = |shift: f32| -> Result<Vec<Vec<f32>>> {
        let points: Vec<f32> = (0..1000).map(|i| i as f32 / 125.0 - 4.0 + shift).collect();
        program.write(gpu, x, &points)?;
        program.write(gpu, dy, &[1.0f32; 1000])?;
        program.run(gpu)?;
        program.read(gpu, &kept)
    };
    let (low, here, high) = (run(-0.01)?, run(0.0)?, run(0.01)?);
    let errors = (0..1000).map(|i| ((high[0][i] - low[0][i]) / 0.02 - here[1][i]).abs());
    let worst = errors.fold(0.0, f32::max);
    println!("gradients are within {worst:.1e} of finite differences");
    assert!(worst < 1e-3, "the gradient is wrong");
    Ok(())
}
