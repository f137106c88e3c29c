//! Fitting training into memory: what is recomputed, and that it changes nothing.

mod common;
mod harness;
mod tiny;

use demist::Error;
use demist::diffusion::DiffusionConfig;
use demist::engine::caps::human_bytes;
use demist::engine::graph::FlatKind;
use demist::model::{EncoderConfig, ModelConfig, Pool, UNetConfig};
use demist::recipe::TrainConfig;
use demist::train::{MicroBatch, Noise, TrainStep, fit_memory, memory_need};
use tiny::{batch, context, dense, encoder, unet};

const BATCH: usize = 2;

/// Three levels with attention and dropout.
fn deep_unet() -> ModelConfig {
    ModelConfig::UNet(UNetConfig {
        channel_mult: vec![1.0, 1.0, 1.0],
        attention_resolutions: vec![2],
        dropout: 0.2,
        ..unet()
    })
}

fn deep_encoder(pool: Pool) -> ModelConfig {
    ModelConfig::Encoder(EncoderConfig {
        channel_mult: vec![1.0, 1.0, 1.0],
        attention_resolutions: vec![2],
        dropout: 0.2,
        pool,
        ..encoder()
    })
}

fn config(recompute_levels: u32, half: bool) -> TrainConfig {
    TrainConfig {
        recompute_levels,
        half,
        ..TrainConfig { batch_size: BATCH, micro_batch: BATCH, ..Default::default() }
    }
}

fn need(model: &ModelConfig, config: &TrainConfig) -> u64 {
    let caps = &context().gpu.caps;
    memory_need(caps, model, &DiffusionConfig::default(), config).unwrap().bytes()
}

#[test]
fn the_budget_decides_how_many_levels_are_recomputed() {
    let caps = &context().gpu.caps;
    let diffusion = DiffusionConfig::default();
    for model in [deep_unet(), deep_encoder(Pool::Attention)] {
        let levels = model.levels() as u32;
        // The largest images first.
        let needs: Vec<u64> =
            (0..=levels).map(|n| need(&model, &config((1 << n) - 1, false))).collect();
        assert!(needs[1] < needs[0], "{needs:?}");
        let fit = |budget: u64| {
            let mut config = config(0, false);
            let need = fit_memory(caps, &model, &diffusion, &mut config, budget)?;
            Ok::<_, Error>((config.recompute_levels, need))
        };
        for budget in needs.iter().flat_map(|n| [n - 1, *n, n + 1]).chain([u64::MAX]) {
            let wanted = needs.iter().position(|need| *need <= budget);
            match (fit(budget), wanted) {
                (Ok((mask, need)), Some(n)) => {
                    assert_eq!(mask, (1 << n) - 1, "{budget} of {needs:?}");
                    assert_eq!(need.bytes(), needs[n]);
                    // Weights, gradients, two moments and one average.
                    assert_eq!(need.params(), 5 * need.report.params);
                }
                (Err(Error::Memory(text)), None) => {
                    let least = *needs.iter().min().unwrap();
                    assert!(text.contains(&human_bytes(least)), "{text} lacks {least}");
                    assert!(text.contains("smaller micro-batches"), "{text}");
                }
                (other, wanted) => panic!("{budget} of {needs:?}: {other:?}, not {wanted:?}"),
            }
        }
        assert!(matches!(fit(1000), Err(Error::Memory(_))));
    }
}

#[test]
fn averages_and_half_precision_are_counted() {
    let model = deep_unet();
    let base = config(0, false);
    let caps = &context().gpu.caps;
    let of = |c: &TrainConfig| memory_need(caps, &model, &DiffusionConfig::default(), c).unwrap();
    let (one, three) = (of(&base), of(&TrainConfig { ema_rates: vec![0.9; 3], ..base.clone() }));
    assert_eq!(three.bytes() - one.bytes(), 2 * one.report.params);
    let half = of(&config(0, true));
    assert_eq!(half.params(), one.params() + half.report.params_half);
    assert!(half.report.params_half > 0 && half.report.slots < one.report.slots);
    // An impossible network is named as such, not as too large.
    let odd = ModelConfig::UNet(UNetConfig { model_channels: 33, ..unet() });
    let error = memory_need(caps, &odd, &DiffusionConfig::default(), &base).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error}");
}

/// Gradients of one step from fixed weights, and the bytes of its slots.
fn gradients(model: &ModelConfig, config: &TrainConfig) -> (Vec<Vec<u32>>, u64) {
    let ctx = context();
    let step =
        TrainStep::new(ctx, model, &DiffusionConfig::default(), config, Noise::Drawn).unwrap();
    let params = &step.graph().params;
    step.flat().write(ctx.gpu, FlatKind::Weights, params, &dense(params, "memory.")).unwrap();
    let (images, labels) = batch(BATCH);
    let micro = MicroBatch {
        images: &images,
        labels: &labels,
        timesteps: &[100, 700],
        importance: &[],
        first: 6,
        noise: None,
    };
    step.micro_step(ctx, 3, 0, &micro).unwrap();
    let grads = step.flat().read(ctx.gpu, FlatKind::Grads, params).unwrap();
    (grads.iter().map(|g| tiny::bits(g)).collect(), step.plan().report().slots)
}

#[test]
fn no_mask_changes_a_bit_of_a_gradient() {
    for (model, half) in [
        (deep_unet(), false),
        (deep_unet(), true),
        (deep_encoder(Pool::Attention), false),
        (deep_encoder(Pool::SpatialV2), false),
    ] {
        let (want, plain) = gradients(&model, &config(0, half));
        assert!(want.iter().flatten().any(|g| *g != 0));
        let masks = 1 << model.levels();
        for mask in 1..masks {
            let (got, slots) = gradients(&model, &config(mask, half));
            assert!(got == want, "levels {mask:#b}, half {half} of {model:?}");
            // Only all of them, or the largest images, are sure to save memory.
            assert!(mask & 1 == 0 || slots < plain, "{mask:#b}: {slots} of {plain}");
        }
    }
}
