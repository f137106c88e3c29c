//! Winograd's convolutions against sums in float64: how large their error is, images
//! that take several rounds of tiles, sizes that tiles do not divide, and transformed
//! weights that are kept until the weights change.

mod harness;

use demist::engine::gpu::Gpu;
use demist::engine::graph::{DType, Dispatch, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use demist::engine::ops;
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::reference::conv2d::{self, Conv2dShape};
use harness::{device, rel_err, subgroup_device, values};

const OPS: [&str; 3] = ["conv3x3", "conv3x3_dx", "conv3x3_dw"];

struct Problem {
    shape: Conv2dShape,
    x: Vec<f32>,
    weight: Vec<f32>,
    bias: Vec<f32>,
    dy: Vec<f32>,
}

/// Runs a training plan: `keep`, then the gradients of the parameters.
fn results(
    (gpu, pipelines): (&Gpu, &Pipelines),
    g: &Graph,
    plan: Plan,
    params: &[Vec<f32>],
    inputs: &[(TensorId, Vec<f32>)],
    keep: &[TensorId],
) -> Vec<Vec<f32>> {
    let layout = g.param_layout(gpu.caps.max_binding);
    let flat = FlatBuffers::new(gpu, &layout, &[FlatKind::Weights, FlatKind::Grads]).unwrap();
    flat.write(gpu, FlatKind::Weights, &g.params, params).unwrap();
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options).unwrap();
    inputs.iter().for_each(|(id, values)| program.write(gpu, *id, values).unwrap());
    program.run(gpu).unwrap();
    let mut results = program.read(gpu, keep).unwrap();
    results.extend(flat.read(gpu, FlatKind::Grads, &g.params).unwrap());
    results
}

impl Problem {
    fn new(n: usize, [h, w]: [usize; 2], [cin, cout]: [usize; 2]) -> Self {
        let shape = Conv2dShape { n, h, w, cin, cout, kernel: 3, stride: 1, pad: 1 };
        Problem {
            shape,
            x: values(1, n * h * w * cin),
            weight: values(2, 9 * cin * cout),
            bias: values(3, cout),
            dy: values(4, n * h * w * cout),
        }
    }

    fn graph(&self) -> (Graph, TensorId, TensorId) {
        let s = &self.shape;
        let mut g = Graph::new();
        let x = g.input("x", &[s.n, s.h, s.w, s.cin], DType::F32);
        let y = ops::conv2d(&mut g, x, ops::Conv2d::k3(s.cout), None, None).unwrap();
        (g, x, y)
    }

    /// y, dx, dweight and dbias by `variant`.
    fn run(&self, variant: &str) -> Vec<Vec<f32>> {
        let (gpu, pipelines) = device();
        let (mut g, x, y) = self.graph();
        let s = &self.shape;
        let seed = g.input("seed", &[s.n, s.h, s.w, s.cout], DType::F32);
        let mut lower = Lower::new(&g, &gpu.caps);
        OPS.iter().for_each(|op| lower.force(op, variant));
        lower.forward(&g).unwrap();
        lower.backward(&g, &[(y, seed)], &[x]).unwrap();
        let keep = [y, lower.grad(x).unwrap()];
        let plan = Plan::new(&g, lower, &keep, PlanOptions::default()).unwrap();
        for op in OPS {
            let taken = plan.choices.iter().find(|c| c.op == op).unwrap();
            assert_eq!(taken.name(), variant, "{op}");
        }
        let params = [self.weight.clone(), self.bias.clone()];
        let inputs = [(x, self.x.clone()), (seed, self.dy.clone())];
        results((gpu, pipelines), &g, plan, &params, &inputs, &keep)
    }

    /// The same in float64.
    fn want(&self) -> Vec<Vec<f32>> {
        let s = &self.shape;
        vec![
            conv2d::forward(s, &self.x, &self.weight, Some(&self.bias), None, None),
            conv2d::backward_x(s, &self.dy, &self.weight),
            conv2d::backward_weight(s, &self.x, &self.dy),
            conv2d::backward_bias(s, &self.dy),
        ]
    }

