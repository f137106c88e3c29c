//! The likelihood of images: what it is the sum of, and what it depends on.

mod common;
mod harness;
mod tiny;

use common::{max_rel_err, rel_err};
use demist::Error;
use demist::diffusion::{
    DiffusionConfig, ImageLikelihood, Likelihood, LikelihoodGraph, LikelihoodJob, MeanType,
    SpacedSchedule, VarType,
};
use demist::model::UNetConfig;
use tiny::{CLASSES, LEN, batch, context, dense, short, unet, upload};

const STEPS: usize = 12;

struct Scorer {
    likelihood: Likelihood,
    seed: u64,
}

/// How a scorer is made.
#[derive(Clone)]
struct Setup {
    diffusion: DiffusionConfig,
    respacing: &'static str,
    batch: usize,
    clip: bool,
    given: bool,
}

impl Setup {
    fn new(var_type: VarType) -> Setup {
        let diffusion = DiffusionConfig { var_type, ..short(STEPS) };
        Setup { diffusion, respacing: "", batch: 5, clip: true, given: false }
    }

    fn model(&self) -> UNetConfig {
        let out_channels = if self.diffusion.var_type.is_learned() { 6 } else { 3 };
        UNetConfig { out_channels, ..unet() }
    }

    fn compile(&self) -> Scorer {
        let ctx = context();
        let Setup { diffusion, respacing, batch, clip, given } = self.clone();
        let graph = LikelihoodGraph::new(&self.model(), &diffusion, batch, clip, given).unwrap();
        let plan = graph.plan(&ctx.gpu.caps).unwrap();
        let params = &graph.graph.params;
        // Small outputs, so that a learned variance stays near the given ones.
        let mut weights = dense(params, "likelihood.");
        for (_, w) in params.iter().zip(&mut weights).filter(|(p, _)| p.name.starts_with("out.2")) {
            w.iter_mut().for_each(|v| *v *= 0.3);
        }
        let flat = upload(&plan, params, &weights);
        let likelihood =
            Likelihood::compile(ctx, graph, plan, &diffusion, respacing, &flat).unwrap();
        Scorer { likelihood, seed: 4 }
    }
}

impl Scorer {
    fn try_score(
        &self,
        first: u64,
        images: &[f32],
        labels: &[u32],
    ) -> demist::Result<Vec<ImageLikelihood>> {
        let job = LikelihoodJob { first, images, labels, seed: self.seed };
        self.likelihood.evaluate(context(), &job, None, &mut || Ok(()))
    }

    fn score(&self, first: u64, images: &[f32], labels: &[u32]) -> Vec<ImageLikelihood> {
        self.try_score(first, images, labels).unwrap()
    }
}

const VAR_TYPES: [VarType; 4] =
    [VarType::FixedSmall, VarType::FixedLarge, VarType::Learned, VarType::LearnedRange];

#[test]
fn the_bound_is_the_prior_and_the_sum_of_all_terms() {
    let (images, labels) = batch(5);
    for var_type in VAR_TYPES {
        let setup = Setup::new(var_type);
        let scorer = setup.compile();
        assert_eq!((scorer.likelihood.batch(), scorer.likelihood.steps()), (5, STEPS));
        let last_first: Vec<usize> = (0..STEPS).rev().collect();
        assert_eq!(scorer.likelihood.timesteps(), last_first);
        let scores = scorer.score(0, &images, &labels);
        assert_eq!(scores.len(), 5);
        let tables = SpacedSchedule::new(&setup.diffusion, "").unwrap().tables().unwrap();
        for (score, image) in scores.iter().zip(images.chunks(LEN)) {
            let sum = score.prior_bpd + score.vb.iter().sum::<f64>();
            assert!((score.total_bpd() - sum).abs() < 1e-12 * sum);
            for terms in [&score.vb, &score.mse, &score.xstart_mse] {
                assert_eq!(terms.len(), STEPS);
                let sound = |v: &f64| v.is_finite() && *v >= 0.0;
                assert!(terms.iter().all(sound), "{var_type:?}: {terms:?}");
            }
            assert!(score.total_bpd() > 0.1, "{var_type:?}: {score:?}");
            // KL of N(sqrt(a) x, 1 - a) from N(0, 1), as the textbook has it.
            let a = tables.alphas_cumprod[STEPS - 1];
            let kl = |x: &f32| 0.5 * ((1.0 - a) + a * f64::from(*x).powi(2) - 1.0 - (1.0 - a).ln());
            let prior = image.iter().map(kl).sum::<f64>() / LEN as f64 / std::f64::consts::LN_2;
            assert!((score.prior_bpd - prior).abs() < 1e-9, "{} {prior}", score.prior_bpd);
        }
    }
}

