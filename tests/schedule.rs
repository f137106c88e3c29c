//! Schedules, respacing, tables and sampling steps on the host, against values
//! and identities that follow from the papers.

use approx::{assert_abs_diff_eq, assert_relative_eq};
use demist::diffusion::{
    DiffusionConfig, MeanType, NoiseSchedule, Sampler, SpacedSchedule, Tables, VarType,
    named_betas, q_sample, space_timesteps,
};
use demist::engine::ops::Update;
use demist::reference::denoise::{self, Element};

fn config(noise_schedule: NoiseSchedule, diffusion_steps: usize) -> DiffusionConfig {
    DiffusionConfig { noise_schedule, diffusion_steps, ..DiffusionConfig::default() }
}

fn spaced(config: &DiffusionConfig, respacing: &str) -> (SpacedSchedule, Tables) {
    let schedule = SpacedSchedule::new(config, respacing).unwrap();
    let tables = schedule.tables().unwrap();
    (schedule, tables)
}

fn error_of<T: std::fmt::Debug>(result: demist::Result<T>) -> String {
    result.unwrap_err().to_string()
}

/// One element's next value and predicted image, in float64.
fn apply_update_f64(update: &Update, x: f64, out: f64, z: f64) -> (f64, f64) {
    denoise::apply_update(update, &Element { x, out, z, ..Default::default() })
}

/// The same rounded once.
fn apply_update(update: &Update, x: f32, out: f32, z: f32) -> (f32, f32) {
    let (x_prev, x0) = apply_update_f64(update, x.into(), out.into(), z.into());
    (x_prev as f32, x0 as f32)
}

#[test]
fn schedules_have_the_published_ends() {
    let linear = named_betas(NoiseSchedule::Linear, 1000).unwrap();
    assert_eq!((linear[0], linear[999]), (1e-4, 0.02));
    let abar = Tables::new(&linear).unwrap().alphas_cumprod[999];
    assert_relative_eq!(abar, 4.0358e-5, max_relative = 1e-4);

    let cosine = named_betas(NoiseSchedule::Cosine, 1000).unwrap();
    assert_relative_eq!(cosine[0], 4.1284e-5, max_relative = 1e-4);
    assert_eq!(cosine[999], 0.999);
    let abar = Tables::new(&cosine).unwrap().alphas_cumprod[999];
    assert_relative_eq!(abar, 2.43e-9, max_relative = 1e-2);
}

#[test]
fn impossible_schedules_are_errors() {
    for steps in [0, 1, usize::MAX] {
        let message = error_of(named_betas(NoiseSchedule::Cosine, steps));
        assert!(message.contains(&format!("diffusion_steps is {steps}:")), "{message}");
    }
    assert!(error_of(named_betas(NoiseSchedule::Linear, 20)).contains("more than 20 steps"));
    assert!(named_betas(NoiseSchedule::Linear, 21).is_ok());
    assert!(error_of(Tables::new(&[0.1])).contains("at least 2"));
    for bad in [0.0, 1.0, -0.1, f64::NAN] {
        assert!(error_of(Tables::new(&[0.1, bad])).contains("beta of step 1"), "{bad}");
    }
}

#[test]
fn respacing_keeps_the_steps_of_the_reference() {
    let kept = space_timesteps(1000, "25").unwrap();
    assert_eq!((kept.len(), &kept[..4], kept[24]), (25, &[0, 42, 83, 125][..], 999));
    // 166.5 and 499.5 are rounded to even.
    assert_eq!((kept[4], kept[12]), (166, 500));
    assert_eq!(space_timesteps(1000, "ddim25").unwrap(), (0..1000).step_by(40).collect::<Vec<_>>());
    // Halves that the accumulated position misses by a rounding error.
    for (spec, i, t) in [("21", 10, 499), ("31", 15, 500), ("43", 35, 833)] {
        assert_eq!(space_timesteps(1000, spec).unwrap()[i], t, "{spec}");
    }
    assert_eq!(space_timesteps(10, "").unwrap(), (0..10).collect::<Vec<_>>());
    assert_eq!(space_timesteps(10, " 10 ").unwrap(), (0..10).collect::<Vec<_>>());
    // 11 steps in sections of 4, 4 and 3: the first ones get the remainder.
    assert_eq!(space_timesteps(11, "2, 1,3").unwrap(), [0, 3, 4, 8, 9, 10]);
}

