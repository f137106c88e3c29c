//! Twin of the fused denoising update: one step from `x_t` to its neighbour, as
//! the fields of [`Update`] describe it, with every optional operand.

use super::{Real, expect_len};
use crate::ops::{UPDATE_DDIM, Update};

const OP: &str = "denoise";

/// Operands of a step, all of one shape.
#[derive(Clone, Copy, Debug)]
pub struct Operands<'a, T> {
    /// The noisy images.
    pub x: &'a [T],
    /// The model's prediction.
    pub out: &'a [T],
    /// Its prediction without the class, for classifier-free guidance.
    pub without: Option<&'a [T]>,
    /// The model's variance channels.
    pub variance: Option<&'a [T]>,
    /// Gradient of scale * log p(y | x_t).
    pub gradient: Option<&'a [T]>,
    /// Standard normal noise; may be left out where `sigma` is 0.
    pub noise: Option<&'a [T]>,
}

impl<'a, T> Operands<'a, T> {
    /// A step without any optional operand.
    pub fn new(x: &'a [T], out: &'a [T]) -> Self {
        Operands { x, out, without: None, variance: None, gradient: None, noise: None }
    }
}

/// One element of [`Operands`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Element {
    /// The noisy image.
    pub x: f64,
    /// The model's prediction.
    pub out: f64,
    /// Its prediction without the class.
    pub without: Option<f64>,
    /// The model's variance channel.
    pub variance: f64,
    /// Gradient of scale * log p(y | x_t).
    pub gradient: Option<f64>,
    /// The noise.
    pub z: f64,
}

/// Results of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct DenoiseOutput<T> {
    /// The neighbouring image.
    pub x_prev: Vec<T>,
    /// The predicted clean image, clamped if asked.
    pub x0: Vec<T>,
}

/// A step of all elements.
pub fn forward<T: Real>(update: &Update, operands: &Operands<T>) -> DenoiseOutput<T> {
    let Operands { x, out, without, variance, gradient, noise } = *operands;
    expect_len(OP, "out", out, x.len());
    for (name, operand) in
        [("without", without), ("variance", variance), ("gradient", gradient), ("noise", noise)]
    {
        if let Some(operand) = operand {
            expect_len(OP, name, operand, x.len());
        }
    }
    assert!(noise.is_some() || update.sigma == 0.0, "{OP}: sigma {} needs noise", update.sigma);
    let at = |operand: Option<&[T]>, i: usize| operand.map(|values| values[i].into());
    let (x_prev, x0) = (0..x.len())
        .map(|i| Element {
            x: x[i].into(),
            out: out[i].into(),
            without: at(without, i),
            variance: at(variance, i).unwrap_or(0.0),
            gradient: at(gradient, i),
            z: at(noise, i).unwrap_or(0.0),
        })
        .map(|element| apply_update(update, &element))
        .map(|(x_prev, x0)| (T::from_f64(x_prev), T::from_f64(x0)))
        .unzip();
    DenoiseOutput { x_prev, x0 }
}

/// One element's `(x_prev, x0)`.
pub fn apply_update(update: &Update, element: &Element) -> (f64, f64) {
    let recip = f64::from(update.sqrt_recip_abar);
    let recipm1 = f64::from(update.sqrt_recipm1_abar);
    let guidance = f64::from(update.guidance);
    let sigma = f64::from(update.sigma);
    let Element { x, out, without, variance, gradient, z } = *element;

    let out = without.map_or(out, |u| u + f64::from(update.guidance_free) * (out - u));
    let mut x0 = if update.predicts_x0 == 0 { recip * x - recipm1 * out } else { out };
    if update.clip != 0 {
        x0 = x0.clamp(-1.0, 1.0);
    }
    if update.kind == UPDATE_DDIM {
        let mut eps = (recip * x - x0) / recipm1;
        if let Some(gradient) = gradient {
            eps -= guidance * gradient;
            x0 = recip * x - recipm1 * eps;
        }
        let mean = f64::from(update.sqrt_abar_prev) * x0 + f64::from(update.dir) * eps;
        return (mean + sigma * z, x0);
    }
    let log_variance =
        f64::from(update.log_variance_offset) + f64::from(update.log_variance_slope) * variance;
    let mean = f64::from(update.coef1) * x0 + f64::from(update.coef2) * x;
    let shift = guidance * log_variance.exp() * gradient.unwrap_or(0.0);
    (mean + shift + sigma * (0.5 * log_variance).exp() * z, x0)
}

#[cfg(test)]
mod tests {
    use super::super::{max_abs_error, test_values};
    use super::*;
    use crate::ops::UPDATE_DDPM;

    // Not of any real schedule: chosen so that the results are exact.
    const UPDATE: Update = Update {
        kind: UPDATE_DDPM,
        predicts_x0: 0,
        clip: 0,
        sqrt_recip_abar: 2.0,
        sqrt_recipm1_abar: 1.5,
        coef1: 0.25,
        coef2: 0.75,
        sqrt_abar_prev: 0.5,
        dir: 0.125,
        sigma: 0.0,
        guidance: 0.5,
        log_variance_offset: 0.0,
        log_variance_slope: 0.0,
        guidance_free: 3.0,
    };

