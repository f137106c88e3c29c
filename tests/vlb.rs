//! The variational bound against its CPU twin: every kind of variance, both
//! predictions, the likelihood of levels with its two ends, and its limits.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::diffusion::{DiffusionConfig, MeanType, NoiseSchedule, Tables, VarType, named_betas};
use demist::engine::graph::{DType, Graph};
use demist::engine::ops::VLB_COEFS;
use demist::engine::ops::{VlbOptions, likelihood_terms, vlb};
use demist::reference::vlb::{self as twin, VlbShape};
use forward::{Input, forward, forward_on};
use harness::{Case, Twin, device, rel_err, subgroup_device, values};

const VAR_TYPES: [VarType; 4] =
    [VarType::FixedSmall, VarType::FixedLarge, VarType::Learned, VarType::LearnedRange];

/// Largest relative error by norm; seen on llvmpipe: 2e-6.
const TOLERANCE: f64 = 5e-6;

/// How a bound is taken, with the kind of variance that its coefficients are made for.
#[derive(Debug, Clone, Copy)]
struct Options {
    mean_type: MeanType,
    var_type: VarType,
    mean_gradient: bool,
    clip: bool,
}

impl Options {
    fn of_op(self) -> VlbOptions {
        let Options { mean_type, var_type, mean_gradient, clip } = self;
        let diffusion = DiffusionConfig { mean_type, var_type, ..DiffusionConfig::default() };
        diffusion.vlb_options(mean_gradient, clip)
    }
}

/// One bound to be computed.
#[derive(Clone, Copy)]
struct Bound {
    /// Images, height, width, channels.
    shape: [usize; 4],
    options: Options,
    /// Steps of the images in turn.
    steps: [usize; 3],
}

impl Bound {
    fn twin(&self) -> VlbShape {
        let [n, h, w, c] = self.shape;
        VlbShape {
            n,
            hw: h * w,
            c,
            learned: self.options.var_type.is_learned(),
            predicts_x0: self.options.mean_type == MeanType::XStart,
            clip: self.options.clip,
        }
    }

    fn wide(&self) -> usize {
        self.shape[3] * if self.options.var_type.is_learned() { 2 } else { 1 }
    }

    fn coefs(&self, tables: &Tables) -> Vec<f32> {
        let step = |i: usize| self.steps[i % 3];
        (0..self.shape[0]).flat_map(|i| tables.vlb_coefs(step(i), self.options.var_type)).collect()
    }

    fn name(&self) -> String {
        // The data of a case follow from its name.
        format!("{:?} Vlb{:?} at {:?}", self.shape, self.options, self.steps)
    }
}

/// Three steps with variances so wide that a finite difference is one.
fn wide_tables() -> Tables {
    Tables::new(&[0.3, 0.4, 0.5, 0.6]).unwrap()
}

/// Clean images: levels of 256, many of them at the two ends.
fn levels(v: &[f32]) -> Vec<f32> {
    v.iter()
        .map(|v| (v * 160.0).clamp(-127.5, 127.5).round().clamp(-127.0, 128.0))
        .map(|k| (2.0 * k - 1.0) / 255.0)
        .collect()
}

fn case(bound: Bound, tolerance: f64, differentiable: bool) -> Case<'static> {
    let [n, h, w, c] = bound.shape;
    let s = bound.twin();
    Case {
        name: bound.name(),
        inputs: vec![
            vec![n, h, w, bound.wide()],
            vec![n, h, w, c],
            vec![n, h, w, c],
            vec![n, VLB_COEFS],
        ],
        integers: vec![],
        build: Box::new(move |g, x, _| vlb(g, x[0], x[1], x[2], x[3], bound.options.of_op())),
        twin: Box::new(move |a| {
            let [out, x0, x_t, coefs] = a.inputs else { panic!("four inputs") };
            let dout = twin::backward(&s, [out, x0, x_t, coefs, a.dy], bound.options.mean_gradient);
            let silent = !s.learned && !bound.options.mean_gradient;
            Twin {
                y: twin::forward(&s, out, x0, x_t, coefs),
                input_grads: vec![if silent { vec![] } else { dout }, vec![], vec![], vec![]],
                param_grads: vec![],
            }
        }),
        tolerance,
        differentiable,
    }
}

