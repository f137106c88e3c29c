//! The fused sampling step against its CPU twin, with coefficients of real
//! schedules, and its noise.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::diffusion::{
    DiffusionConfig, MeanType, NoiseSchedule, Sampler, Tables, VarType, named_betas,
};
use demist::engine::graph::{DType, Graph, TensorId};
use demist::engine::ops::Update;
use demist::engine::ops::{DENOISE_COEFS, DenoiseInputs, add, denoise, denoise_coefs};
use demist::engine::rng;
use demist::reference;
use demist::reference::denoise::{Operands, forward as twin};
use forward::{Input, forward};
use harness::{rel_err, values};

const SEED: u64 = 77;

/// What a step is given beside x and the network's output.
#[derive(Debug, Clone, Copy, Default)]
struct Extras {
    given: bool,
    guided: bool,
    unconditional: bool,
    keep_x0: bool,
}

/// A denoising step as a graph of its own.
struct Step {
    graph: Graph,
    inputs: DenoiseInputs,
    x0: Option<TensorId>,
}

impl Step {
    fn new([n, h, w, c, wide]: [usize; 5], extras: Extras) -> Self {
        let mut graph = Graph::new();
        let image = [n, h, w, c];
        let rows = if extras.unconditional { 2 * n } else { n };
        let inputs = DenoiseInputs {
            x: graph.input("x", &image, DType::F32),
            out: graph.input("out", &[rows, h, w, wide], DType::F32),
            coefs: graph.input("coefs", &[DENOISE_COEFS], DType::F32),
            rng: graph.input("rng", &[4], DType::U32),
            noise: extras.given.then(|| graph.input("noise", &image, DType::F32)),
            guidance: extras.guided.then(|| graph.input("guidance", &image, DType::F32)),
            unconditional: extras.unconditional,
        };
        let x0 = denoise(&mut graph, inputs, extras.keep_x0).unwrap();
        assert_eq!(x0.is_some(), extras.keep_x0);
        Step { graph, inputs, x0 }
    }

    /// x' and, if kept, x0; noise is drawn for `first` up if none is given.
    fn run(&self, u: &Update, d: &Data, first: u32) -> Vec<Vec<f32>> {
        let coefs = denoise_coefs(u);
        let [low, high] = rng::key(SEED);
        let state = [low, high, 31, first];
        let mut inputs = vec![
            (self.inputs.x, Input::F32(&d.x)),
            (self.inputs.out, Input::F32(&d.out)),
            (self.inputs.coefs, Input::F32(&coefs)),
            (self.inputs.rng, Input::U32(&state)),
        ];
        inputs.extend(self.inputs.noise.map(|id| (id, Input::F32(&d.noise))));
        inputs.extend(self.inputs.guidance.map(|id| (id, Input::F32(&d.gradient))));
        let keep: Vec<_> = [self.inputs.x].into_iter().chain(self.x0).collect();
        forward(&self.graph, None, &inputs, &keep)
    }
}

/// Contents of a step's operands.
struct Data {
    x: Vec<f32>,
    out: Vec<f32>,
    noise: Vec<f32>,
    gradient: Vec<f32>,
}

impl Data {
    fn new([n, h, w, c, wide]: [usize; 5], unconditional: bool) -> Self {
        let pixels = n * h * w;
        let rows = if unconditional { 2 } else { 1 };
        let scaled = |seed, len| values(seed, len).iter().map(|v| 1.7 * v).collect();
        Data {
            x: scaled(1, pixels * c),
            out: scaled(2, rows * pixels * wide),
            noise: values(3, pixels * c),
            gradient: scaled(4, pixels * c),
        }
    }

    /// What the twin makes of it.
    fn expected(
        &self,
        u: &Update,
        [n, h, w, c, wide]: [usize; 5],
        extras: Extras,
    ) -> reference::denoise::DenoiseOutput<f32> {
        let with = &self.out[..n * h * w * wide];
        let without = channels(&self.out[with.len()..], wide, 0..c);
        let variance = if wide == 2 * c { channels(with, wide, c..wide) } else { vec![] };
        let out = channels(with, wide, 0..c);
        let operands = Operands {
            without: extras.unconditional.then_some(&without[..]),
            variance: (wide == 2 * c).then_some(&variance[..]),
            gradient: extras.guided.then_some(&self.gradient[..]),
            noise: Some(&self.noise),
            ..Operands::new(&self.x, &out)
        };
        twin(u, &operands)
    }
}

/// Some of every `wide` channels.
fn channels(out: &[f32], wide: usize, used: std::ops::Range<usize>) -> Vec<f32> {
    out.chunks(wide).flat_map(|pixel| pixel[used.clone()].iter().copied()).collect()
}

