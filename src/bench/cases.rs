//! The workloads: W1 to W9, single ops and whole networks, each described without
//! a device and then planned, compiled and fed.

use crate::caps::Caps;
use crate::gpu::Gpu;
use crate::gpu::Ticket;
use crate::graph::{
    DType, FlatKind, Graph, Lower, ParamInfo, Plan, PlanOptions, Storage, TensorId,
};
use crate::model::{
    ModelConfig, UNetConfig, UNetInputs, build, build_encoder, initialise, model_preset,
};
use crate::ops::{self, AdamW, AttentionOrder, Conv2d, GroupNorm, LossScale};
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};

/// What of a workload runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Direction {
    /// The result.
    Forward,
    /// The result, and the gradients of input and parameters from any gradient of it.
    Backward,
    /// A training step: mean squared error, all gradients, AdamW.
    Step,
}

impl std::fmt::Display for Direction {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Direction::Forward => "forward",
            Direction::Backward => "forward and backward",
            Direction::Step => "training step",
        })
    }
}

type BuildOp = fn(&mut Graph, TensorId) -> Result<TensorId>;

/// What a workload is made of.
#[derive(Clone, Copy)]
enum Content {
    /// One op on an image [n, h, w, c].
    Op([usize; 4], BuildOp),
    /// A network, by its options, on a batch.
    Network(fn() -> Result<ModelConfig>, usize),
}

/// A named piece of work.
#[derive(Clone, Copy)]
pub struct Workload {
    /// "W1" to "W9".
    pub id: &'static str,
    /// What it is.
    pub title: &'static str,
    /// "conv2d", "group_norm", "attention" or "unet".
    pub op: &'static str,
    /// What of it is measured.
    pub directions: &'static [Direction],
    /// Too much for a software driver unless it is asked for.
    pub heavy: bool,
    content: Content,
}

const BOTH: &[Direction] = &[Direction::Forward, Direction::Backward];

/// All workloads.
pub static WORKLOADS: [Workload; 9] = [
    Workload {
        id: "W1",
        title: "convolution 3x3, 64 to 64 channels",
        op: "conv2d",
        directions: BOTH,
        heavy: false,
        content: Content::Op([4, 32, 32, 64], |g, x| ops::conv2d(g, x, Conv2d::k3(64), None, None)),
    },
    Workload {
        id: "W2",
        title: "convolution 3x3, 128 to 128 channels",
        op: "conv2d",
        directions: BOTH,
        heavy: false,
        content: Content::Op([4, 16, 16, 128], |g, x| {
            ops::conv2d(g, x, Conv2d::k3(128), None, None)
        }),
    },
    Workload {
        id: "W3",
        title: "group norm in 32 groups and SiLU, 128 channels",
        op: "group_norm",
        directions: BOTH,
        heavy: false,
        content: Content::Op([4, 32, 32, 128], |g, x| {
            ops::group_norm(g, x, GroupNorm::g32().with_silu(), None)
        }),
    },
    Workload {
        id: "W4",
        title: "attention, 4 heads of 32 channels, 256 tokens",
        op: "attention",
        directions: BOTH,
        heavy: false,
        content: Content::Op([4, 16, 16, 3 * 128], |g, qkv| {
            ops::attention(g, qkv, 4, AttentionOrder::Legacy)
        }),
    },
    network("W5", "U-Net of 16x16 pixels, width 32", Direction::Forward, unet16, 16),
    network("W6", "U-Net of 16x16 pixels, width 32", Direction::Step, unet16, 16),
    network("W7", "U-Net of 32x32 pixels, width 64", Direction::Forward, unet32, 4),
    Workload { heavy: true, ..network("W8", "64x64_diffusion", Direction::Forward, adm64, 1) },
    Workload { heavy: true, ..network("W9", "64x64_diffusion", Direction::Step, adm64, 8) },
];

const fn network(
    id: &'static str,
    title: &'static str,
    direction: Direction,
    model: fn() -> Result<ModelConfig>,
    batch: usize,
) -> Workload {
    let directions: &'static [Direction] = match direction {
        Direction::Step => &[Direction::Step],
        _ => &[Direction::Forward],
    };
    let content = Content::Network(model, batch);
    Workload { id, title, op: "unet", directions, heavy: false, content }
}

/// The network of the shipped faces, with a learned variance.
fn unet16() -> Result<ModelConfig> {
    Ok(ModelConfig::UNet(UNetConfig {
        image_size: 16,
        model_channels: 32,
        out_channels: 6,
        num_res_blocks: 1,
        attention_resolutions: vec![2],
        channel_mult: vec![1.0, 2.0, 2.0],
        num_classes: Some(5),
        num_heads: 2,
        use_scale_shift_norm: true,
        resblock_updown: true,
        ..Default::default()
    }))
}

