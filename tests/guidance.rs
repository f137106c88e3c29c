//! Guidance by a classifier and without one: the gradient, what it does to
//! samples, and what does not fit together.

mod common;
mod harness;
mod tiny;

use common::rel_err;
use demist::checkpoint::parameters;
use demist::checkpoint::read_network;
use demist::diffusion::{
    DiffusionConfig, Guide, GuideGraph, LossType, NoiseSchedule, SampleJob, SampleOptions, Sampler,
    SamplingGraph, SamplingLoop, SamplingNeeds, SpacedSchedule, VarType,
};
use demist::engine::graph::{FlatKind, ParamInfo, TensorId};
use demist::engine::ops::denoise_coefs;
use demist::engine::runtime::{CompileOptions, Program};
use demist::model::{EncoderConfig, ModelConfig, Pool, UNetConfig, initialise, model_params};
use demist::recipe::TrainConfig;
use demist::train::{StopFlag, train};
use harness::values;
use std::sync::OnceLock;
use tiny::{
    CLASSES, LEN, bits, context, dense, encoder, halves, info, mean, run_options, short, unet,
    upload,
};

const DDIM: Sampler = Sampler::Ddim { eta: 0.0 };
const STEPS: usize = 20;
const RESPACING: &str = "5";

/// A guide's graph as it is compiled for guiding.
struct Slope {
    graph: GuideGraph,
    program: Program,
    gradient: TensorId,
}

impl Slope {
    fn new(config: &EncoderConfig, weights: &[Vec<f32>], n: usize) -> Slope {
        let graph = GuideGraph::new(config, n).unwrap();
        let (plan, gradient) = graph.plan(&context().gpu.caps).unwrap();
        // No buffer for gradients of parameters: none may be formed.
        let flat = upload(&plan, &graph.graph.params, weights);
        let options = CompileOptions { poison: true, ..Default::default() };
        let program = Program::compile(context(), plan, &flat, options).unwrap();
        Slope { graph, program, gradient }
    }

    fn set(&self, t: &[f32], labels: &[u32], scale: f32) {
        let gpu = context().gpu;
        self.program.write(gpu, self.graph.t, t).unwrap();
        self.program.write(gpu, self.graph.labels, labels).unwrap();
        self.program.write(gpu, self.graph.seed, &vec![-scale; labels.len()]).unwrap();
    }

