//! The graphs of training: noising, network and per-image losses, for
//! diffusion networks, super-resolution and classifiers alike.
//!
//! ```text
//! x0 -- q_sample --> x_t -- U-Net ------> out -- mse, vlb --> terms [n] each
//!                        \- classifier -> logits -- cross entropy --> terms
//! ```
//!
//! Each term that is trained on has a tensor of weights `[n]`, which are d loss
//! / d term: importance weights, the scale of the variational bound and the
//! division by the batch size all lie in them.

use crate::Result;
use crate::diffusion::{DiffusionConfig, LossType, MeanType};
use crate::graph::{DType, Graph, TensorId};
use crate::model::{EncoderConfig, ModelConfig, UNetConfig, UNetInputs, build, build_encoder};
use crate::ops::{self, VLB_COEFS};
use crate::recipe::TrainConfig;

/// Where the noise of a training image comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noise {
    /// Drawn on the device from seed, step and image number.
    Drawn,
    /// Written by the host with every micro-batch (to compare with references).
    Given,
}

/// Tensors that the host writes before each micro-batch.
pub(super) struct Inputs {
    pub x0: TensorId,
    pub labels: Option<TensorId>,
    pub t: TensorId,
    pub coefs: TensorId,
    pub rng: TensorId,
    pub noise: Option<TensorId>,
    /// Coefficients of the variational bound [n, VLB_COEFS].
    pub vlb: Option<TensorId>,
    /// Weights of mean squared error or cross-entropy.
    pub weights: TensorId,
    /// Weights of the variational bound.
    pub vb_weights: Option<TensorId>,
    /// Which quarter of the timesteps each image is in: u32 `[n]`.
    pub quartile: TensorId,
}

/// A per-image quantity that is logged.
#[derive(Debug, Clone, Copy)]
pub(super) struct Term {
    pub name: &'static str,
    /// `[n]`.
    pub values: TensorId,
    /// `[n]`, multiplied before averaging.
    pub weights: TensorId,
    /// Part of the loss; the others are only shown.
    pub trained: bool,
}

/// The tensors of a training graph.
pub(super) struct Wiring {
    pub inputs: Inputs,
    pub terms: Vec<Term>,
}

impl Wiring {
    /// (term, weights) of the backward walk.
    pub fn seeds(&self) -> Vec<(TensorId, TensorId)> {
        self.terms.iter().filter(|t| t.trained).map(|t| (t.values, t.weights)).collect()
    }
}

/// Appends everything up to the losses for `n` images. Without `training`
/// there is no dropout.
pub(super) fn wire(
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    config: &TrainConfig,
    n: usize,
    noise: Noise,
    training: bool,
    g: &mut Graph,
) -> Result<Wiring> {
    g.recompute_levels = config.recompute_levels;
    g.half = config.half;
    let (size, channels) = (model.image_size(), model.in_channels());
    let image = [n, size, size, channels];
    let x0 = g.input("x0", &image, DType::F32);
    let labels = model.classes().map(|_| g.input("labels", &[n], DType::U32));
    let t = g.input("t", &[n], DType::F32);
    let coefs = g.input("q_sample coefficients", &[n, 2], DType::F32);
    let rng = g.input("random state", &[4], DType::U32);
    let given = (noise == Noise::Given).then(|| g.input("noise", &image, DType::F32));
    let weights = g.input("loss weights", &[n], DType::F32);
    let quartile = g.input("quartile", &[n], DType::U32);
    let (x_t, eps) = match given {
        Some(eps) => (ops::q_sample_with(g, x0, coefs, eps)?, eps),
        None => ops::q_sample(g, x0, coefs, rng)?,
    };
    let dropout = training.then_some(rng);
    let mut inputs = Inputs {
        x0,
        labels,
        t,
        coefs,
        rng,
        noise: given,
        vlb: None,
        weights,
        vb_weights: None,
        quartile,
    };
    let terms = match model {
        ModelConfig::UNet(m) => {
            let images = Images { x0, x_t, eps };
            let given = UNetInputs { x: x_t, t, y: labels, low_res: None, rng: dropout };
            diffusion_terms(m, diffusion, images, given, &mut inputs, g)?
        }
        ModelConfig::Encoder(m) => classifier_terms(m, x_t, dropout, &inputs, g)?,
    };
    Ok(Wiring { inputs, terms })
}

/// A clean image, its noised form and the noise.
struct Images {
    x0: TensorId,
    x_t: TensorId,
    eps: TensorId,
}

fn diffusion_terms(
    model: &UNetConfig,
    diffusion: &DiffusionConfig,
    Images { x0, x_t, eps }: Images,
    mut given: UNetInputs,
    inputs: &mut Inputs,
    g: &mut Graph,
) -> Result<Vec<Term>> {
    given.low_res = model.small_size.map(|s| ops::resize_area(g, x0, [s, s])).transpose()?;
    let out = build(model, g, given)?;
    let vb_only = diffusion.loss_type.is_vb();
    let mut terms = Vec::new();
    if !vb_only {
        let target = match diffusion.mean_type {
            MeanType::Epsilon => eps,
            MeanType::XStart => x0,
        };
        let mse = ops::mse(g, out, target)?;
        terms.push(Term { name: "mse", values: mse, weights: inputs.weights, trained: true });
    }
    if vb_only || diffusion.var_type.is_learned() {
        let n = g.shape(given.t)[0];
        let coefs = g.input("bound coefficients", &[n, VLB_COEFS], DType::F32);
        let weights = g.input("bound weights", &[n], DType::F32);
        let options = diffusion.vlb_options(vb_only, false);
        let vb = ops::vlb(g, out, x0, x_t, coefs, options)?;
        (inputs.vlb, inputs.vb_weights) = (Some(coefs), Some(weights));
        terms.push(Term { name: "vb", values: vb, weights, trained: true });
    }
    Ok(terms)
}

fn classifier_terms(
    model: &EncoderConfig,
    x_t: TensorId,
    rng: Option<TensorId>,
    inputs: &Inputs,
    g: &mut Graph,
) -> Result<Vec<Term>> {
    let logits = build_encoder(model, g, x_t, inputs.t, rng)?;
    let labels = inputs.labels.ok_or_else(|| {
        crate::Error::Config("a classifier is trained with the classes of its images".into())
    })?;
    let ce = ops::cross_entropy(g, logits, labels)?;
    let weights = inputs.weights;
    let term = |name, values, trained| Term { name, values, weights, trained };
    Ok(vec![
        term("cross_entropy", ce.loss, true),
        term("acc@1", ce.top1, false),
        term("acc@5", ce.top5, false),
    ])
}

/// What the variational bound is multiplied by beside the importance weight.
pub(super) fn vb_scale(diffusion: &DiffusionConfig) -> f64 {
    let steps = diffusion.diffusion_steps as f64;
    match diffusion.loss_type {
        LossType::Mse | LossType::Kl => 1.0,
        LossType::RescaledMse => steps / 1000.0,
        LossType::RescaledKl => steps,
    }
}