/// An unconditional network of a usual size for small images.
fn unet32() -> Result<ModelConfig> {
    let ModelConfig::UNet(small) = unet16()? else { return unet16() };
    Ok(ModelConfig::UNet(UNetConfig {
        image_size: 32,
        model_channels: 64,
        num_res_blocks: 2,
        attention_resolutions: vec![2, 4],
        num_head_channels: Some(32),
        num_classes: None,
        ..small
    }))
}

fn adm64() -> Result<ModelConfig> {
    let name = "64x64_diffusion";
    model_preset(name).ok_or_else(|| Error::Config(format!("there is no preset {name}")))
}

impl Workload {
    /// The options of its network, if it is one.
    pub fn network(&self) -> Option<Result<ModelConfig>> {
        match self.content {
            Content::Op(..) => None,
            Content::Network(model, _) => Some(model()),
        }
    }

    /// Whether it is a whole network.
    pub fn is_network(&self) -> bool {
        matches!(self.content, Content::Network(..))
    }

    /// Describes it.
    ///
    /// # Errors
    /// Those of the ops and networks, which the tests rule out.
    pub fn case(&self, direction: Direction, half: bool) -> Result<Case> {
        match self.content {
            Content::Op(shape, op) => Case::op(self.op, shape, op, direction, half),
            Content::Network(model, batch) => Case::network(&model()?, batch, direction, half),
        }
    }

    /// The same op on another image, for quick looks; `None` for a network.
    ///
    /// # Errors
    /// As [`Workload::case`].
    pub fn case_on(
        &self,
        shape: [usize; 4],
        direction: Direction,
        half: bool,
    ) -> Option<Result<Case>> {
        match self.content {
            Content::Op(_, op) => Some(Case::op(self.op, shape, op, direction, half)),
            Content::Network(..) => None,
        }
    }
}

/// What an input is filled with.
#[derive(Debug, Clone, Copy)]
enum Fill {
    /// Values in [-1, 1) that look random.
    Noise,
    /// The same number everywhere.
    Constant(f32),
    /// Timesteps from 0 to 999.
    Timesteps,
    /// Labels below a number of classes.
    Labels(usize),
}

/// A workload described: a graph, what it is fed, and what is asked of it.
pub struct Case {
    /// "conv2d", "unet", ..
    pub op: &'static str,
    /// What of it runs.
    pub direction: Direction,
    /// Whether activations are stored as half.
    pub half: bool,
    /// Shape of the input, batch first.
    pub shape: Vec<usize>,
    graph: Graph,
    fills: Vec<(TensorId, Fill)>,
    output: TensorId,
    /// (tensor, its gradient) where the backward walk begins.
    seed: Option<(TensorId, TensorId)>,
    /// The input, if its gradient is wanted.
    wanted: Vec<TensorId>,
}

/// A case's plan.
#[derive(Debug, Clone)]
pub struct Planned {
    /// Launches and memory.
    pub plan: Plan,
    /// What the host may read: the result and the gradient of the input.
    pub results: Vec<TensorId>,
    hyper: Option<TensorId>,
}

/// A case compiled and fed, ready to run.
pub struct Prepared {
    /// What runs.
    pub program: Program,
    flat: FlatBuffers,
    params: Vec<ParamInfo>,
    results: Vec<TensorId>,
    trains: bool,
}

impl Case {
    fn op(
        op: &'static str,
        shape: [usize; 4],
        describe: BuildOp,
        direction: Direction,
        half: bool,
    ) -> Result<Case> {
        let mut graph = Graph::new();
        graph.half = half;
        let x = graph.input("x", &shape, if half { DType::F16 } else { DType::F32 });
        let y = describe(&mut graph, x)?;
        let mut fills = vec![(x, Fill::Noise)];
        let backward = direction != Direction::Forward;
        let seed = backward.then(|| (y, add_gradient(&mut graph, &mut fills, y)));
        let wanted = seed.map(|_| x).into_iter().collect();
        let shape = shape.to_vec();
        Ok(Case { op, direction, half, shape, graph, fills, output: y, seed, wanted })
    }