fn check(bound: Bound, tables: &Tables, tolerance: f64, differentiable: bool) {
    let coefs = bound.coefs(tables);
    for device in [device(), subgroup_device()] {
        case(bound, tolerance, differentiable).check_on(device, |i, v| match i {
            1 => levels(&v),
            3 => coefs.clone(),
            _ => v,
        });
    }
}

#[test]
fn matches_its_twin_and_finite_differences() {
    for var_type in VAR_TYPES {
        for mean_type in [MeanType::Epsilon, MeanType::XStart] {
            let options = Options { mean_type, var_type, mean_gradient: true, clip: false };
            for (shape, steps) in [([3, 7, 5, 3], [0, 1, 3]), ([2, 4, 4, 1], [0, 2, 1])] {
                check(Bound { shape, options, steps }, &wide_tables(), TOLERANCE, true);
            }
        }
    }
}

#[test]
fn without_mean_gradient_only_variances_learn() {
    for var_type in VAR_TYPES {
        let options =
            Options { mean_type: MeanType::Epsilon, var_type, mean_gradient: false, clip: false };
        let bound = Bound { shape: [3, 5, 4, 3], options, steps: [0, 1, 3] };
        // By finite differences the image channels would have a gradient.
        check(bound, &wide_tables(), TOLERANCE, false);
    }
}

#[test]
fn clamped_predictions_have_no_gradient() {
    for var_type in [VarType::FixedLarge, VarType::LearnedRange] {
        for mean_type in [MeanType::Epsilon, MeanType::XStart] {
            let options = Options { mean_type, var_type, mean_gradient: true, clip: true };
            let bound = Bound { shape: [3, 5, 4, 3], options, steps: [0, 1, 3] };
            // A difference over the clamp's corner is none.
            check(bound, &wide_tables(), TOLERANCE, false);
        }
    }
}

/// An image of 96 x 96 x 3 elements is divided into splits, and the tail of
/// one of 75 x 3 does not fill a block.
#[test]
fn divides_its_work() {
    let options = Options {
        mean_type: MeanType::Epsilon,
        var_type: VarType::LearnedRange,
        mean_gradient: true,
        clip: false,
    };
    for shape in [[2, 96, 96, 3], [1, 131, 129, 1], [70, 1, 1, 1], [1, 5, 15, 3]] {
        let bound = Bound { shape, options, steps: [0, 2, 1] };
        let coefs = bound.coefs(&wide_tables());
        for device in [device(), harness::narrow_device(), subgroup_device()] {
            case(bound, TOLERANCE, false).check_on(device, |i, v| match i {
                1 => levels(&v),
                3 => coefs.clone(),
                _ => v,
            });
        }
    }
}

/// Images, their noisy versions and a network's good guess of the noise.
struct Data {
    out: Vec<f32>,
    x0: Vec<f32>,
    x_t: Vec<f32>,
    noise: Vec<f32>,
}

fn data(bound: &Bound, tables: &Tables, error: f32) -> Data {
    let [n, h, w, c] = bound.shape;
    let (image, len) = (h * w * c, n * h * w * c);
    let x0 = levels(&values(1, len));
    let noise: Vec<f32> = values(2, len).iter().map(|v| 1.7 * v).collect();
    let guess: Vec<f32> =
        noise.iter().zip(values(3, len)).map(|(noise, v)| noise + error * v).collect();
    let variance = values(4, len);
    let step = |i: usize| bound.steps[i / image % 3];
    let x_t: Vec<f32> = (0..len)
        .map(|i| {
            let coefs = tables.q_sample_coefs(step(i));
            coefs.sqrt_abar * x0[i] + coefs.sqrt_one_minus_abar * noise[i]
        })
        .collect();
    let out = (0..len)
        .step_by(c)
        .flat_map(|pixel| {
            let range = pixel..pixel + c;
            let guess = &guess[range.clone()];
            let variance = if bound.wide() > c { &variance[range] } else { &[] };
            [guess, variance].concat()
        })
        .collect();
    Data { out, x0, x_t, noise }
}