#[test]
fn impossible_respacings_are_errors() {
    assert!(space_timesteps(100, "30,50").is_ok());
    let too_many = error_of(space_timesteps(100, "30,51"));
    assert!(
        too_many.contains("section 2 has 50 of the 100 steps and cannot keep 51"),
        "{too_many}"
    );
    assert!(error_of(space_timesteps(2, "1,1,1")).contains("section 3 has 0"));
    for spec in ["ddim999", "ddim0", "ddim1", "ddim2000"] {
        assert!(error_of(space_timesteps(1000, spec)).contains("no integer stride"), "{spec}");
    }
    for spec in ["ddim", "fast", "10,,10", "-5", "2.5", "10,", "DDIM25"] {
        let message = error_of(space_timesteps(1000, spec));
        assert!(message.contains(spec) && message.contains("not a number of steps"), "{message}");
    }
    for (spec, kept) in [("1", 1), ("0", 0), ("0,1", 1)] {
        let message = error_of(SpacedSchedule::new(&DiffusionConfig::default(), spec));
        assert!(message.contains(&format!("keeps {kept} of 1000")), "{message}");
    }
}

#[test]
fn spaced_steps_lie_on_the_original_process() {
    for noise_schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
        let config = config(noise_schedule, 1000);
        let (_, full) = spaced(&config, "");
        let (schedule, tables) = spaced(&config, "90,60,60,20,20");
        assert_eq!(schedule.num_steps(), 250);
        assert_eq!(schedule.original_steps, 1000);
        for (i, &t) in schedule.timestep_map.iter().enumerate() {
            let original = full.alphas_cumprod[t];
            assert_relative_eq!(tables.alphas_cumprod[i], original, max_relative = 1e-9);
        }
    }
}

#[test]
fn the_network_gets_original_timesteps() {
    let mut config = config(NoiseSchedule::Cosine, 4000);
    let schedule = SpacedSchedule::new(&config, "250").unwrap();
    assert_eq!(schedule.model_timestep(249, &config), 3999.0);
    config.rescale_timesteps = true;
    assert_eq!(schedule.model_timestep(249, &config), 999.75);
    assert_eq!(schedule.model_timestep(0, &config), 0.0);
}

#[test]
fn tables_are_consistent() {
    let (_, tables) = spaced(&config(NoiseSchedule::Linear, 100), "");
    let n = tables.num_steps();
    assert_eq!(tables.alphas_cumprod_prev[0], 1.0);
    assert_eq!(tables.alphas_cumprod_next[n - 1], 0.0);
    assert_eq!(tables.posterior_variance[0], 0.0);
    assert_eq!(tables.posterior_log_variance_clipped[0], tables.posterior_variance[1].ln());
    for t in 0..n {
        let abar = tables.alphas_cumprod[t];
        assert_eq!(tables.log_one_minus_alphas_cumprod[t], (1.0 - abar).ln());
        let (s, c) = (tables.sqrt_alphas_cumprod[t], tables.sqrt_one_minus_alphas_cumprod[t]);
        assert_relative_eq!(s * s + c * c, 1.0, max_relative = 1e-14);
        assert_relative_eq!(tables.sqrt_recip_alphas_cumprod[t] * s, 1.0, max_relative = 1e-14);
        let tangent = tables.sqrt_recipm1_alphas_cumprod[t];
        assert_relative_eq!(tangent, c / s, max_relative = 1e-11);
        if t > 0 {
            assert_eq!(tables.alphas_cumprod_prev[t], tables.alphas_cumprod[t - 1]);
            assert_eq!(tables.alphas_cumprod_next[t - 1], abar);
        }
        // Without noise, the posterior mean of the trajectory stays on it.
        let mean = tables.posterior_mean_coef1[t] + tables.posterior_mean_coef2[t] * s;
        assert_relative_eq!(mean, tables.alphas_cumprod_prev[t].sqrt(), max_relative = 1e-10);
    }
}