    /// A network on `batch` images; a training step is that of a diffusion network
    /// on the mean squared error of its first channels, and the backward walk alone
    /// begins with any gradient of the result.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options and a training step of a classifier.
    pub fn network(
        model: &ModelConfig,
        batch: usize,
        direction: Direction,
        half: bool,
    ) -> Result<Case> {
        model.validate()?;
        let mut graph = Graph::new();
        let g = &mut graph;
        g.half = half;
        let side = |s: usize| [batch, s, s, model.in_channels()];
        let shape = side(model.image_size());
        let x = g.input("x", &shape, DType::F32);
        let t = g.input("t", &[batch], DType::F32);
        let mut fills = vec![(x, Fill::Noise), (t, Fill::Timesteps)];
        let (op, output) = match model {
            ModelConfig::Encoder(m) => ("classifier", build_encoder(m, g, x, t, None)?),
            ModelConfig::UNet(m) => {
                let y = m.num_classes.map(|n| (g.input("y", &[batch], DType::U32), n));
                let low_res = m.small_size.map(|s| g.input("low_res", &side(s), DType::F32));
                fills.extend(y.map(|(id, classes)| (id, Fill::Labels(classes))));
                fills.extend(low_res.map(|id| (id, Fill::Noise)));
                let given = UNetInputs { x, t, y: y.map(|y| y.0), low_res, rng: None };
                ("unet", build(m, g, given)?)
            }
        };
        let mut wanted = Vec::new();
        let seed = match direction {
            Direction::Forward => None,
            Direction::Backward => {
                wanted.push(x);
                Some((output, add_gradient(g, &mut fills, output)))
            }
            Direction::Step => {
                model.unet()?;
                let target = g.input("target", &shape, DType::F32);
                let weights = g.input("loss weights", &[batch], DType::F32);
                fills.push((target, Fill::Noise));
                fills.push((weights, Fill::Constant(1.0 / batch as f32)));
                Some((ops::mse(g, output, target)?, weights))
            }
        };
        let shape = shape.to_vec();
        Ok(Case { op, direction, half, shape, graph, fills, output, seed, wanted })
    }

    /// Node `index` of this case's graph alone, on operands of the same shapes.
    pub(super) fn node(&self, index: usize, direction: Direction) -> Case {
        let op = self.graph.nodes[index].op.name();
        let (mut graph, output) = self.graph.isolate(index);
        let operands = graph.nodes[0].inputs.iter().copied();
        let mut inputs: Vec<TensorId> =
            operands.filter(|id| graph.storage(*id) == Storage::Pinned).collect();
        inputs.sort();
        inputs.dedup();
        let shape = inputs.first().map_or(Vec::new(), |id| graph.shape(*id).to_vec());
        let fill = |id: &TensorId| match graph.dtype(*id) {
            DType::U32 => (*id, Fill::Labels(1)),
            _ => (*id, Fill::Noise),
        };
        let mut fills: Vec<_> = inputs.iter().map(fill).collect();
        inputs.retain(|id| graph.dtype(*id) != DType::U32);
        let backward = direction != Direction::Forward;
        let seed = backward.then(|| (output, add_gradient(&mut graph, &mut fills, output)));
        let wanted = if backward { inputs } else { Vec::new() };
        Case { op, direction, half: self.half, shape, graph, fills, output, seed, wanted }
    }

    /// Number of parameters.
    pub fn parameters(&self) -> usize {
        self.graph.params.iter().map(ParamInfo::len).sum()
    }

    /// Plans it with some variants forced, as (choice, candidate).
    ///
    /// # Errors
    /// As [`Plan::new`].
    pub fn plan(&self, caps: &Caps, forced: &[(&str, &str)]) -> Result<Planned> {
        let mut lower = Lower::new(&self.graph, caps);
        for (op, candidate) in forced {
            lower.force(op, candidate);
        }
        if self.seed.is_none() {
            lower.keep_prepared();
        }
        lower.forward(&self.graph)?;
        let mut results = vec![self.output];
        let trains = self.direction == Direction::Step;
        if let Some((tensor, mut gradient)) = self.seed {
            if trains && self.half {
                gradient = ops::loss_scale(&mut lower, gradient)?;
            }
            lower.backward(&self.graph, &[(tensor, gradient)], &self.wanted)?;
            results.extend(self.wanted.iter().filter_map(|id| lower.grad(*id)));
        }
        let mut hyper = None;
        if trains {
            let layout = self.graph.param_layout(caps.max_binding.min(caps.max_buffer));
            hyper = Some(ops::optimizer_step(&mut lower, &layout, self.half)?.hyper);
        }
        let plan = Plan::new(&self.graph, lower, &results, PlanOptions::default())?;
        Ok(Planned { plan, results, hyper })
    }

    /// Bytes that a plan of this case needs on a device.
    pub fn bytes(&self, plan: &Plan) -> u64 {
        let r = plan.report();
        let parameters = match self.direction {
            Direction::Forward => r.params_inference,
            Direction::Backward => 2 * r.params + r.params_half,
            Direction::Step => 5 * r.params + r.params_half,
        };
        r.slots + r.pinned + parameters
    }