    fn step(update: &Update, x: f64, out: f64) -> (f64, f64) {
        apply_update(update, &Element { x, out, ..Default::default() })
    }

    #[test]
    fn ddpm_by_hand() {
        // x0 = 2*2 - 1.5*1 = 2.5.
        assert_eq!(step(&UPDATE, 2.0, 1.0), (2.125, 2.5));
        let clipped = Update { clip: 1, sigma: 0.5, ..UPDATE };
        let noise = Some(&[3f32, 1.0][..]);
        let operands = Operands { noise, ..Operands::new(&[2f32, -2.0], &[1.0, -1.0]) };
        let out = forward(&clipped, &operands);
        assert_eq!((out.x_prev, out.x0), (vec![3.25, -1.25], vec![1.0, -1.0]));
        assert_eq!(step(&Update { predicts_x0: 1, ..UPDATE }, 2.0, 3.0), (2.25, 3.0));
    }

    #[test]
    fn ddim_by_hand() {
        let ddim = Update { kind: UPDATE_DDIM, ..UPDATE };
        // Unclipped, the derived noise is the predicted one.
        assert_eq!(step(&ddim, 2.0, 1.0), (1.375, 2.5));
        // Clipped: eps = (4 - 1)/1.5 = 2.
        let clipped = Update { clip: 1, sigma: 0.5, ..ddim };
        let element = Element { x: 2.0, out: 1.0, z: -2.0, ..Default::default() };
        assert_eq!(apply_update(&clipped, &element), (-0.25, 1.0));
    }

    #[test]
    fn guidance_by_hand() {
        let element = Element { x: 2.0, out: 1.0, gradient: Some(3.0), ..Default::default() };
        // The mean moves by 0.5 * 3, the predicted image stays.
        assert_eq!(apply_update(&UPDATE, &element), (3.625, 2.5));
        // eps = 1 - 0.5*3 = -0.5, x0 = 4 + 1.5*0.5 = 4.75, clamped or not.
        let ddim = Update { kind: UPDATE_DDIM, ..UPDATE };
        assert_eq!(apply_update(&ddim, &element), (2.3125, 4.75));
        // From the clamped x0 = 1: eps = 2 - 1.5 = 0.5, x0 = 4 - 0.75.
        let clipped = Update { clip: 1, ..ddim };
        assert_eq!(apply_update(&clipped, &element), (1.6875, 3.25));
        // Without a class 0.5, so 0.5 + 3 * (1 - 0.5) = 2 and x0 = 1.
        let free = Element { x: 2.0, out: 1.0, without: Some(0.5), ..Default::default() };
        assert_eq!(apply_update(&UPDATE, &free), (1.75, 1.0));
    }

    #[test]
    fn a_learned_variance_scales_noise_and_guidance() {
        let ln4 = 4f64.ln() as f32;
        let update =
            Update { sigma: 0.25, log_variance_offset: ln4, log_variance_slope: ln4, ..UPDATE };
        // d = 2 ln 4: sixteen times the variance, four times the deviation.
        let element =
            Element { x: 2.0, out: 1.0, variance: 1.0, gradient: Some(1.0), z: 1.0, without: None };
        let (x_prev, x0) = apply_update(&update, &element);
        assert!((x_prev - (2.125 + 8.0 + 1.0)).abs() < 1e-5, "{x_prev}");
        assert_eq!(x0, 2.5);
    }

    #[test]
    fn exact_noise_recovers_the_image() {
        // A DDIM step to abar' = 1 with the true noise lands on the clean image.
        let abar = 0.37f64;
        let update = Update {
            kind: UPDATE_DDIM,
            sqrt_recip_abar: (1.0 / abar).sqrt() as f32,
            sqrt_recipm1_abar: (1.0 / abar - 1.0).sqrt() as f32,
            sqrt_abar_prev: 1.0,
            dir: 0.0,
            ..UPDATE
        };
        let image: Vec<f64> = test_values("image", 221);
        let noise: Vec<f64> = test_values("noise", 221);
        let root = [abar.sqrt()];
        let x = super::super::q_sample::forward(&image, &noise, &root, &[(1.0 - abar).sqrt()]);
        let out = forward(&update, &Operands::new(&x, &noise));
        assert!(max_abs_error(&out.x_prev, &image) < 1e-6);
        assert!(max_abs_error(&out.x0, &image) < 1e-6);
    }

    #[test]
    #[should_panic(expected = "denoise: sigma 0.5 needs noise")]
    fn noise_is_needed_with_sigma() {
        forward(&Update { sigma: 0.5, ..UPDATE }, &Operands::new(&[0f32], &[0.0]));
    }
}