#[test]
fn variances_are_those_of_the_config() {
    let (_, tables) = spaced(&config(NoiseSchedule::Linear, 50), "");
    let small = |i| tables.log_variance(i, VarType::FixedSmall).exp();
    let large = |i| tables.log_variance(i, VarType::FixedLarge).exp();
    assert_relative_eq!(small(0), tables.posterior_variance[1], max_relative = 1e-14);
    assert_relative_eq!(large(0), tables.posterior_variance[1], max_relative = 1e-14);
    for i in 1..50 {
        assert_relative_eq!(small(i), tables.posterior_variance[i], max_relative = 1e-14);
        assert_relative_eq!(large(i), tables.betas[i], max_relative = 1e-14);
        let mut config = config(NoiseSchedule::Linear, 50);
        for (var_type, variance) in
            [(VarType::FixedSmall, small(i)), (VarType::FixedLarge, large(i))]
        {
            config.var_type = var_type;
            let sigma = tables.update_for(i, Sampler::Ddpm, &config, true).sigma;
            assert_relative_eq!(f64::from(sigma), variance.sqrt(), max_relative = 1e-6);
        }
    }
}

/// A network that knows the noise must be led back to the image, by either
/// prediction.
#[test]
fn a_perfect_network_recovers_the_image() {
    let (x0, noise) = (0.625_f32, -1.3_f32);
    for noise_schedule in [NoiseSchedule::Linear, NoiseSchedule::Cosine] {
        for mean_type in [MeanType::Epsilon, MeanType::XStart] {
            let config = DiffusionConfig { mean_type, ..config(noise_schedule, 1000) };
            let (_, tables) = spaced(&config, "ddim50");
            // DDIM without added noise keeps the noise it started with.
            let mut x = q_sample(tables.q_sample_coefs(49), x0, noise);
            for i in (0..50).rev() {
                let update = tables.update_for(i, Sampler::Ddim { eta: 0.0 }, &config, false);
                let out = if mean_type == MeanType::XStart { x0 } else { noise };
                let (previous, predicted) = apply_update(&update, x, out, 1.0);
                let tolerance = 1e-6 * update.sqrt_recip_abar.max(10.0);
                if mean_type == MeanType::XStart {
                    assert_eq!(predicted, x0);
                }
                assert_abs_diff_eq!(predicted, x0, epsilon = tolerance);
                let expected = match i {
                    0 => x0,
                    _ => q_sample(tables.q_sample_coefs(i - 1), x0, noise),
                };
                assert_abs_diff_eq!(previous, expected, epsilon = tolerance);
                x = expected;
            }
        }
    }
}

#[test]
fn ddpm_steps_follow_the_posterior() {
    let config = config(NoiseSchedule::Linear, 1000);
    let (_, tables) = spaced(&config, "100");
    let (x, eps, z) = (0.3, -0.7, 1.25);
    for i in [0, 1, 50, 99] {
        let update = tables.update_for(i, Sampler::Ddpm, &config, false);
        let (previous, x0) = apply_update_f64(&update, x, eps, z);
        let abar = tables.alphas_cumprod[i];
        assert_relative_eq!(x0, (x - (1.0 - abar).sqrt() * eps) / abar.sqrt(), max_relative = 1e-5);
        // Ho et al. 2020, eq. 11: the mean straight from the noise.
        let beta = tables.betas[i];
        let mean = (x - beta / (1.0 - abar).sqrt() * eps) / (1.0 - beta).sqrt();
        let sigma = if i == 0 { 0.0 } else { beta.sqrt() };
        assert_abs_diff_eq!(previous, mean + sigma * z, epsilon = 2e-5);
    }
}

