//! The fused sampling step against its CPU twin, with coefficients of real
//! schedules, and its noise.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::diffusion::{DiffusionConfig, Sampler, Tables, Update, named_betas};
use demist::diffusion::{MeanType, NoiseSchedule};
use demist::graph::{DType, Graph, TensorId};
use demist::ops::{DENOISE_COEFS, add, denoise, denoise_coefs};
use demist::reference::denoise::{DenoiseParams, Kind, forward as twin};
use demist::{reference, rng};
use forward::{Input, forward};
use harness::{rel_err, values};

const SEED: u64 = 77;

fn twin_params(u: &Update) -> DenoiseParams {
    DenoiseParams {
        kind: if u.kind == 0 { Kind::Ddpm } else { Kind::Ddim },
        predicts_x0: u.predicts_x0 != 0,
        clip: u.clip != 0,
        sqrt_recip_abar: u.sqrt_recip_abar,
        sqrt_recipm1_abar: u.sqrt_recipm1_abar,
        coef1: u.coef1,
        coef2: u.coef2,
        sqrt_abar_prev: u.sqrt_abar_prev,
        dir: u.dir,
        sigma: u.sigma,
    }
}

/// A denoising step as a graph of its own.
struct Step {
    graph: Graph,
    x: TensorId,
    out: TensorId,
    coefs: TensorId,
    rng: TensorId,
    noise: Option<TensorId>,
    x0: Option<TensorId>,
}

impl Step {
    fn new([n, h, w, c, wide]: [usize; 5], given: bool, keep_x0: bool) -> Self {
        let mut graph = Graph::new();
        let x = graph.input("x", &[n, h, w, c], DType::F32);
        let out = graph.input("out", &[n, h, w, wide], DType::F32);
        let coefs = graph.input("coefs", &[DENOISE_COEFS], DType::F32);
        let rng = graph.input("rng", &[4], DType::U32);
        let noise = given.then(|| graph.input("noise", &[n, h, w, c], DType::F32));
        let x0 = denoise(&mut graph, x, out, coefs, rng, noise, keep_x0).unwrap();
        assert_eq!(x0.is_some(), keep_x0);
        Step { graph, x, out, coefs, rng, noise, x0 }
    }

    /// x' and, if kept, x0; noise is drawn for `first` up if none is given.
    fn run(&self, u: &Update, x: &[f32], out: &[f32], noise: &[f32], first: u32) -> Vec<Vec<f32>> {
        let coefs = denoise_coefs(u);
        let [low, high] = rng::key(SEED);
        let state = [low, high, 31, first];
        let mut inputs = vec![
            (self.x, Input::F32(x)),
            (self.out, Input::F32(out)),
            (self.coefs, Input::F32(&coefs)),
            (self.rng, Input::U32(&state)),
        ];
        inputs.extend(self.noise.map(|id| (id, Input::F32(noise))));
        let keep: Vec<_> = [self.x].into_iter().chain(self.x0).collect();
        forward(&self.graph, None, &inputs, &keep)
    }
}

/// The first `c` of every `wide` channels.
fn used(out: &[f32], wide: usize, c: usize) -> Vec<f32> {
    out.chunks(wide).flat_map(|pixel| pixel[..c].iter().copied()).collect()
}

fn updates() -> Vec<(String, Update)> {
    let tables = Tables::new(&named_betas(NoiseSchedule::Cosine, 50).unwrap()).unwrap();
    let mut all = Vec::new();
    for sampler in [Sampler::Ddpm, Sampler::Ddim { eta: 0.0 }, Sampler::Ddim { eta: 0.6 }] {
        for mean_type in [MeanType::Epsilon, MeanType::XStart] {
            for clip in [false, true] {
                let config = DiffusionConfig { mean_type, ..Default::default() };
                for i in [0, 1, 25] {
                    let name = format!("{sampler:?} {mean_type:?} clip {clip} step {i}");
                    all.push((name, tables.update_for(i, sampler, &config, clip)));
                }
            }
        }
    }
    all
}

#[test]
fn matches_its_twin_with_given_noise() {
    for shape in [[3, 17, 13, 3, 3], [2, 8, 8, 3, 3], [2, 8, 8, 3, 6], [3, 5, 1, 1, 2]] {
        let [n, h, w, c, wide] = shape;
        let x: Vec<f32> = values(1, n * h * w * c).iter().map(|v| 1.7 * v).collect();
        let out: Vec<f32> = values(2, n * h * w * wide).iter().map(|v| 1.7 * v).collect();
        let noise = values(3, x.len());
        for keep_x0 in [false, true] {
            let step = Step::new(shape, true, keep_x0);
            for (name, u) in updates() {
                let got = step.run(&u, &x, &out, &noise, 0);
                let want = twin(&twin_params(&u), &x, &used(&out, wide, c), Some(&noise));
                let e = rel_err(&got[0], &want.x_prev);
                assert!(e < 2e-6, "{shape:?} {name}: {e:.2e}");
                if keep_x0 {
                    let e = rel_err(&got[1], &want.x0);
                    assert!(e < 2e-6, "{shape:?} {name}: x0 {e:.2e}");
                }
            }
        }
    }
}

