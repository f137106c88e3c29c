//! The classifier as guidance uses it: the gradient by the image of
//! scale * log p(y | x), against differences of the forward pass.

mod harness;

use demist::engine::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Program};
use demist::model::{EncoderConfig, Pool, build_encoder, default_encoder, initialise};
use harness::{device, values};

/// Guidance strength, as a sampler would give.
const SCALE: f64 = 2.5;
const LABELS: [usize; 2] = [3, 0];
const T: [f32; 2] = [17.0, 640.0];

/// A compiled classifier of two images with arbitrary weights.
struct Classifier {
    program: Program,
    x: TensorId,
    seed: TensorId,
    logits: TensorId,
    dx: TensorId,
}

impl Classifier {
    fn new(config: &EncoderConfig) -> Classifier {
        let (gpu, pipelines) = device();
        let (n, size) = (LABELS.len(), config.image_size);
        let mut g = Graph::new();
        let x = g.input("x", &[n, size, size, config.in_channels], DType::F32);
        let t = g.input("t", &[n], DType::F32);
        let logits = build_encoder(config, &mut g, x, t, None).unwrap();
        let seed = g.input("seed", &[n, config.out_channels], DType::F32);
        let mut lower = Lower::new(&g, &gpu.caps);
        lower.forward(&g).unwrap();
        lower.backward(&g, &[(logits, seed)], &[x]).unwrap();
        let dx = lower.grad(x).expect("a gradient of the image");
        let plan = Plan::new(&g, lower, &[logits, dx], PlanOptions::default()).unwrap();
        let kinds = [FlatKind::Weights, FlatKind::Grads];
        let flat = FlatBuffers::new(gpu, &plan.params, &kinds).unwrap();
        // Layers that start at zero would hide what lies before them.
        let mut weights = initialise(&g.params, 7);
        for (i, w) in weights.iter_mut().enumerate().filter(|(_, w)| w.iter().all(|v| *v == 0.0)) {
            *w = values(i as u32, w.len()).iter().map(|v| 0.1 * v).collect();
        }
        flat.write(gpu, FlatKind::Weights, &g.params, &weights).unwrap();
        let options = CompileOptions { poison: true, ..Default::default() };
        let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options).unwrap();
        program.write(gpu, t, &T).unwrap();
        Classifier { program, x, seed, logits, dx }
    }

    fn run(&self, x: &[f32]) -> Vec<Vec<f32>> {
        let gpu = &device().0;
        self.program.write(gpu, self.x, x).unwrap();
        self.program.run(gpu).unwrap();
        self.program.read(gpu, &[self.logits, self.dx]).unwrap()
    }

    /// scale * sum of log p(y | x) over the images, and its gradient by the
    /// logits.
    fn objective(&self, x: &[f32]) -> (f64, Vec<f32>) {
        let logits = self.run(x).remove(0);
        let (mut sum, mut seed) = (0.0, Vec::new());
        for (row, label) in logits.chunks_exact(logits.len() / LABELS.len()).zip(LABELS) {
            let total: f64 = row.iter().map(|v| f64::from(*v).exp()).sum();
            sum += f64::from(row[label]) - total.ln();
            seed.extend(row.iter().enumerate().map(|(class, v)| {
                let p = f64::from(*v).exp() / total;
                (SCALE * (f64::from(u8::from(class == label)) - p)) as f32
            }));
        }
        (SCALE * sum, seed)
    }

    fn gradient(&self, x: &[f32]) -> Vec<f32> {
        let (_, seed) = self.objective(x);
        self.program.write(&device().0, self.seed, &seed).unwrap();
        self.run(x).remove(1)
    }

    /// Derivative along `d` by central differences with steps h and 2h,
    /// combined so that the error of third order cancels.
    fn difference(&self, x: &[f32], d: &[f32], h: f32) -> f64 {
        let at = |by: f32| {
            let moved: Vec<f32> = x.iter().zip(d).map(|(x, d)| x + by * d).collect();
            self.objective(&moved).0
        };
        let central = |h: f32| (at(h) - at(-h)) / (2.0 * f64::from(h));
        (4.0 * central(h) - central(2.0 * h)) / 3.0
    }
}

fn tiny(pool: Pool) -> EncoderConfig {
    EncoderConfig { channel_mult: vec![1.0, 2.0], pool, ..default_encoder(8, 3, 5) }
}

fn norm(v: &[f32]) -> f64 {
    v.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt()
}

#[test]
fn guidance_is_the_slope_of_the_log_probability() {
    for pool in [Pool::Attention, Pool::Adaptive, Pool::Spatial, Pool::SpatialV2] {
        // ReLU's kinks ask for small steps, which let the forward's rounding
        // through. Seen on llvmpipe: 2e-4, and 2e-5 with the smooth pools.
        let (step, tolerance) = if pool == Pool::Spatial { (0.01, 2e-3) } else { (0.05, 1e-4) };
        let config = tiny(pool);
        let classifier = Classifier::new(&config);
        let x = values(11, LABELS.len() * config.image_size.pow(2) * config.in_channels);
        let gradient = classifier.gradient(&x);
        let size = norm(&gradient);
        assert!(size > 1e-2, "{pool:?}: the gradient is only {size:.1e}");
        // The steepest direction, and others, all of the same length.
        let mut directions = vec![gradient.clone()];
        directions.extend((0..6).map(|i| values(100 + i, x.len())));
        for (i, mut d) in directions.into_iter().enumerate() {
            let length = norm(&d);
            d.iter_mut().for_each(|v| *v = (f64::from(*v) / length) as f32);
            let slope: f64 = gradient.iter().zip(&d).map(|(g, d)| f64::from(g * d)).sum();
            let found = classifier.difference(&x, &d, step);
            let error = (found - slope).abs() / size;
            assert!(
                error < tolerance,
                "{pool:?}, direction {i}: slope {slope:.5} of {size:.3}, found {found:.5}"
            );
        }
    }
}

#[test]
fn an_image_does_not_see_the_others() {
    let config = tiny(Pool::Attention);
    let classifier = Classifier::new(&config);
    let x = values(11, LABELS.len() * config.image_size.pow(2) * config.in_channels);
    let alone = classifier.gradient(&x);
    let half = x.len() / 2;
    let changed = [&x[..half], &values(12, half)].concat();
    let beside = classifier.gradient(&changed);
    assert_eq!(alone[..half], beside[..half]);
    assert_ne!(alone[half..], beside[half..]);
}