fn updates(var_type: VarType) -> Vec<(String, Update)> {
    let tables = Tables::new(&named_betas(NoiseSchedule::Cosine, 50).unwrap()).unwrap();
    let samplers = [
        Sampler::Ddpm,
        Sampler::Ddim { eta: 0.0 },
        Sampler::Ddim { eta: 0.6 },
        Sampler::DdimReverse,
    ];
    let mut all = Vec::new();
    for sampler in samplers {
        for mean_type in [MeanType::Epsilon, MeanType::XStart] {
            for clip in [false, true] {
                let config = DiffusionConfig { mean_type, var_type, ..Default::default() };
                for i in [0, 1, 25] {
                    let name = format!("{sampler:?} {mean_type:?} clip {clip} step {i}");
                    let update = tables.update_for(i, sampler, &config, clip);
                    all.push((name, Update { guidance_free: 2.5, ..update }));
                }
            }
        }
    }
    all
}

/// Errors seen on llvmpipe: at most 6e-7.
fn check(shape: [usize; 5], var_type: VarType, extras: Extras) {
    let d = Data::new(shape, extras.unconditional);
    let step = Step::new(shape, extras);
    for (name, u) in updates(var_type) {
        let name = format!("{shape:?} {var_type:?} {extras:?} {name}");
        let got = step.run(&u, &d, 0);
        let want = d.expected(&u, shape, extras);
        let e = rel_err(&got[0], &want.x_prev);
        assert!(e < 2e-6, "{name}: {e:.2e}");
        if extras.keep_x0 {
            let e = rel_err(&got[1], &want.x0);
            assert!(e < 2e-6, "{name}: x0 {e:.2e}");
        }
    }
}

#[test]
fn matches_its_twin_with_given_noise() {
    for shape in [[3, 17, 13, 3, 3], [2, 8, 8, 3, 3], [2, 8, 8, 3, 6], [3, 5, 1, 1, 2]] {
        for keep_x0 in [false, true] {
            let extras = Extras { given: true, keep_x0, ..Default::default() };
            check(shape, VarType::FixedLarge, extras);
        }
    }
}

#[test]
fn learned_variances_scale_the_noise() {
    for shape in [[3, 7, 5, 3, 6], [2, 8, 8, 3, 6], [3, 5, 1, 1, 2]] {
        for var_type in [VarType::Learned, VarType::LearnedRange] {
            for guided in [false, true] {
                let extras = Extras { given: true, guided, ..Default::default() };
                check(shape, var_type, extras);
            }
        }
    }
}

/// Channels that are no variance are not looked at, be they infinite.
#[test]
fn further_channels_of_a_fixed_variance_are_not_read() {
    let (shape, extras) = ([2, 3, 3, 1, 2], Extras { given: true, ..Default::default() });
    let mut d = Data::new(shape, false);
    for pixel in d.out.chunks_mut(2) {
        pixel[1] = f32::INFINITY;
    }
    let (_, u) = updates(VarType::FixedSmall).remove(2);
    assert!(u.sigma > 0.0);
    let got = Step::new(shape, extras).run(&u, &d, 0);
    let want = twin(
        &u,
        &Operands { noise: Some(&d.noise), ..Operands::new(&d.x, &channels(&d.out, 2, 0..1)) },
    );
    assert!(rel_err(&got[0], &want.x_prev) < 2e-6);
}

#[test]
fn classifiers_guide() {
    for shape in [[3, 7, 5, 3, 3], [2, 8, 8, 3, 6], [1, 4, 4, 4, 4]] {
        for var_type in [VarType::FixedSmall, VarType::FixedLarge] {
            let extras = Extras { given: true, guided: true, keep_x0: true, ..Default::default() };
            check(shape, var_type, extras);
        }
    }
}

#[test]
fn predictions_without_a_class_guide() {
    for shape in [[3, 7, 5, 3, 3], [2, 8, 8, 3, 3], [2, 8, 8, 3, 6], [3, 5, 1, 1, 2]] {
        for guided in [false, true] {
            let extras = Extras { given: true, guided, unconditional: true, keep_x0: true };
            check(shape, VarType::FixedLarge, extras);
            if shape[4] == 2 * shape[3] {
                check(shape, VarType::LearnedRange, extras);
            }
        }
    }
}

/// Scale 1 is the conditional prediction alone, scale 0 the other one.
#[test]
fn scales_of_0_and_1_choose_a_prediction() {
    let shape = [2, 4, 4, 3, 3];
    let extras = Extras { given: true, unconditional: true, ..Default::default() };
    let d = Data::new(shape, true);
    let half = d.out.len() / 2;
    let (_, u) = updates(VarType::FixedLarge).remove(2);
    for (guidance_free, out) in [(1.0, &d.out[..half]), (0.0, &d.out[half..])] {
        let got = Step::new(shape, extras).run(&Update { guidance_free, ..u }, &d, 0);
        let want = twin(&u, &Operands { noise: Some(&d.noise), ..Operands::new(&d.x, out) });
        assert!(rel_err(&got[0], &want.x_prev) < 2e-6);
    }
}

#[test]
fn draws_its_own_noise() {
    for (shape, var_type) in
        [([3, 17, 13, 3, 6], VarType::LearnedRange), ([2, 8, 8, 4, 4], VarType::FixedLarge)]
    {
        let extras = Extras { keep_x0: true, ..Default::default() };
        let mut d = Data::new(shape, false);
        let image = shape[1] * shape[2] * shape[3];
        rng::fill_normal_batch(&mut d.noise, image, SEED, 31, rng::STREAM_STEP, 12);
        let step = Step::new(shape, extras);
        for (name, u) in updates(var_type) {
            let got = step.run(&u, &d, 12);
            let e = rel_err(&got[0], &d.expected(&u, shape, extras).x_prev);
            assert!(e < 1e-5, "{shape:?} {name}: {e:.2e}");
        }
    }
}