    /// log p(label) of each image, and the gradient.
    fn run(&self, x: &[f32]) -> (Vec<f64>, Vec<f32>) {
        let gpu = context().gpu;
        self.program.write(gpu, self.graph.x, x).unwrap();
        self.program.run(gpu).unwrap();
        let mut read = self.program.read(gpu, &[self.graph.loss, self.gradient]).unwrap();
        let gradient = read.remove(1);
        (read.remove(0).iter().map(|l| -f64::from(*l)).collect(), gradient)
    }
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn the_gradient_is_the_slope_of_the_scaled_log_probability() {
    const SCALE: f32 = 2.5;
    for pool in [Pool::Attention, Pool::Adaptive, Pool::Spatial, Pool::SpatialV2] {
        // ReLU's kinks ask for small steps, which let the forward's rounding through.
        let (h, tolerance) = if pool == Pool::Spatial { (0.01, 5e-3) } else { (0.05, 5e-4) };
        let config = EncoderConfig { pool, out_channels: 5, ..encoder() };
        let params = model_params(&ModelConfig::Encoder(config.clone())).unwrap();
        let slope = Slope::new(&config, &dense(&params, "guide."), 2);
        slope.set(&[17.0, 640.0], &[3, 0], SCALE);
        let x = values(11, 2 * LEN);
        let (_, gradient) = slope.run(&x);
        let size = norm(&gradient);
        assert!(size > 1e-2, "{pool:?}: the gradient is only {size:.1e}");
        let at = |d: &[f32], by: f32| {
            let moved: Vec<f32> = x.iter().zip(d).map(|(x, d)| x + by * d).collect();
            f64::from(SCALE) * slope.run(&moved).0.iter().sum::<f64>()
        };
        let mut directions = vec![gradient.clone()];
        directions.extend((0..5).map(|i| values(100 + i, x.len())));
        for (i, mut d) in directions.into_iter().enumerate() {
            let length = norm(&d);
            d.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            let want: f64 = gradient.iter().zip(&d).map(|(g, d)| f64::from(g * d)).sum();
            // Steps of h and 2h, so that the error of third order cancels.
            let central = |h: f32| (at(&d, h) - at(&d, -h)) / (2.0 * f64::from(h));
            let found = (4.0 * central(h) - central(2.0 * h)) / 3.0;
            let error = (found - want).abs() / size;
            assert!(error < tolerance, "{pool:?}, direction {i}: {want} expected, {found} found");
        }
        // The scale scales it, and an image of its own has its own.
        slope.set(&[17.0, 640.0], &[3, 0], 2.0 * SCALE);
        let doubled: Vec<f32> = gradient.iter().map(|g| 2.0 * g).collect();
        assert!(bits(&slope.run(&x).1) == bits(&doubled), "{pool:?}");
        slope.set(&[17.0, 640.0], &[1, 0], SCALE);
        let other = slope.run(&x).1;
        assert!(other[..LEN] != gradient[..LEN] && other[LEN..] == gradient[LEN..]);
    }
}

/// A classifier of noised halves, trained for a moment.
fn classifier() -> &'static [Vec<f32>] {
    static WEIGHTS: OnceLock<Vec<Vec<f32>>> = OnceLock::new();
    WEIGHTS.get_or_init(|| {
        let root = tempfile::tempdir().unwrap();
        let training = TrainConfig {
            batch_size: 8,
            micro_batch: 8,
            lr: 2e-3,
            ema_rates: vec![0.7],
            steps: 40,
            ..Default::default()
        };
        let info = info(ModelConfig::Encoder(encoder()), short(STEPS), training);
        let options = run_options(root.path());
        train(context(), halves(), info, &options, &StopFlag::default(), &mut |_| Ok(())).unwrap();
        let (info, file) = read_network(&root.path().join("network.safetensors")).unwrap();
        parameters(&model_params(&info.model).unwrap(), &file, "").unwrap()
    })
}

fn guide(config: &EncoderConfig, diffusion: &DiffusionConfig, n: usize) -> Guide {
    let graph = GuideGraph::new(config, n).unwrap();
    let plan = graph.plan(&context().gpu.caps).unwrap();
    let params = &graph.graph.params;
    let weights = if *config == encoder() { classifier().to_vec() } else { initialise(params, 0) };
    let flat = upload(&plan.0, params, &weights);
    Guide::compile(context(), graph, plan, config, diffusion, &flat).unwrap()
}

fn sampler(
    model: &UNetConfig,
    diffusion: &DiffusionConfig,
    n: usize,
    weights: &dyn Fn(&[ParamInfo]) -> Vec<Vec<f32>>,
    needs: SamplingNeeds,
) -> SamplingLoop {
    let wiring = SamplingGraph::new(model, n, needs).unwrap();
    let plan = wiring.plan(&context().gpu.caps).unwrap();
    let flat = upload(&plan, &wiring.graph.params, &weights(&wiring.graph.params));
    let guide = needs.guided.then(|| guide(&encoder(), diffusion, n));
    SamplingLoop::compile(context(), wiring, plan, diffusion, (&flat, FlatKind::Weights), guide)
        .unwrap()
}

/// A network without classes whose weights denoise nothing.
fn blind(learned: bool) -> UNetConfig {
    UNetConfig { num_classes: None, out_channels: if learned { 6 } else { 3 }, ..unet() }
}

fn options(sampler: Sampler, classifier_scale: f64) -> SampleOptions {
    SampleOptions {
        respacing: RESPACING.into(),
        sampler,
        classifier_scale,
        seed: 9,
        ..Default::default()
    }
}