/// With eta = 1 DDIM is the ancestral sampler with the small variance.
#[test]
fn ddim_with_eta_one_is_ddpm() {
    let config =
        DiffusionConfig { var_type: VarType::FixedSmall, ..config(NoiseSchedule::Cosine, 1000) };
    let (_, tables) = spaced(&config, "50");
    let (x, eps, z) = (0.8, 0.45, -0.6);
    for i in 0..50 {
        let ddpm = tables.update_for(i, Sampler::Ddpm, &config, true);
        let ddim = tables.update_for(i, Sampler::Ddim { eta: 1.0 }, &config, true);
        assert_relative_eq!(ddim.sigma, ddpm.sigma, max_relative = 1e-5);
        let (a, x0_a) = apply_update_f64(&ddpm, x, eps, z);
        let (b, x0_b) = apply_update_f64(&ddim, x, eps, z);
        assert_eq!(x0_a, x0_b);
        assert_abs_diff_eq!(a, b, epsilon = 1e-5);
    }
}

#[test]
fn clipping_limits_x0_and_the_last_step_returns_it() {
    let config = config(NoiseSchedule::Linear, 1000);
    let (_, tables) = spaced(&config, "10");
    for sampler in [Sampler::Ddpm, Sampler::Ddim { eta: 0.0 }, Sampler::Ddim { eta: 1.0 }] {
        for i in 0..10 {
            let clipped = tables.update_for(i, sampler, &config, true);
            let free = tables.update_for(i, sampler, &config, false);
            assert_eq!(apply_update(&clipped, 3.0, -2.0, 0.0).1, 1.0);
            assert_eq!(apply_update(&clipped, -3.0, 2.0, 0.0).1, -1.0);
            assert!(apply_update(&free, 3.0, -2.0, 0.0).1 > 3.0);
        }
        let last = tables.update_for(0, sampler, &config, true);
        assert_eq!(last.sigma, 0.0);
        let (image, x0) = apply_update(&last, 0.25, 0.5, 100.0);
        assert_abs_diff_eq!(image, x0, epsilon = 1e-6);
    }
}

#[test]
fn eta_is_checked() {
    for eta in [0.0, 0.5, 1.0] {
        assert!(Sampler::Ddim { eta }.validate().is_ok());
    }
    for eta in [-0.1, 1.1, f64::NAN, f64::INFINITY] {
        assert!(error_of(Sampler::Ddim { eta }.validate()).contains("eta"), "{eta}");
    }
    assert!(Sampler::Ddpm.validate().is_ok());
}

/// DDIM backwards from an image and DDIM forwards again return to it: a network
/// that always knows the noise is followed exactly.
#[test]
fn reverse_ddim_is_undone_by_ddim() {
    for mean_type in [MeanType::Epsilon, MeanType::XStart] {
        let config = DiffusionConfig { mean_type, ..config(NoiseSchedule::Linear, 1000) };
        let (_, tables) = spaced(&config, "20");
        let (x0, noise) = (0.4, -1.1);
        let out = if mean_type == MeanType::XStart { x0 } else { noise };
        let at = |i: usize| {
            let coefs = tables.q_sample_coefs(i);
            f64::from(coefs.sqrt_abar) * x0 + f64::from(coefs.sqrt_one_minus_abar) * noise
        };
        for i in 0..19 {
            let up = tables.update_for(i, Sampler::DdimReverse, &config, true);
            let (next, predicted) = apply_update_f64(&up, at(i), out, 9.0);
            assert_abs_diff_eq!(next, at(i + 1), epsilon = 1e-5);
            assert_abs_diff_eq!(predicted, x0, epsilon = 1e-5);
            let down = tables.update_for(i + 1, Sampler::Ddim { eta: 0.0 }, &config, true);
            assert_abs_diff_eq!(apply_update_f64(&down, next, out, 9.0).0, at(i), epsilon = 1e-4);
        }
        // After the last step nothing of the image is left.
        let up = tables.update_for(19, Sampler::DdimReverse, &config, true);
        assert_abs_diff_eq!(apply_update_f64(&up, at(19), out, 9.0).0, noise, epsilon = 1e-4);
    }
    assert!(Sampler::DdimReverse.validate().is_ok());
}