/// Of a prediction without limits, the errors of image and noise are multiples.
#[test]
fn errors_of_image_and_noise_belong_together() {
    let (images, labels) = batch(2);
    for mean_type in [MeanType::Epsilon, MeanType::XStart] {
        let mut setup = Setup::new(VarType::FixedLarge);
        setup.diffusion.mean_type = mean_type;
        setup.clip = false;
        let tables = SpacedSchedule::new(&setup.diffusion, "").unwrap().tables().unwrap();
        let free = setup.compile().score(0, &images, &labels);
        for score in &free {
            for (done, (x0, noise)) in score.xstart_mse.iter().zip(&score.mse).enumerate() {
                let abar = tables.alphas_cumprod[STEPS - 1 - done];
                let ratio = noise / x0 * (1.0 - abar) / abar;
                assert!((ratio - 1.0).abs() < 1e-2, "{mean_type:?}, term {done}: {ratio}");
            }
        }
        setup.clip = true;
        let clipped = setup.compile().score(0, &images, &labels);
        // Images lie within the limits.
        for (clipped, free) in clipped.iter().zip(&free) {
            let pairs = clipped.xstart_mse.iter().zip(&free.xstart_mse);
            assert!(pairs.clone().all(|(c, f)| *c <= f * (1.0 + 1e-5)));
            // The small outputs as such lie within them too, what follows from
            // a predicted noise does not.
            let limited = pairs.clone().any(|(c, f)| c < f);
            assert_eq!(limited, mean_type == MeanType::Epsilon);
        }
    }
}

fn all_terms(scores: &[ImageLikelihood]) -> Vec<f64> {
    let of = |s: &ImageLikelihood| [&[s.prior_bpd][..], &s.vb, &s.xstart_mse, &s.mse].concat();
    scores.iter().flat_map(of).collect()
}

/// Five images at once, and in batches of two of which the last is half empty.
#[test]
fn a_score_depends_on_image_and_number_only() {
    let (images, labels) = batch(5);
    for var_type in [VarType::FixedSmall, VarType::LearnedRange] {
        let setup = Setup { respacing: "4", ..Setup::new(var_type) };
        let five = setup.compile();
        let whole = five.score(30, &images, &labels);
        assert_eq!(whole, five.score(30, &images, &labels), "not reproducible");
        let two = Setup { batch: 2, ..setup.clone() }.compile();
        let mut parts = Vec::new();
        for (i, (images, labels)) in images.chunks(2 * LEN).zip(labels.chunks(2)).enumerate() {
            parts.extend(two.score(30 + 2 * i as u64, images, labels));
        }
        let error = rel_err(&all_terms(&parts), &all_terms(&whole));
        assert!(error < 1e-4, "{var_type:?}: {error:.1e}");
        // The neighbours do not matter, their number and the seed do.
        let one = five.score(32, &images[2 * LEN..3 * LEN], &labels[2..3]);
        assert_eq!(one[0], whole[2]);
        let elsewhere = five.score(31, &images[2 * LEN..3 * LEN], &labels[2..3]);
        assert!(elsewhere[0].vb != whole[2].vb);
        assert_eq!(elsewhere[0].prior_bpd, whole[2].prior_bpd);
        let mut reseeded = setup.compile();
        reseeded.seed = 5;
        assert!(reseeded.score(30, &images, &labels)[2].vb != whole[2].vb);
        // So does the class.
        let flipped: Vec<u32> = labels.iter().map(|l| 1 - l).collect();
        assert!(five.score(30, &images, &flipped)[2].vb != whole[2].vb);
    }
}

#[test]
fn fewer_timesteps_make_a_shorter_sum() {
    let (images, labels) = batch(2);
    let mut totals = Vec::new();
    for (respacing, steps) in [("", STEPS), ("6", 6), ("ddim4", 4), ("2", 2)] {
        let scorer = Setup { respacing, ..Setup::new(VarType::FixedSmall) }.compile();
        assert_eq!(scorer.likelihood.steps(), steps);
        let timesteps = scorer.likelihood.timesteps();
        assert!(timesteps.len() == steps && timesteps.is_sorted_by(|a, b| a > b), "{timesteps:?}");
        let scores = scorer.score(0, &images, &labels);
        for score in &scores {
            assert_eq!([score.vb.len(), score.mse.len(), score.xstart_mse.len()], [steps; 3]);
            let sum = score.prior_bpd + score.vb.iter().sum::<f64>();
            assert!((score.total_bpd() - sum).abs() < 1e-12 * sum && sum.is_finite());
        }
        totals.push(scores[0].total_bpd());
        // Both keep the first and the last timestep, so the prior is the same.
        if steps != 4 {
            assert!(max_rel_err(&[scores[0].prior_bpd], &[prior(&images[..LEN])], 1e-9) < 1e-6);
        }
    }
    // A bound over larger steps is another bound.
    assert!(totals.windows(2).all(|w| (w[0] - w[1]).abs() > 1e-3 * w[0]), "{totals:?}");
    let bad = Setup::new(VarType::FixedSmall);
    let graph = LikelihoodGraph::new(&bad.model(), &bad.diffusion, 1, true, false).unwrap();
    let plan = graph.plan(&context().gpu.caps).unwrap();
    let flat = upload(&plan, &graph.graph.params, &dense(&graph.graph.params, ""));
    let error = Likelihood::compile(context(), graph, plan, &bad.diffusion, "13", &flat);
    assert!(error.err().unwrap().to_string().contains("13"));
}