fn draw(sampler: &SamplingLoop, options: &SampleOptions, labels: &[u32], count: usize) -> Vec<f32> {
    let job = SampleJob { first: 3, count, labels, ..Default::default() };
    sampler.sample(context(), options, &job, &mut |_| Ok(())).unwrap()
}

const GUIDED: SamplingNeeds = SamplingNeeds {
    given_noise: false,
    keep_x0: false,
    guided: true,
    classifier_free: false,
    half: false,
};

#[test]
fn guided_images_look_more_like_their_class() {
    const N: usize = 8;
    let labels = [0, 1, 0, 1, 0, 1, 0, 1];
    let judge = Slope::new(&encoder(), classifier(), N);
    judge.set(&[0.0; N], &labels, 1.0);
    for (var_type, kind) in [
        (VarType::FixedLarge, Sampler::Ddpm),
        (VarType::LearnedRange, Sampler::Ddpm),
        (VarType::FixedLarge, DDIM),
        (VarType::FixedLarge, Sampler::Ddim { eta: 0.5 }),
    ] {
        let diffusion = DiffusionConfig { var_type, ..short(STEPS) };
        let model = blind(var_type.is_learned());
        let weights = |params: &[ParamInfo]| initialise(params, 1);
        let sampler = sampler(&model, &diffusion, N, &weights, GUIDED);
        assert_eq!(sampler.classes(), Some(CLASSES));
        let score =
            |scale: f64| mean(&judge.run(&draw(&sampler, &options(kind, scale), &labels, N)).0);
        // Away from the class, as it comes, and towards the class.
        let [away, none, towards] = [-1.0, 0.0, 1.0].map(score);
        let what = format!("{kind:?}, {var_type:?}: {away} {none} {towards}");
        assert!(away < none && none < towards, "{what}");
        assert!(towards - none > 0.2 * none.abs(), "{what}");
    }
}

#[test]
fn scale_zero_is_no_guidance() {
    let diffusion = short(STEPS);
    let weights = |params: &[ParamInfo]| dense(params, "guidance.");
    let guided = sampler(&blind(false), &diffusion, 2, &weights, GUIDED);
    let plain = sampler(&blind(false), &diffusion, 2, &weights, SamplingNeeds::default());
    assert_eq!(plain.classes(), None);
    for kind in [Sampler::Ddpm, DDIM, Sampler::Ddim { eta: 1.0 }] {
        let want = draw(&plain, &options(kind, 1.0), &[], 2);
        let got = draw(&guided, &options(kind, 0.0), &[1, 0], 2);
        assert!(got == want, "{kind:?} differs by {:.1e}", rel_err(&got, &want));
        let with = draw(&guided, &options(kind, 1.0), &[1, 0], 2);
        assert!(with != want, "{kind:?}: the classifier is not used");
    }
}

/// A partly filled batch, and an image beside others.
#[test]
fn guided_images_do_not_see_each_other() {
    let diffusion = short(STEPS);
    let weights = |params: &[ParamInfo]| dense(params, "guidance.");
    let sampler = sampler(&blind(false), &diffusion, 4, &weights, GUIDED);
    for kind in [Sampler::Ddpm, DDIM] {
        let all = draw(&sampler, &options(kind, 2.0), &[0, 1, 1, 0], 4);
        for count in 1..4 {
            let part = draw(&sampler, &options(kind, 2.0), &[0, 1, 1, 0][..count], count);
            assert!(bits(&part) == bits(&all[..count * LEN]), "{kind:?}: {count} of 4");
        }
        let other = draw(&sampler, &options(kind, 2.0), &[0, 0, 1, 0], 4);
        for i in 0..4 {
            let same = other[i * LEN..][..LEN] == all[i * LEN..][..LEN];
            assert_eq!(same, i != 1, "{kind:?}: image {i}");
        }
    }
    let refused = |labels: &[u32], count| {
        let job = SampleJob { count, labels, ..Default::default() };
        let result = sampler.sample(context(), &options(DDIM, 1.0), &job, &mut |_| Ok(()));
        result.unwrap_err().to_string()
    };
    assert!(refused(&[0, 2], 2).contains("label 2"), "{}", refused(&[0, 2], 2));
    assert!(refused(&[], 2).contains("0 labels"), "{}", refused(&[], 2));
}