#[test]
fn draws_its_own_noise() {
    for shape in [[3, 17, 13, 3, 6], [2, 8, 8, 4, 4]] {
        let [n, h, w, c, wide] = shape;
        let x = values(4, n * h * w * c);
        let out = values(5, n * h * w * wide);
        let mut noise = vec![0.0; x.len()];
        rng::fill_normal_batch(&mut noise, h * w * c, SEED, 31, rng::STREAM_STEP, 12);
        let step = Step::new(shape, false, true);
        for (name, u) in updates() {
            let got = step.run(&u, &x, &out, &[], 12);
            let want = twin(&twin_params(&u), &x, &used(&out, wide, c), Some(&noise));
            let e = rel_err(&got[0], &want.x_prev);
            assert!(e < 1e-5, "{shape:?} {name}: {e:.2e}");
        }
    }
}

#[test]
fn noise_does_not_depend_on_the_batch() {
    let (name, u) = updates().into_iter().rfind(|(_, u)| u.sigma > 0.0).unwrap();
    let image = 9 * 7 * 3;
    let (x, out) = (values(6, 4 * image), values(7, 4 * image));
    let all = Step::new([4, 9, 7, 3, 3], false, false).run(&u, &x, &out, &[], 40);
    let half = Step::new([2, 9, 7, 3, 3], false, false);
    for i in 0..2 {
        let range = i * 2 * image..(i + 1) * 2 * image;
        let part = half.run(&u, &x[range.clone()], &out[range.clone()], &[], 40 + 2 * i as u32);
        assert_eq!(part[0], all[0][range], "{name}");
    }
}

/// At sigma 0 not even infinite noise gets in.
#[test]
fn the_last_step_is_free_of_noise() {
    let (_, u) = updates().remove(0);
    assert_eq!(u.sigma, 0.0);
    let (x, out) = (values(8, 48), values(9, 48));
    let got = Step::new([1, 4, 4, 3, 3], true, false).run(&u, &x, &out, &[f32::INFINITY; 48], 0);
    assert!(rel_err(&got[0], &twin(&twin_params(&u), &x, &out, None).x_prev) < 2e-6);
}

/// What reads x before the step sees the old image, what reads it after the new.
#[test]
fn x_is_updated_in_place_and_in_order() {
    let mut g = Graph::new();
    let x = g.input("x", &[1, 3, 3, 3], DType::F32);
    let coefs = g.input("coefs", &[DENOISE_COEFS], DType::F32);
    let r = g.input("rng", &[4], DType::U32);
    let out = add(&mut g, x, x).unwrap();
    denoise(&mut g, x, out, coefs, r, None, false).unwrap();
    let after = add(&mut g, x, out).unwrap();
    let u = Update { sigma: 0.0, ..updates()[12].1 };
    let image = values(10, 27);
    let c = denoise_coefs(&u);
    let inputs = [(x, Input::F32(&image)), (coefs, Input::F32(&c)), (r, Input::U32(&[0; 4]))];
    let got = forward(&g, None, &inputs, &[out, x, after]);
    let doubled: Vec<f32> = image.iter().map(|v| 2.0 * v).collect();
    assert_eq!(got[0], doubled);
    let want = twin(&twin_params(&u), &image, &doubled, None).x_prev;
    assert!(rel_err(&got[1], &want) < 2e-6);
    assert!(reference::max_abs_error(&got[1], &image) > 0.01);
    let sum: Vec<f32> = got[1].iter().zip(&doubled).map(|(a, b)| a + b).collect();
    assert_eq!(got[2], sum);
}

#[test]
fn impossible_operands_are_errors() {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 4, 4, 3], DType::F32);
    let narrow = g.input("narrow", &[2, 4, 4, 2], DType::F32);
    let coefs = g.input("coefs", &[DENOISE_COEFS], DType::F32);
    let r = g.input("rng", &[4], DType::U32);
    let computed = add(&mut g, x, x).unwrap();
    let error = denoise(&mut g, x, narrow, coefs, r, None, false).unwrap_err();
    assert_eq!(error.to_string(), "denoise: out is F32 [2, 4, 4, 2], F32 [2, 4, 4, 3] is needed");
    let error = denoise(&mut g, computed, x, coefs, r, None, false).unwrap_err();
    assert_eq!(error.to_string(), "denoise: only an input can be updated in place");
    assert!(denoise(&mut g, x, computed, r, r, None, false).is_err());
    assert!(denoise(&mut g, x, computed, coefs, coefs, None, false).is_err());
    assert!(denoise(&mut g, x, computed, coefs, r, Some(narrow), false).is_err());
}
