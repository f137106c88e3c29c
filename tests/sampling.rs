//! Sampling as a whole: what an image depends on, and what it does not.

mod common;
mod harness;

use common::rel_err;
use demist::Error;
use demist::diffusion::{
    DiffusionConfig, SampleJob, SampleOptions, SampleProgress, Sampler, SamplingGraph,
    SamplingLoop, SamplingNeeds, SpacedSchedule,
};
use demist::engine::graph::{FlatKind, ParamLayout};
use demist::engine::ops::denoise_coefs;
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Program};
use demist::model::UNetConfig;

const SIZE: usize = 16;
const PIXELS: usize = SIZE * SIZE * 3;
const CLASSES: usize = 5;

fn context() -> Context<'static> {
    let (gpu, pipelines) = harness::device();
    Context { gpu, pipelines }
}

/// Two levels with attention, AdaGN and resampling in residual blocks; the six
/// output channels make the update skip the learned variance.
fn network() -> UNetConfig {
    UNetConfig {
        image_size: SIZE,
        model_channels: 32,
        out_channels: 6,
        num_res_blocks: 1,
        attention_resolutions: vec![2],
        dropout: 0.1,
        channel_mult: vec![1.0, 1.0],
        num_classes: Some(CLASSES),
        num_heads: 2,
        use_scale_shift_norm: true,
        resblock_updown: true,
        ..Default::default()
    }
}

/// Weights and averaged weights (which differ), nowhere zero.
fn flat() -> FlatBuffers {
    let params = SamplingGraph::new(&network(), 1, SamplingNeeds::default()).unwrap().graph.params;
    let gpu = context().gpu;
    let layout = ParamLayout::new(&params, gpu.caps.max_binding);
    let flat = FlatBuffers::new(gpu, &layout, &[FlatKind::Weights, FlatKind::Ema(0)]).unwrap();
    for (kind, salt) in [(FlatKind::Weights, "sampling."), (FlatKind::Ema(0), "average.")] {
        let values: Vec<_> = params
            .iter()
            .map(|p| p.to_device(&common::weight(salt, &p.name, &p.file_shape())))
            .collect();
        flat.write(gpu, kind, &params, &values).unwrap();
    }
    flat
}

fn sampler_of(batch: usize, flat: &FlatBuffers, kind: FlatKind) -> SamplingLoop {
    let diffusion = DiffusionConfig::default();
    SamplingLoop::new(context(), &network(), &diffusion, batch, flat, kind).unwrap()
}

fn options(sampler: Sampler, seed: u64) -> SampleOptions {
    SampleOptions { respacing: "8".into(), sampler, seed, ..Default::default() }
}

const DDIM: Sampler = Sampler::Ddim { eta: 0.0 };