#[test]
fn a_classifier_must_fit_the_network() {
    let diffusion = DiffusionConfig::default();
    let guide = |config: &EncoderConfig| self::guide(config, &diffusion, 1);
    let ours = guide(&encoder());
    assert!(ours.check(8, 3, &diffusion).is_ok());
    // What it does not see may differ.
    let unseen = DiffusionConfig {
        var_type: VarType::LearnedRange,
        loss_type: LossType::Kl,
        mean_type: demist::diffusion::MeanType::XStart,
        ..diffusion.clone()
    };
    assert!(ours.check(8, 3, &unseen).is_ok());
    let cosine = DiffusionConfig { noise_schedule: NoiseSchedule::Cosine, ..diffusion.clone() };
    let longer = DiffusionConfig { diffusion_steps: 4000, ..diffusion.clone() };
    let rescaled = DiffusionConfig { rescale_timesteps: true, ..diffusion.clone() };
    let faults = [
        (16, 3, &diffusion, "image size is 8, the network's 16"),
        (8, 1, &diffusion, "channel count is 3, the network's 1"),
        (8, 3, &longer, "number of timesteps is 1000, the network's 4000"),
        (8, 3, &cosine, "noise schedule is Linear, the network's Cosine"),
        (8, 3, &rescaled, "rescaling of timesteps is false, the network's true"),
    ];
    for (size, channels, process, hint) in faults {
        let error = ours.check(size, channels, process).unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    // A sampler checks it, and that graph and classifier go together.
    let compile = |guided: bool, process: &DiffusionConfig, guide: Option<Guide>| {
        let needs = SamplingNeeds { guided, ..Default::default() };
        let wiring = SamplingGraph::new(&blind(false), 1, needs).unwrap();
        let plan = wiring.plan(&context().gpu.caps).unwrap();
        let flat = upload(&plan, &wiring.graph.params, &initialise(&wiring.graph.params, 0));
        let weights = (&flat, FlatKind::Weights);
        SamplingLoop::compile(context(), wiring, plan, process, weights, guide)
            .map(|_| ())
            .map_err(|e| e.to_string())
    };
    assert!(compile(true, &diffusion, Some(guide(&encoder()))).is_ok());
    assert!(compile(true, &cosine, Some(guide(&encoder()))).unwrap_err().contains("schedule"));
    let large = EncoderConfig { image_size: 16, ..encoder() };
    assert!(compile(true, &diffusion, Some(guide(&large))).unwrap_err().contains("image size"));
    assert!(compile(true, &diffusion, None).unwrap_err().contains("a graph and a classifier"));
    let extra = compile(false, &diffusion, Some(guide(&encoder())));
    assert!(extra.unwrap_err().contains("a graph and a classifier"));
    // A batch of another size.
    let three = Some(self::guide(&encoder(), &diffusion, 3));
    assert!(compile(true, &diffusion, three).is_err());
}

/// A conditional network that knows "no class".
fn knowing() -> UNetConfig {
    UNetConfig { null_class: true, out_channels: 6, ..unet() }
}

const FREE: SamplingNeeds = SamplingNeeds { guided: false, classifier_free: true, ..GUIDED };

/// DDIM with eta 0 from `start`, step by step, with any labels.
fn by_hand(diffusion: &DiffusionConfig, start: &[f32], labels: &[u32]) -> Vec<f32> {
    let ctx = context();
    let w = SamplingGraph::new(&knowing(), labels.len(), SamplingNeeds::default()).unwrap();
    let plan = w.plan(&ctx.gpu.caps).unwrap();
    let flat = upload(&plan, &w.graph.params, &dense(&w.graph.params, "free."));
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).unwrap();
    let schedule = SpacedSchedule::new(diffusion, RESPACING).unwrap();
    let tables = schedule.tables().unwrap();
    program.write(ctx.gpu, w.x, start).unwrap();
    program.write(ctx.gpu, w.labels.unwrap(), labels).unwrap();
    for i in (0..schedule.num_steps()).rev() {
        let t = schedule.model_timestep(i, diffusion);
        program.write(ctx.gpu, w.t, &vec![t; labels.len()]).unwrap();
        let update = tables.update_for(i, DDIM, diffusion, true);
        program.write(ctx.gpu, w.update, &denoise_coefs(&update)).unwrap();
        program.run(ctx.gpu).unwrap();
    }
    program.read(ctx.gpu, &[w.x]).unwrap().remove(0)
}