fn prior(image: &[f32]) -> f64 {
    let tables = SpacedSchedule::new(&short(STEPS), "").unwrap().tables().unwrap();
    tables.prior_bpd(image)
}

/// The host's noise in place of the device's: exactly where the graph takes it.
#[test]
fn noise_is_given_exactly_where_it_is_taken() {
    let (images, labels) = batch(5);
    let drawn = Setup::new(VarType::FixedSmall);
    let given = Setup { given: true, ..drawn.clone() }.compile();
    let job = LikelihoodJob { first: 0, images: &images, labels: &labels, seed: 4 };
    let mut asked = std::cell::RefCell::new(Vec::new());
    let noise = |done: usize| {
        asked.borrow_mut().push(done);
        // As the device draws it, from seed, kept timestep and image.
        let mut noise = vec![0.0; 5 * LEN];
        for (i, z) in noise.chunks_mut(LEN).enumerate() {
            let step = (STEPS - 1 - done) as u32;
            demist::engine::rng::fill_normal(
                z,
                4,
                step,
                demist::engine::rng::STREAM_NOISE_TRAIN,
                i as u32,
            );
        }
        noise
    };
    let scores = given.likelihood.evaluate(context(), &job, Some(&noise), &mut || Ok(())).unwrap();
    assert_eq!(*asked.get_mut(), (0..STEPS).collect::<Vec<_>>());
    let scorer = drawn.compile();
    let error = rel_err(&all_terms(&scores), &all_terms(&scorer.score(0, &images, &labels)));
    assert!(error < 1e-4, "{error:.1e}");
    let zeros = |_: usize| vec![0f32; 5 * LEN];
    let wrong = [(&given, None), (&scorer, Some(&zeros as &dyn Fn(usize) -> Vec<f32>))];
    for (scorer, noise) in wrong {
        let result = scorer.likelihood.evaluate(context(), &job, noise, &mut || Ok(()));
        let error = result.unwrap_err().to_string();
        assert!(error.contains("noise must be given"), "{error}");
    }
    let short = |_: usize| vec![0.0; LEN];
    assert!(given.likelihood.evaluate(context(), &job, Some(&short), &mut || Ok(())).is_err());
}

#[test]
fn what_does_not_fit_is_an_error() {
    let upsampler = UNetConfig { small_size: Some(4), ..unet() };
    let error = LikelihoodGraph::new(&upsampler, &short(STEPS), 1, true, false).err().unwrap();
    assert!(matches!(&error, Error::Config(t) if t.contains("super-resolution")), "{error}");
    let scorer = Setup::new(VarType::FixedSmall).compile();
    let (images, labels) = batch(6);
    let faults = [
        (6 * LEN, 6, "batch of 5"),
        (2 * LEN + 1, 2, "385 values"),
        (2 * LEN, 1, "1 labels"),
        (2 * LEN, 3, "3 labels"),
    ];
    for (values, count, hint) in faults {
        let error = scorer.try_score(0, &images[..values], &labels[..count]).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error:?}");
        assert!(error.to_string().contains(hint), "{error}");
    }
    let error = scorer.try_score(0, &images[..LEN], &[CLASSES as u32]).unwrap_err();
    assert!(error.to_string().contains("label 2"), "{error}");
    // A learned variance needs channels.
    let learned = DiffusionConfig { var_type: VarType::Learned, ..short(STEPS) };
    assert!(LikelihoodGraph::new(&unet(), &learned, 1, true, false).is_err());
    // Its progress may stop it.
    let mut calls = 0;
    let mut stop = || {
        calls += 1;
        if calls == 3 { Err(Error::Config("enough".into())) } else { Ok(()) }
    };
    let job = LikelihoodJob { first: 0, images: &images[..LEN], labels: &[0], seed: 0 };
    let error = scorer.likelihood.evaluate(context(), &job, None, &mut stop).unwrap_err();
    assert!(error.to_string().contains("enough") && calls == 3);
    assert_eq!(scorer.score(0, &[], &[]), []);
}