#[test]
fn noise_does_not_depend_on_the_batch() {
    let with_noise = |(_, u): &(String, Update)| u.sigma > 0.0;
    let (name, u) = updates(VarType::FixedLarge).into_iter().rfind(with_noise).unwrap();
    let image = 9 * 7 * 3;
    let d = Data::new([4, 9, 7, 3, 3], false);
    let all = Step::new([4, 9, 7, 3, 3], Extras::default()).run(&u, &d, 40);
    let half = Step::new([2, 9, 7, 3, 3], Extras::default());
    for i in 0..2 {
        let range = i * 2 * image..(i + 1) * 2 * image;
        let [x, out] = [&d.x, &d.out].map(|v| v[range.clone()].to_vec());
        let part = Data { x, out, noise: vec![], gradient: vec![] };
        assert_eq!(half.run(&u, &part, 40 + 2 * i as u32)[0], all[0][range], "{name}");
    }
}

/// At sigma 0 not even infinite noise gets in.
#[test]
fn the_last_step_is_free_of_noise() {
    for var_type in [VarType::FixedLarge, VarType::LearnedRange] {
        let (_, u) = updates(var_type).remove(0);
        assert_eq!(u.sigma, 0.0);
        let mut d = Data::new([1, 4, 4, 3, 6], false);
        d.noise = vec![f32::INFINITY; 48];
        let extras = Extras { given: true, ..Default::default() };
        let got = Step::new([1, 4, 4, 3, 6], extras).run(&u, &d, 0);
        let want = twin(&u, &Operands::new(&d.x, &channels(&d.out, 6, 0..3)));
        assert!(rel_err(&got[0], &want.x_prev) < 2e-6);
    }
}

/// What reads x before the step sees the old image, what reads it after the new.
#[test]
fn x_is_updated_in_place_and_in_order() {
    let mut g = Graph::new();
    let x = g.input("x", &[1, 3, 3, 3], DType::F32);
    let coefs = g.input("coefs", &[DENOISE_COEFS], DType::F32);
    let r = g.input("rng", &[4], DType::U32);
    let out = add(&mut g, x, x).unwrap();
    denoise(&mut g, plain(x, out, coefs, r), false).unwrap();
    let after = add(&mut g, x, out).unwrap();
    let u = Update { sigma: 0.0, ..updates(VarType::FixedLarge)[12].1 };
    let image = values(10, 27);
    let c = denoise_coefs(&u);
    let inputs = [(x, Input::F32(&image)), (coefs, Input::F32(&c)), (r, Input::U32(&[0; 4]))];
    let got = forward(&g, None, &inputs, &[out, x, after]);
    let doubled: Vec<f32> = image.iter().map(|v| 2.0 * v).collect();
    assert_eq!(got[0], doubled);
    let want = twin(&u, &Operands::new(&image, &doubled)).x_prev;
    assert!(rel_err(&got[1], &want) < 2e-6);
    assert!(reference::max_abs_error(&got[1], &image) > 0.01);
    let sum: Vec<f32> = got[1].iter().zip(&doubled).map(|(a, b)| a + b).collect();
    assert_eq!(got[2], sum);
}

fn plain(x: TensorId, out: TensorId, coefs: TensorId, rng: TensorId) -> DenoiseInputs {
    DenoiseInputs { x, out, coefs, rng, noise: None, guidance: None, unconditional: false }
}

#[test]
fn impossible_operands_are_errors() {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 4, 4, 3], DType::F32);
    let narrow = g.input("narrow", &[2, 4, 4, 2], DType::F32);
    let coefs = g.input("coefs", &[DENOISE_COEFS], DType::F32);
    let r = g.input("rng", &[4], DType::U32);
    let computed = add(&mut g, x, x).unwrap();
    let good = plain(x, computed, coefs, r);
    let error = denoise(&mut g, DenoiseInputs { out: narrow, ..good }, false).unwrap_err();
    assert_eq!(error.to_string(), "denoise: out is F32 [2, 4, 4, 2], F32 [2, 4, 4, 3] is needed");
    let error = denoise(&mut g, DenoiseInputs { x: computed, ..good }, false).unwrap_err();
    assert_eq!(error.to_string(), "denoise: only an input can be updated in place");
    let bad = [
        DenoiseInputs { coefs: r, ..good },
        DenoiseInputs { rng: coefs, ..good },
        DenoiseInputs { noise: Some(narrow), ..good },
        DenoiseInputs { guidance: Some(narrow), ..good },
        DenoiseInputs { unconditional: true, ..good },
    ];
    for bad in bad {
        assert!(denoise(&mut g, bad, false).is_err(), "{bad:?}");
    }
    assert!(denoise(&mut g, good, true).is_ok());
}