    /// Largest relative error of `variant`, by norm.
    fn error(&self, variant: &str, want: &[Vec<f32>]) -> f64 {
        let errors: Vec<f64> =
            self.run(variant).iter().zip(want).map(|(got, want)| rel_err(got, want)).collect();
        let text: Vec<String> = errors.iter().map(|e| format!("{e:.1e}")).collect();
        println!("{variant} {:?}: y, dx, dweight, dbias off by {}", self.shape, text.join(", "));
        errors.into_iter().fold(0.0, f64::max)
    }
}

#[test]
fn errors_stay_near_those_of_the_direct_sum() {
    let p = Problem::new(2, [16, 16], [128, 96]);
    let want = p.want();
    assert!(p.error("direct", &want) < 1e-6);
    assert!(p.error("winograd2", &want) < 2e-6);
    assert!(p.error("winograd4", &want) < 5e-6);
}

#[test]
fn tiles_may_reach_beyond_the_image() {
    for size in [[1, 1], [3, 5], [6, 9], [2, 13]] {
        let p = Problem::new(3, size, [8, 12]);
        let want = p.want();
        for variant in ["winograd2", "winograd4"] {
            assert!(p.error(variant, &want) < 5e-6, "{size:?}");
        }
    }
}

#[test]
fn large_images_take_several_rounds() {
    // 57,600 tiles of F(2x2), of which a round of 32 MiB holds 32,768.
    let p = Problem::new(1, [480, 480], [16, 4]);
    let (gpu, _) = device();
    let (g, _, y) = p.graph();
    let mut lower = Lower::new(&g, &gpu.caps);
    lower.force("conv3x3", "winograd2");
    lower.forward(&g).unwrap();
    let plan = Plan::new(&g, lower, &[y], PlanOptions::default()).unwrap();
    let rounds = plan.dispatches.iter().filter(|d| d.kernel.name == "winograd_input").count();
    assert_eq!(rounds, 2);
    assert!(p.error("winograd2", &p.want()) < 5e-6);
}

#[test]
fn kept_weights_follow_the_weights() {
    let (gpu, pipelines) = device();
    let p = Problem::new(2, [8, 8], [16, 16]);
    let (g, x, y) = p.graph();
    let mut lower = Lower::new(&g, &gpu.caps);
    lower.force("conv3x3", "winograd4");
    lower.keep_prepared();
    lower.forward(&g).unwrap();
    let plan = Plan::new(&g, lower, &[y], PlanOptions::default()).unwrap();
    let prepares = plan.dispatches.iter().filter(|d| plan.prepares(d)).count();
    assert_eq!((prepares, plan.report().dispatches), (1, plan.dispatches.len() - 1));
    let layout = g.param_layout(gpu.caps.max_binding);
    let flat = FlatBuffers::new(gpu, &layout, &[FlatKind::Weights]).unwrap();
    let program =
        Program::compile(Context { gpu, pipelines }, plan, &flat, CompileOptions::default())
            .unwrap();
    program.write(gpu, x, &p.x).unwrap();
    let result = |weight: &[f32]| {
        flat.write(gpu, FlatKind::Weights, &g.params, &[weight.to_vec(), p.bias.clone()]).unwrap();
        program.run(gpu).unwrap();
        let first = program.read(gpu, &[y]).unwrap().remove(0);
        // The second run takes the weights as they were prepared for the first.
        program.run(gpu).unwrap();
        assert_eq!(first, program.read(gpu, &[y]).unwrap()[0]);
        first
    };
    let other = values(9, p.weight.len());
    for weight in [&p.weight, &other, &p.weight] {
        let want = conv2d::forward(&p.shape, &p.x, weight, Some(&p.bias), None, None);
        assert!(rel_err(&result(weight), &want) < 5e-6);
    }
}