    /// Compiles a plan of this case, with initial weights and inputs.
    ///
    /// # Errors
    /// As [`FlatBuffers::new`] and [`Program::compile`].
    pub fn prepare(&self, ctx: Context, planned: Planned) -> Result<Prepared> {
        let Planned { plan, results, hyper } = planned;
        let gpu = ctx.gpu;
        let flat = self.weights(gpu, &plan)?;
        let program = Program::compile(ctx, plan, &flat, CompileOptions::default())?;
        self.feed_all(gpu, &program)?;
        if let Some(id) = hyper {
            // The same arithmetic, but weights that stay where they are.
            program.write(gpu, id, &AdamW { lr: 0.0, ..Default::default() }.hyper(1))?;
        }
        let trains = self.direction != Direction::Forward;
        Ok(Prepared { program, flat, params: self.graph.params.clone(), results, trains })
    }

    /// Flat buffers for plans of this case, with initial weights.
    pub(super) fn weights(&self, gpu: &Gpu, plan: &Plan) -> Result<FlatBuffers> {
        let flat = self.allocate(gpu, plan)?;
        let values = initialise(&self.graph.params, 0);
        flat.write(gpu, FlatKind::Weights, &self.graph.params, &values)?;
        Ok(flat)
    }

    /// The tensors that the host fills before a run.
    pub(super) fn inputs(&self) -> impl Iterator<Item = TensorId> {
        self.fills.iter().map(|f| f.0)
    }

    /// Fills them.
    pub(super) fn feed_all(&self, gpu: &Gpu, program: &Program) -> Result<()> {
        self.fills.iter().try_for_each(|(id, fill)| self.feed(gpu, program, *id, *fill))
    }

    fn allocate(&self, gpu: &Gpu, plan: &Plan) -> Result<FlatBuffers> {
        let mut kinds = vec![FlatKind::Weights, FlatKind::Grads, FlatKind::Half];
        match self.direction {
            Direction::Forward => return FlatBuffers::inference(gpu, &plan.params),
            Direction::Backward => {}
            Direction::Step => {
                kinds.extend([FlatKind::ExpAvg, FlatKind::ExpAvgSq, FlatKind::Ema(0)]);
                kinds.push(FlatKind::LossScale);
            }
        }
        let flat = FlatBuffers::new(gpu, &plan.params, &kinds)?;
        if self.direction == Direction::Step {
            let scale = LossScale { lg: 10.0, ..Default::default() };
            flat.write_loss_scale(gpu, scale.state())?;
        }
        Ok(flat)
    }

    fn feed(&self, gpu: &Gpu, program: &Program, id: TensorId, fill: Fill) -> Result<()> {
        let len: usize = self.graph.shape(id).iter().product();
        let floats = match fill {
            Fill::Noise => noise(id.0, len),
            Fill::Constant(v) => vec![v; len],
            Fill::Timesteps => (0..len).map(|i| ((i * 61) % 1000) as f32).collect(),
            Fill::Labels(classes) => {
                let labels: Vec<u32> = (0..len).map(|i| (i % classes) as u32).collect();
                return program.write(gpu, id, &labels);
            }
        };
        match self.graph.dtype(id) {
            DType::F16 => {
                let halves: Vec<_> = floats.into_iter().map(half::f16::from_f32).collect();
                program.write(gpu, id, &halves)
            }
            _ => program.write(gpu, id, &floats),
        }
    }
}

/// An input for the gradient of `y`.
fn add_gradient(g: &mut Graph, fills: &mut Vec<(TensorId, Fill)>, y: TensorId) -> TensorId {
    let shape = g.shape(y).to_vec();
    let dy = g.input("dy", &shape, g.dtype(y));
    fills.push((dy, Fill::Noise));
    dy
}

/// Values in [-1, 1), the same every time.
fn noise(seed: u32, len: usize) -> Vec<f32> {
    (0..len as u32)
        .map(|i| {
            let mixed = (i ^ seed.rotate_left(20)).wrapping_mul(2_654_435_761);
            (mixed >> 8) as f32 / 8_388_608.0 - 1.0
        })
        .collect()
}

impl Prepared {
    /// Submits one run.
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub fn run(&self, gpu: &Gpu) -> Result<Ticket> {
        self.program.run(gpu)
    }

    /// The result, the gradient of the input and those of the parameters, as far as
    /// they were formed.
    ///
    /// # Errors
    /// [`Error::Device`] on a fault.
    pub fn results(&self, gpu: &Gpu) -> Result<Vec<Vec<f32>>> {
        let mut values = self.program.read(gpu, &self.results)?;
        if self.trains {
            values.extend(self.flat.read(gpu, FlatKind::Grads, &self.params)?);
        }
        Ok(values)
    }
}