/// Images number `first` and on, one for each label.
fn draw(sampler: &SamplingLoop, options: &SampleOptions, first: u64, labels: &[u32]) -> Vec<f32> {
    let job = SampleJob { first, count: labels.len(), labels, ..Default::default() };
    sampler.sample(context(), options, &job, &mut |_| Ok(())).unwrap()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// Images 5 to 12 at once, and in batches of 3 of which the last holds 2. The
/// batch size may change how sums are divided, so the test allows for rounding;
/// on llvmpipe (Mesa 22.3.6 and 25.0.7) the images come out equal to the bit.
#[test]
fn an_image_depends_on_seed_and_number_only() {
    let flat = flat();
    let labels = [0, 1, 2, 3, 4, 0, 1, 2];
    let (eight, three) =
        (sampler_of(8, &flat, FlatKind::Weights), sampler_of(3, &flat, FlatKind::Weights));
    assert_eq!(three.batch(), 3);
    for sampler in [Sampler::Ddpm, DDIM, Sampler::Ddim { eta: 0.7 }] {
        let options = options(sampler, 11);
        let whole = draw(&eight, &options, 5, &labels);
        let parts: Vec<f32> = labels
            .chunks(3)
            .enumerate()
            .flat_map(|(i, labels)| draw(&three, &options, 5 + 3 * i as u64, labels))
            .collect();
        let error = rel_err(&parts, &whole);
        assert!(error <= 1e-4, "{sampler:?}: the batch size changes images by {error:.1e}");
        for i in 1..labels.len() {
            let image = |i: usize| &whole[i * PIXELS..][..PIXELS];
            assert!(rel_err(image(i), image(0)) > 0.1, "images 0 and {i} are alike");
        }
    }
}

#[test]
fn the_seed_decides_every_bit() {
    let flat = flat();
    let sampler = sampler_of(2, &flat, FlatKind::Weights);
    for kind in [Sampler::Ddpm, DDIM] {
        let first = draw(&sampler, &options(kind, 3), 0, &[1, 4]);
        let again = draw(&sampler, &options(kind, 3), 0, &[1, 4]);
        assert!(bits(&first) == bits(&again), "{kind:?} is not reproducible");
        // Both words of the seed count.
        for seed in [4, 3 + (1 << 32)] {
            let other = draw(&sampler, &options(kind, seed), 0, &[1, 4]);
            assert!(rel_err(&other, &first) > 0.1, "{kind:?}: seed {seed} changes nothing");
        }
    }
    let average = sampler_of(2, &flat, FlatKind::Ema(0));
    let averaged = draw(&average, &options(DDIM, 3), 0, &[1, 4]);
    let plain = draw(&sampler, &options(DDIM, 3), 0, &[1, 4]);
    assert!(rel_err(&averaged, &plain) > 0.1, "the averaged weights are not used");
}

#[test]
fn a_label_changes_its_own_image_only() {
    let flat = flat();
    let sampler = sampler_of(3, &flat, FlatKind::Weights);
    let options = options(Sampler::Ddpm, 0);
    let all_zero = draw(&sampler, &options, 0, &[0, 0, 0]);
    for class in 1..CLASSES as u32 {
        let one = draw(&sampler, &options, 0, &[0, class, 0]);
        for (i, (a, b)) in one.chunks(PIXELS).zip(all_zero.chunks(PIXELS)).enumerate() {
            if i == 1 {
                assert!(rel_err(a, b) > 1e-2, "class {class} draws the image of class 0");
            } else {
                assert!(bits(a) == bits(b), "the label of image 1 changed image {i}");
            }
        }
    }
}

/// One run from a fixed x_T with the noise of the steps given.
fn with_noise(program: &Program, w: &SamplingGraph, kind: Sampler, noise: &str) -> Vec<f32> {
    let gpu = context().gpu;
    let diffusion = DiffusionConfig::default();
    let schedule = SpacedSchedule::new(&diffusion, "6").unwrap();
    let tables = schedule.tables().unwrap();
    program.write(gpu, w.x, &common::input_noise("sampling.", "x_T", PIXELS)).unwrap();
    program.write(gpu, w.labels.unwrap(), &[2u32]).unwrap();
    for i in (0..schedule.num_steps()).rev() {
        program.write(gpu, w.t, &[schedule.model_timestep(i, &diffusion)]).unwrap();
        let update = tables.update_for(i, kind, &diffusion, true);
        program.write(gpu, w.update, &denoise_coefs(&update)).unwrap();
        let z = common::input_noise(noise, &i.to_string(), PIXELS);
        program.write(gpu, w.noise.unwrap(), &z).unwrap();
        program.run(gpu).unwrap();
    }
    program.read(gpu, &[w.x]).unwrap().remove(0)
}

/// DDIM with eta 0 is a function of x_T; every other sampler of its noise too.
#[test]
fn only_ddim_with_eta_0_ignores_the_noise() {
    let flat = flat();
    let needs = SamplingNeeds { given_noise: true, ..Default::default() };
    let wiring = SamplingGraph::new(&network(), 1, needs).unwrap();
    let plan = wiring.plan(&context().gpu.caps).unwrap();
    let program = Program::compile(context(), plan, &flat, CompileOptions::default()).unwrap();
    for (kind, ignores) in
        [(DDIM, true), (Sampler::Ddim { eta: 1.0 }, false), (Sampler::Ddpm, false)]
    {
        let [a, b] = ["a", "b"].map(|noise| with_noise(&program, &wiring, kind, noise));
        assert_eq!(bits(&a) == bits(&b), ignores, "{kind:?}");
    }
}

#[test]
fn clipped_images_stay_in_range_and_all_are_finite() {
    let flat = flat();
    let sampler = sampler_of(3, &flat, FlatKind::Weights);
    for kind in [Sampler::Ddpm, DDIM, Sampler::Ddim { eta: 0.5 }, Sampler::Ddim { eta: 1.0 }] {
        for clip in [true, false] {
            let options = SampleOptions { clip, ..options(kind, 6) };
            let images = draw(&sampler, &options, 40, &[0, 3]);
            assert_eq!(images.len(), 2 * PIXELS, "a partial batch");
            assert!(images.iter().all(|v| v.is_finite()), "{kind:?}, clip {clip}");
            let inside = images.iter().all(|v| (-1.0..=1.0).contains(v));
            // These weights denoise nothing, so that unclipped values run off.
            assert_eq!(inside, clip, "{kind:?}");
        }
    }
}

#[test]
fn impossible_requests_and_a_stop_are_errors() {
    let flat = flat();
    let sampler = sampler_of(2, &flat, FlatKind::Weights);
    let mut calls = Vec::new();
    let mut ask = |options: &SampleOptions, labels: &[u32], count, stop_at| {
        calls.clear();
        let mut progress = |p: SampleProgress| {
            calls.push((p.done, p.steps));
            if p.done == stop_at { Err(Error::Config("enough".into())) } else { Ok(()) }
        };
        let job = SampleJob { count, labels, ..Default::default() };
        let result = sampler.sample(context(), options, &job, &mut progress);
        (result.map(|images| images.len()).map_err(|e| e.to_string()), calls.clone())
    };
    let good = options(DDIM, 0);
    let never = usize::MAX;
    assert!(ask(&good, &[0, 1, 2], 3, never).0.unwrap_err().contains("batch of 2"));
    assert!(ask(&good, &[0], 2, never).0.unwrap_err().contains("1 labels"));
    assert!(ask(&good, &[0, 5], 2, never).0.unwrap_err().contains("label 5"));
    let eta = options(Sampler::Ddim { eta: -1.0 }, 0);
    assert!(ask(&eta, &[0], 1, never).0.unwrap_err().contains("eta"));
    let respacing = SampleOptions { respacing: "1001".into(), ..good.clone() };
    assert!(ask(&respacing, &[0], 1, never).0.unwrap_err().contains("1001"));
    let (stopped, calls) = ask(&good, &[0], 1, 3);
    assert!(stopped.unwrap_err().contains("enough"));
    assert_eq!(calls, [(1, 8), (2, 8), (3, 8)]);
    assert_eq!(ask(&good, &[0], 1, never), (Ok(PIXELS), (1..=8).map(|i| (i, 8)).collect()));
}