/// y, dx and the parameters' gradients of a group norm with SiLU before a
/// convolution, and how many launches apply the norm.
fn norm_and_conv(variant: &str) -> (Vec<Vec<f32>>, usize) {
    let (gpu, pipelines) = device();
    let mut g = Graph::new();
    let x = g.input("x", &[2, 9, 6, 64], DType::F32);
    let z = ops::group_norm(&mut g, x, ops::GroupNorm::g32().with_silu(), None).unwrap();
    let y = ops::conv2d(&mut g, z, ops::Conv2d::k3(16), None, None).unwrap();
    let seed = g.input("seed", &[2, 9, 6, 16], DType::F32);
    let mut lower = Lower::new(&g, &gpu.caps);
    OPS.iter().for_each(|op| lower.force(op, "winograd4"));
    lower.force("norm_conv", variant);
    lower.forward(&g).unwrap();
    lower.backward(&g, &[(y, seed)], &[x]).unwrap();
    let keep = [y, lower.grad(x).unwrap()];
    let plan = Plan::new(&g, lower, &keep, PlanOptions::default()).unwrap();
    let applies = plan.dispatches.iter().filter(|d| d.kernel.name == "group_norm_apply").count();
    let params: Vec<_> =
        g.params.iter().enumerate().map(|(i, p)| values(30 + i as u32, p.len())).collect();
    let inputs = [(x, values(20, 2 * 54 * 64)), (seed, values(21, 2 * 54 * 16))];
    (results((gpu, pipelines), &g, plan, &params, &inputs, &keep), applies)
}

#[test]
fn a_norm_is_applied_by_the_transform() {
    let (apart, launches) = norm_and_conv("apart");
    let (fused, none) = norm_and_conv("fused");
    assert_eq!((launches, none), (1, 0));
    for (i, (a, b)) in apart.iter().zip(&fused).enumerate() {
        assert!(rel_err(b, a) < 1e-6, "result {i}: {:.1e}", rel_err(b, a));
    }
}

/// y, dx and the parameters' gradients of a group norm after a convolution whose bias
/// adds `offset`, and how many launches took the convolution's moments.
fn conv_and_norm(
    device: &'static (Gpu, Pipelines),
    variant: &str,
    splits: &str,
    offset: f32,
) -> (Vec<Vec<f32>>, usize) {
    let (gpu, pipelines) = device;
    let mut g = Graph::new();
    let x = g.input("x", &[2, 16, 20, 12], DType::F32);
    let emb = g.input("emb", &[2, 128], DType::F32);
    let skip = ops::conv2d(&mut g, x, ops::Conv2d::k1(64), None, None).unwrap();
    let h = ops::conv2d(&mut g, x, ops::Conv2d::k3(64), None, Some(skip)).unwrap();
    let options = ops::GroupNorm { groups: 16, ..ops::GroupNorm::g32().with_silu() };
    let y = ops::group_norm(&mut g, h, options, Some(emb)).unwrap();
    let seed = g.input("seed", &[2, 16, 20, 64], DType::F32);
    let mut lower = Lower::new(&g, &gpu.caps);
    OPS.iter().for_each(|op| lower.force(op, "winograd4"));
    lower.force("conv_moments", variant);
    lower.force("group_norm_stats", splits);
    lower.forward(&g).unwrap();
    lower.backward(&g, &[(y, seed)], &[x]).unwrap();
    let keep = [y, lower.grad(x).unwrap()];
    let plan = Plan::new(&g, lower, &keep, PlanOptions::default()).unwrap();
    let moments = |d: &&Dispatch| {
        let mut values = d.kernel.defines.iter().zip(&d.defines);
        d.kernel.name == "group_norm_stats" && values.any(|v| v == (&"MOMENTS", &1))
    };
    let taken = plan.dispatches.iter().filter(moments).count();
    let mut params: Vec<_> =
        g.params.iter().enumerate().map(|(i, p)| values(40 + i as u32, p.len())).collect();
    params[3].iter_mut().for_each(|b| *b += offset);
    let inputs = [
        (x, values(50, 2 * 320 * 12)),
        (emb, values(51, 2 * 128)),
        (seed, values(52, 2 * 320 * 64)),
    ];
    (results((gpu, pipelines), &g, plan, &params, &inputs, &keep), taken)
}

#[test]
fn a_norm_takes_the_moments_that_a_convolution_left() {
    // A mean of a thousand deviations leaves values themselves four digits.
    for (offset, tolerance) in [(0.0, 1e-6), (1000.0, 1e-4)] {
        for device in [device(), subgroup_device()] {
            for splits in ["auto", "splits2"] {
                let (apart, none) = conv_and_norm(device, "apart", splits, offset);
                let (fused, launches) = conv_and_norm(device, "fused", splits, offset);
                assert_eq!((none, launches), (0, 1));
                for (i, (a, b)) in apart.iter().zip(&fused).enumerate() {
                    let error = rel_err(b, a);
                    assert!(error < tolerance, "{offset}, {splits}, result {i}: {error:.1e}");
                }
            }
        }
    }
}