/// The terms of real schedules from early to late steps, in bits. Late steps'
/// terms are small differences of close variances.
#[test]
fn is_accurate_on_real_schedules() {
    for (schedule, t) in [(NoiseSchedule::Linear, 1000), (NoiseSchedule::Cosine, 4000)] {
        let tables = Tables::new(&named_betas(schedule, t).unwrap()).unwrap();
        for var_type in [VarType::FixedLarge, VarType::LearnedRange] {
            for clip in [false, true] {
                let options =
                    Options { mean_type: MeanType::Epsilon, var_type, mean_gradient: true, clip };
                for (steps, error) in [([0, 1, 2], 0.3), ([20, t / 2, t - 1], 0.3)] {
                    let bound = Bound { shape: [3, 9, 7, 3], options, steps };
                    let d = data(&bound, &tables, error);
                    let coefs = bound.coefs(&tables);
                    let got = run(&bound, &d, &coefs);
                    let want = twin::likelihood_terms(
                        &bound.twin(),
                        [&d.out, &d.x0, &d.x_t, &d.noise, &coefs],
                    );
                    let name = bound.name();
                    for (i, (got, want)) in got[1].iter().zip(&want).enumerate() {
                        let e = f64::from((got - want).abs());
                        // Seen on llvmpipe: 2e-6 of the bound and 6e-6 of the
                        // squared errors, which are of differences; where the
                        // noise follows from x_t alone they are near 1e-10.
                        let tolerance = if i % 3 == 0 { 4e-6 } else { 2e-5 };
                        assert!(
                            e <= tolerance * f64::from(*want) + 1e-12,
                            "{name}: term {} of image {}: {got:e}, not {want:e}",
                            i % 3,
                            i / 3
                        );
                    }
                    let bits: Vec<f32> = got[1].iter().step_by(3).copied().collect();
                    assert_eq!(got[0], bits, "{name}");
                }
            }
        }
    }
}

/// The results of [`vlb`] and of [`likelihood_terms`].
fn run(bound: &Bound, d: &Data, coefs: &[f32]) -> Vec<Vec<f32>> {
    let [n, h, w, c] = bound.shape;
    let mut g = Graph::new();
    let out = g.input("out", &[n, h, w, bound.wide()], DType::F32);
    let [x0, x_t, noise] =
        ["x0", "x_t", "noise"].map(|name| g.input(name, &[n, h, w, c], DType::F32));
    let coefs_id = g.input("coefs", &[n, VLB_COEFS], DType::F32);
    let bits = vlb(&mut g, out, x0, x_t, coefs_id, bound.options.of_op()).unwrap();
    let terms =
        likelihood_terms(&mut g, out, x0, x_t, noise, coefs_id, bound.options.of_op()).unwrap();
    let inputs = [
        (out, Input::F32(&d.out)),
        (x0, Input::F32(&d.x0)),
        (x_t, Input::F32(&d.x_t)),
        (noise, Input::F32(&d.noise)),
        (coefs_id, Input::F32(coefs)),
    ];
    let got = forward(&g, None, &inputs, &[bits, terms]);
    let other = forward_on(subgroup_device(), &g, None, &inputs, &[bits, terms]);
    for (got, other) in got.iter().zip(&other) {
        let e = rel_err(other, got);
        assert!(e < 1e-6, "{}: {e:.2e} off when summed within subgroups", bound.name());
    }
    got
}