#[test]
fn classifier_free_guidance_interpolates_from_no_class() {
    let diffusion = DiffusionConfig { var_type: VarType::LearnedRange, ..short(STEPS) };
    let weights = |params: &[ParamInfo]| dense(params, "free.");
    let free = sampler(&knowing(), &diffusion, 3, &weights, FREE);
    let plain = sampler(&knowing(), &diffusion, 3, &weights, SamplingNeeds::default());
    let weighted = |sampler: Sampler, weight: f64| SampleOptions {
        guidance_weight: weight,
        ..options(sampler, 1.0)
    };
    let labels = [1, 0, 1];
    for kind in [Sampler::Ddpm, DDIM, Sampler::Ddim { eta: 0.5 }] {
        let conditional = draw(&plain, &weighted(kind, 1.0), &labels, 3);
        let one = draw(&free, &weighted(kind, 1.0), &labels, 3);
        let error = rel_err(&one, &conditional);
        assert!(error < 1e-4, "{kind:?}: weight 1 is off by {error:.1e}");
        // A network that is evaluated once takes no weight.
        assert!(bits(&draw(&plain, &weighted(kind, 3.0), &labels, 3)) == bits(&conditional));
        let more = draw(&free, &weighted(kind, 3.0), &labels, 3);
        assert!(rel_err(&more, &one) > 1e-2, "{kind:?}: the weight does not matter");
        // A partly filled batch.
        let part = draw(&free, &weighted(kind, 3.0), &labels[..2], 2);
        assert!(bits(&part) == bits(&more[..2 * LEN]), "{kind:?}");
    }
    // Without any weight the class is forgotten, but for a learned variance.
    let start = values(4, 3 * LEN);
    let run = |labels: &[u32], weight: f64| {
        let options = weighted(DDIM, weight);
        let job = SampleJob { count: 3, labels, start: Some(&start), ..Default::default() };
        free.sample(context(), &options, &job, &mut |_| Ok(())).unwrap()
    };
    let none = by_hand(&diffusion, &start, &[CLASSES as u32; 3]);
    for labels in [[1, 0, 1], [0, 0, 0]] {
        let zero = run(&labels, 0.0);
        let error = rel_err(&zero, &none);
        assert!(error < 1e-4, "weight 0 is off from no class by {error:.1e}");
        let given = by_hand(&diffusion, &start, &labels);
        let error = rel_err(&run(&labels, 1.0), &given);
        assert!(error < 1e-4, "weight 1 is off from the class by {error:.1e}");
        assert!(rel_err(&given, &none) > 1e-2, "classes do not matter");
    }
}

#[test]
fn classifier_free_guidance_needs_a_network_that_knows_no_class() {
    let unconditional = blind(false);
    for model in [unet(), unconditional] {
        let error = SamplingGraph::new(&model, 1, FREE).err().unwrap().to_string();
        assert!(error.contains("label dropout"), "{error}");
    }
    // Nobody may ask for the row of "no class" by its number.
    let weights = |params: &[ParamInfo]| dense(params, "free.");
    let free = sampler(&knowing(), &short(STEPS), 1, &weights, FREE);
    let job = SampleJob { count: 1, labels: &[CLASSES as u32], ..Default::default() };
    let error = free.sample(context(), &options(DDIM, 1.0), &job, &mut |_| Ok(())).unwrap_err();
    assert!(error.to_string().contains("label 2"), "{error}");
}