/// The variance that a step uses, for noise and for guidance, at some value
/// of the variance channel.
fn step_variances(update: &Update, variance: f64) -> (f64, f64) {
    let at = |z, gradient| {
        let element = Element { variance, z, gradient: Some(gradient), ..Default::default() };
        denoise::apply_update(update, &element).0
    };
    (at(1.0, 0.0).powi(2), at(0.0, 1.0))
}

#[test]
fn learned_variances_lie_between_the_bounds() {
    let config = DiffusionConfig { var_type: VarType::LearnedRange, ..Default::default() };
    let (_, tables) = spaced(&config, "50");
    for i in [1, 2, 25, 49] {
        let update = tables.update_for(i, Sampler::Ddpm, &config, true);
        let (small, large) = (tables.posterior_variance[i], tables.betas[i]);
        for (channel, variance) in [
            (-1.0, small),
            (1.0, large),
            (0.0, (small * large).sqrt()),
            (2.0, large * (large / small).sqrt()),
        ] {
            let (noise, guidance) = step_variances(&update, channel);
            assert_relative_eq!(noise, variance, max_relative = 1e-5);
            assert_relative_eq!(guidance, variance, max_relative = 1e-5);
        }
        let config = DiffusionConfig { var_type: VarType::Learned, ..config.clone() };
        let update = tables.update_for(i, Sampler::Ddpm, &config, true);
        let (noise, guidance) = step_variances(&update, -3.0);
        assert_relative_eq!(noise, (-3f64).exp(), max_relative = 1e-5);
        assert_relative_eq!(guidance, (-3f64).exp(), max_relative = 1e-5);
    }
}

/// At the last step only the noise is gone.
#[test]
fn the_last_step_is_still_guided() {
    let (_, tables) = spaced(&config(NoiseSchedule::Linear, 1000), "50");
    let second = tables.posterior_variance[1];
    let range = (second * tables.betas[0]).sqrt();
    for (var_type, variance) in [
        (VarType::FixedLarge, second),
        (VarType::FixedSmall, 0.0),
        (VarType::LearnedRange, range),
        (VarType::Learned, 1.0),
    ] {
        let config = DiffusionConfig { var_type, ..Default::default() };
        let update = tables.update_for(0, Sampler::Ddpm, &config, true);
        let (noise, guidance) = step_variances(&update, 0.0);
        assert_eq!(noise, 0.0);
        assert_relative_eq!(guidance, variance, max_relative = 1e-5);
    }
}

#[test]
fn ddim_is_guided_along_the_noise() {
    let config = config(NoiseSchedule::Cosine, 1000);
    let (_, tables) = spaced(&config, "25");
    for i in [0, 12, 24] {
        let update = tables.update_for(i, Sampler::Ddim { eta: 0.0 }, &config, false);
        let abar = tables.alphas_cumprod[i];
        let (x, eps, gradient) = (0.7, -0.4, 0.9);
        let guided = Element { x, out: eps, gradient: Some(gradient), ..Default::default() };
        // Dhariwal and Nichol 2021, algorithm 2.
        let moved = eps - (1.0 - abar).sqrt() * gradient;
        let want = apply_update_f64(&update, x, moved, 0.0);
        let got = denoise::apply_update(&update, &guided);
        assert_relative_eq!(got.0, want.0, max_relative = 1e-5);
        assert_relative_eq!(got.1, want.1, max_relative = 1e-5);
    }
}