/// Probabilities from nearly 1 down to the floor, at either end and between,
/// against the formulas in float64, and their gradients. Taken as differences
/// of cumulative probabilities in float32, those below 1e-7 would be lost.
#[test]
fn small_probabilities_are_resolved() {
    let options = Options {
        mean_type: MeanType::XStart,
        var_type: VarType::Learned,
        mean_gradient: true,
        clip: false,
    };
    // One image per level and deviation, the mean walking away from the level.
    let (w, deviations) = (200, [0.004f32, 0.03, 0.5]);
    let images: Vec<(f32, f32)> = [-1.0, -253.0 / 255.0, 1.0 / 255.0, 253.0 / 255.0, 1.0]
        .iter()
        .flat_map(|level| deviations.map(|s| (*level, s)))
        .collect();
    let bound = Bound { shape: [images.len(), 1, w, 1], options, steps: [0; 3] };
    let far = |s: f32, i: usize| 9.0 * s * (2.0 * (i as f32 + 0.5) / w as f32 - 1.0);
    let out: Vec<f32> = images
        .iter()
        .flat_map(|(level, s)| (0..w).flat_map(move |i| [level + far(*s, i), 2.0 * s.ln()]))
        .collect();
    let x0: Vec<f32> = images.iter().flat_map(|(level, _)| vec![*level; w]).collect();
    let d = Data { out, x_t: x0.clone(), noise: x0.clone(), x0 };
    let coefs = bound.coefs(&wide_tables());
    let got = run(&bound, &d, &coefs).remove(0);
    let want = twin::forward(&bound.twin(), &d.out, &d.x0, &d.x_t, &coefs);
    let e = rel_err(&got, &want);
    // Seen on llvmpipe: 3e-7, and 3e-6 of the gradients.
    assert!(e < 2e-6, "{e:.2e}");
    for (image, bits) in images.iter().zip(&got) {
        assert!(*bits > 3.0 && f64::from(*bits) < -(1e-12f64.log2()), "{image:?}: {bits}");
    }
    let inputs = [d.out, d.x0, d.x_t, coefs];
    case(bound, 1e-5, false).check_on(device(), |i, _| inputs[i].clone());
}

#[test]
fn impossible_operands_are_errors() {
    let mut g = Graph::new();
    let image = g.input("image", &[2, 4, 4, 3], DType::F32);
    let wide = g.input("wide", &[2, 4, 4, 6], DType::F32);
    let few = g.input("few", &[1, 4, 4, 3], DType::F32);
    let coefs = g.input("coefs", &[2, VLB_COEFS], DType::F32);
    let short = g.input("short", &[2, 7], DType::F32);
    let learned = Options {
        mean_type: MeanType::Epsilon,
        var_type: VarType::Learned,
        mean_gradient: false,
        clip: false,
    };
    let fixed = Options { var_type: VarType::FixedSmall, ..learned };
    assert!(vlb(&mut g, wide, image, image, coefs, learned.of_op()).is_ok());
    assert!(vlb(&mut g, image, image, image, coefs, fixed.of_op()).is_ok());
    let error = vlb(&mut g, image, image, image, coefs, learned.of_op()).unwrap_err().to_string();
    assert_eq!(error, "vlb: out is F32 [2, 4, 4, 3], F32 [2, 4, 4, 6] is needed");
    assert!(vlb(&mut g, wide, image, image, coefs, fixed.of_op()).is_err());
    assert!(vlb(&mut g, wide, few, image, coefs, learned.of_op()).is_err());
    assert!(vlb(&mut g, wide, image, few, coefs, learned.of_op()).is_err());
    assert!(vlb(&mut g, wide, image, image, short, learned.of_op()).is_err());
    assert!(likelihood_terms(&mut g, wide, image, image, wide, coefs, learned.of_op()).is_err());
}
