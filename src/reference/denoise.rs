//! Twin of the fused denoising update: one step from `x_t` to `x_{t-1}`.
//!
//! `x0` is the model's output, or from its noise prediction
//! `x0 = sqrt(1/abar)*x - sqrt(1/abar - 1)*eps`, clamped to [-1, 1] if asked. Then
//! - DDPM (Ho et al., 2020, eq. 7): `x' = coef1*x0 + coef2*x + sigma*z`
//! - DDIM (Song et al., 2021, eq. 12): `eps = (sqrt(1/abar)*x - x0) / sqrt(1/abar - 1)`,
//!   taken from the clamped `x0`, and `x' = sqrt(abar')*x0 + dir*eps + sigma*z`,
//!   `dir = sqrt(1 - abar' - sigma^2)`.

use super::{Real, expect_len};

const OP: &str = "denoise";

/// Which update rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Ancestral sampling with a fixed variance.
    Ddpm,
    /// The implicit model's update.
    Ddim,
}

/// Coefficients of one timestep, as the kernel receives them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct DenoiseParams {
    /// Which update rule.
    pub kind: Kind,
    /// Whether the model predicts `x0` rather than the noise.
    pub predicts_x0: bool,
    /// Whether `x0` is clamped to [-1, 1].
    pub clip: bool,
    /// `sqrt(1/abar)`.
    pub sqrt_recip_abar: f32,
    /// `sqrt(1/abar - 1)`.
    pub sqrt_recipm1_abar: f32,
    /// Posterior mean's coefficient of `x0` (DDPM).
    pub coef1: f32,
    /// Posterior mean's coefficient of `x` (DDPM).
    pub coef2: f32,
    /// `sqrt(abar)` of the step arrived at (DDIM).
    pub sqrt_abar_prev: f32,
    /// Coefficient of the noise direction (DDIM).
    pub dir: f32,
    /// Standard deviation of the fresh noise; 0 on the last step.
    pub sigma: f32,
}

/// Results of [`forward`].
#[derive(Clone, Debug, PartialEq)]
pub struct DenoiseOutput<T> {
    /// The next, less noisy, image.
    pub x_prev: Vec<T>,
    /// The predicted clean image, clamped if asked.
    pub x0: Vec<T>,
}

/// `x`, the model's output and optional standard normal `noise`, all of one shape,
/// to `x_prev` and `x0`. `noise` may be left out where `sigma` is 0.
pub fn forward<T: Real>(
    params: &DenoiseParams,
    x: &[T],
    model_output: &[T],
    noise: Option<&[T]>,
) -> DenoiseOutput<T> {
    expect_len(OP, "model_output", model_output, x.len());
    match noise {
        Some(noise) => expect_len(OP, "noise", noise, x.len()),
        None => assert!(params.sigma == 0.0, "{OP}: sigma {} needs noise", params.sigma),
    }
    let mut out = DenoiseOutput { x_prev: Vec::new(), x0: Vec::new() };
    for (i, (&x, &prediction)) in x.iter().zip(model_output).enumerate() {
        let z = noise.map_or(0.0, |noise| noise[i].into());
        let (x_prev, x0) = update(params, x.into(), prediction.into(), z);
        out.x_prev.push(T::from_f64(x_prev));
        out.x0.push(T::from_f64(x0));
    }
    out
}

/// One element's `(x_prev, x0)`.
fn update(params: &DenoiseParams, x: f64, prediction: f64, z: f64) -> (f64, f64) {
    let recip = f64::from(params.sqrt_recip_abar);
    let recipm1 = f64::from(params.sqrt_recipm1_abar);
    let mut x0 = if params.predicts_x0 { prediction } else { recip * x - recipm1 * prediction };
    if params.clip {
        x0 = x0.clamp(-1.0, 1.0);
    }
    let mean = match params.kind {
        Kind::Ddpm => f64::from(params.coef1) * x0 + f64::from(params.coef2) * x,
        Kind::Ddim => {
            let eps = (recip * x - x0) / recipm1;
            f64::from(params.sqrt_abar_prev) * x0 + f64::from(params.dir) * eps
        }
    };
    (mean + f64::from(params.sigma) * z, x0)
}

#[cfg(test)]
mod tests {
    use super::super::{max_abs_error, test_values};
    use super::*;

    // Not of any real schedule: chosen so that the results are exact.
    const PARAMS: DenoiseParams = DenoiseParams {
        kind: Kind::Ddpm,
        predicts_x0: false,
        clip: false,
        sqrt_recip_abar: 2.0,
        sqrt_recipm1_abar: 1.5,
        coef1: 0.25,
        coef2: 0.75,
        sqrt_abar_prev: 0.5,
        dir: 0.125,
        sigma: 0.0,
    };

    #[test]
    fn ddpm_by_hand() {
        // x0 = 2*2 - 1.5*1 = 2.5.
        let out = forward(&PARAMS, &[2f32], &[1.0], None);
        assert_eq!((out.x_prev, out.x0), (vec![2.125], vec![2.5]));
        let clipped = DenoiseParams { clip: true, sigma: 0.5, ..PARAMS };
        let out = forward(&clipped, &[2f32, -2.0], &[1.0, -1.0], Some(&[3.0, 1.0]));
        assert_eq!((out.x_prev, out.x0), (vec![3.25, -1.25], vec![1.0, -1.0]));
        let direct = DenoiseParams { predicts_x0: true, ..PARAMS };
        let out = forward(&direct, &[2f32], &[3.0], None);
        assert_eq!((out.x_prev, out.x0), (vec![2.25], vec![3.0]));
    }

    #[test]
    fn ddim_by_hand() {
        let ddim = DenoiseParams { kind: Kind::Ddim, ..PARAMS };
        // Unclipped, the derived noise is the predicted one.
        let out = forward(&ddim, &[2f32], &[1.0], None);
        assert_eq!((out.x_prev, out.x0), (vec![1.375], vec![2.5]));
        // Clipped: eps = (4 - 1)/1.5 = 2.
        let clipped = DenoiseParams { clip: true, sigma: 0.5, ..ddim };
        let out = forward(&clipped, &[2f32], &[1.0], Some(&[-2.0]));
        assert_eq!((out.x_prev, out.x0), (vec![-0.25], vec![1.0]));
    }

    #[test]
    fn exact_noise_recovers_the_image() {
        // A DDIM step to abar' = 1 with the true noise lands on the clean image.
        let abar = 0.37f64;
        let params = DenoiseParams {
            kind: Kind::Ddim,
            sqrt_recip_abar: (1.0 / abar).sqrt() as f32,
            sqrt_recipm1_abar: (1.0 / abar - 1.0).sqrt() as f32,
            sqrt_abar_prev: 1.0,
            dir: 0.0,
            ..PARAMS
        };
        let image: Vec<f64> = test_values("image", 221);
        let noise: Vec<f64> = test_values("noise", 221);
        let root = [abar.sqrt()];
        let x = super::super::q_sample::forward(&image, &noise, &root, &[(1.0 - abar).sqrt()]);
        let out = forward(&params, &x, &noise, None);
        assert!(max_abs_error(&out.x_prev, &image) < 1e-6);
        assert!(max_abs_error(&out.x0, &image) < 1e-6);
    }

    #[test]
    #[should_panic(expected = "denoise: sigma 0.5 needs noise")]
    fn noise_is_needed_with_sigma() {
        forward(&DenoiseParams { sigma: 0.5, ..PARAMS }, &[0f32], &[0.0], None);
    }
}