/// The coefficients of the bound against the formulas they stand for.
#[test]
fn vlb_coefs_are_those_of_the_posterior() {
    let (_, tables) = spaced(&config(NoiseSchedule::Cosine, 1000), "100");
    for t in [0, 1, 50, 99] {
        let lower = tables.posterior_log_variance_clipped[t];
        let upper = tables.betas[t].ln();
        let large = if t == 0 { tables.posterior_variance[1].ln() } else { upper };
        for (var_type, at_0, at_1) in [
            (VarType::FixedSmall, lower, lower),
            (VarType::FixedLarge, large, large),
            (VarType::Learned, 0.0, 1.0),
            (VarType::LearnedRange, 0.5 * (lower + upper), upper),
        ] {
            let c = tables.vlb_coefs(t, var_type).map(f64::from);
            assert_eq!(c[0], f64::from(u8::from(t == 0)));
            assert_relative_eq!(c[1], tables.sqrt_recip_alphas_cumprod[t], max_relative = 1e-7);
            assert_relative_eq!(c[2], tables.sqrt_recipm1_alphas_cumprod[t], max_relative = 1e-7);
            assert_relative_eq!(c[3], tables.posterior_mean_coef1[t], max_relative = 1e-7);
            assert_relative_eq!(c[4], tables.posterior_mean_coef2[t], max_relative = 1e-7);
            assert_relative_eq!(c[5], (-0.5 * lower).exp(), max_relative = 1e-7);
            assert_abs_diff_eq!(lower + c[6], at_0, epsilon = 1e-6);
            assert_abs_diff_eq!(lower + c[6] + c[7], at_1, epsilon = 1e-6);
        }
    }
}

/// KL of N(sqrt(abar) x_0, 1 - abar) from N(0, 1), in bits.
#[test]
fn prior_bpd_by_hand() {
    let tables = Tables::new(&[0.3, 0.4]).unwrap();
    let abar: f64 = 0.7 * 0.6;
    let kl = |x0: f64| 0.5 * (-1.0 - (1.0 - abar).ln() + (1.0 - abar) + abar * x0 * x0);
    let want = (kl(0.5) + kl(-1.0)) / 2.0 / std::f64::consts::LN_2;
    assert_relative_eq!(tables.prior_bpd(&[0.5, -1.0]), want, max_relative = 1e-12);
    // A gray image differs by its variance alone: abar^2 / 4, which 1 - abar in
    // float32 would lose.
    let (_, tables) = spaced(&config(NoiseSchedule::Linear, 1000), "");
    let want = tables.alphas_cumprod[999].powi(2) / 4.0 / std::f64::consts::LN_2;
    assert_relative_eq!(tables.prior_bpd(&[0.0; 5]), want, max_relative = 1e-4);
}

/// The struct is fourteen words without padding, of which the first three are
/// flags.
#[test]
fn updates_are_plain_words() {
    let config = DiffusionConfig { mean_type: MeanType::XStart, ..DiffusionConfig::default() };
    let (_, tables) = spaced(&config, "");
    let update = tables.update_for(500, Sampler::Ddim { eta: 0.5 }, &config, true);
    let words: &[u32] = bytemuck::cast_slice(bytemuck::bytes_of(&update));
    assert_eq!(words.len(), 14);
    assert_eq!(words[..3], [1, 1, 1]);
    assert_eq!(f32::from_bits(words[9]), update.sigma);
    assert!(update.sigma > 0.0 && update.dir > 0.0);
    assert_eq!(update.guidance_free, 1.0);
}

#[test]
fn configs_are_read_strictly_and_written_back() {
    let empty: DiffusionConfig = serde_json::from_str("{}").unwrap();
    assert_eq!(empty, DiffusionConfig::default());
    let text = r#"{"diffusion_steps": 400, "noise_schedule": "cosine", "mean_type": "x_start",
        "var_type": "fixed_small", "loss_type": "mse", "rescale_timesteps": true}"#;
    let read: DiffusionConfig = serde_json::from_str(text).unwrap();
    assert_eq!((read.diffusion_steps, read.mean_type), (400, MeanType::XStart));
    assert_eq!((read.var_type, read.rescale_timesteps), (VarType::FixedSmall, true));
    let again = serde_json::from_str(&serde_json::to_string(&read).unwrap()).unwrap();
    assert_eq!(read, again);
    for bad in [r#"{"steps": 400}"#, r#"{"noise_schedule": "quadratic"}"#] {
        assert!(serde_json::from_str::<DiffusionConfig>(bad).is_err(), "{bad}");
    }
}
