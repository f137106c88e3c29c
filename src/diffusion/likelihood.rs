//! Likelihood: the variational bound of images under a diffusion network, in
//! bits per dimension (Nichol and Dhariwal 2021, section 3; the reference's
//! `calc_bpd_loop`).
//!
//! For every timestep the image is noised afresh and the term of the bound is
//! computed on the device; the prior is a closed form on the host. The sum of
//! all is an upper bound of the negative log-likelihood.

use super::sampling::check_labels;
use super::{DiffusionConfig, SpacedSchedule, Tables};
use crate::caps::Caps;
use crate::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions, TensorId};
use crate::model::{UNetConfig, UNetInputs, build};
use crate::ops::{self, VLB_COEFS};
use crate::runtime::{CompileOptions, Context, FlatBuffers, Program};
use crate::{Error, Result, rng};

/// Terms of an image at a timestep: bound, error of x_0, error of the noise.
const TERMS: usize = 3;

/// The graph of one timestep's terms.
pub struct LikelihoodGraph {
    /// Noising, network and terms.
    pub graph: Graph,
    x0: TensorId,
    t: TensorId,
    labels: Option<TensorId>,
    coefs: TensorId,
    bound: TensorId,
    rng: TensorId,
    noise: Option<TensorId>,
    /// [n, 3].
    terms: TensorId,
    classes: Option<usize>,
}

impl LikelihoodGraph {
    /// Describes it for `n` images; `clip` limits the predicted image to
    /// -1..=1, `given_noise` takes the noise from the host.
    ///
    /// # Errors
    /// [`Error::Config`] for impossible options and for super-resolution
    /// networks, whose likelihood would need small images too.
    pub fn new(
        model: &UNetConfig,
        diffusion: &DiffusionConfig,
        n: usize,
        clip: bool,
        given_noise: bool,
    ) -> Result<LikelihoodGraph> {
        if model.small_size.is_some() {
            return Err(Error::Config(
                "the likelihood of super-resolution networks is not defined without small images"
                    .into(),
            ));
        }
        let mut g = Graph::new();
        let image = [n, model.image_size, model.image_size, model.in_channels];
        let x0 = g.input("x0", &image, DType::F32);
        let t = g.input("t", &[n], DType::F32);
        let labels = model.num_classes.map(|_| g.input("labels", &[n], DType::U32));
        let coefs = g.input("q_sample coefficients", &[n, 2], DType::F32);
        let bound = g.input("bound coefficients", &[n, VLB_COEFS], DType::F32);
        let rng = g.input("random state", &[4], DType::U32);
        let noise = given_noise.then(|| g.input("noise", &image, DType::F32));
        let (x_t, eps) = match noise {
            Some(eps) => (ops::q_sample_with(&mut g, x0, coefs, eps)?, eps),
            None => ops::q_sample(&mut g, x0, coefs, rng)?,
        };
        let inputs = UNetInputs { x: x_t, t, y: labels, low_res: None, rng: None };
        let out = build(model, &mut g, inputs)?;
        let options = diffusion.vlb_options(false, clip);
        let terms = ops::likelihood_terms(&mut g, out, x0, x_t, eps, bound, options)?;
        let classes = model.num_classes;
        Ok(LikelihoodGraph { graph: g, x0, t, labels, coefs, bound, rng, noise, terms, classes })
    }

    /// Plans it.
    ///
    /// # Errors
    /// [`Error::Memory`] if a tensor exceeds the device's limits.
    pub fn plan(&self, caps: &Caps) -> Result<Plan> {
        let mut lower = Lower::new(&self.graph, caps);
        lower.keep_prepared();
        lower.forward(&self.graph)?;
        Plan::new(&self.graph, lower, &[self.terms], PlanOptions::default())
    }
}

/// The bound of one image. The vectors run from the last timestep to the first.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct ImageLikelihood {
    /// KL divergence of q(x_T | x_0) from the standard normal, bits a dimension.
    pub prior_bpd: f64,
    /// The term of each timestep, bits a dimension.
    pub vb: Vec<f64>,
    /// Mean squared error of the predicted image.
    pub xstart_mse: Vec<f64>,
    /// Mean squared error of the noise that follows from it.
    pub mse: Vec<f64>,
}

impl ImageLikelihood {
    /// Bits per dimension in all.
    pub fn total_bpd(&self) -> f64 {
        self.prior_bpd + self.vb.iter().sum::<f64>()
    }
}

/// Images whose likelihood is wanted.
#[derive(Debug, Clone, Copy)]
pub struct LikelihoodJob<'a> {
    /// Number of the first image, which its noise depends on.
    pub first: u64,
    /// [count, h, w, c] in [-1, 1], at most the batch.
    pub images: &'a [f32],
    /// The class of each for a conditional network.
    pub labels: &'a [u32],
    /// Seed of the noise.
    pub seed: u64,
}

/// Noise of a loop step, from the host.
pub type GivenNoise<'a> = &'a dyn Fn(usize) -> Vec<f32>;

/// A network compiled to score batches of a fixed size.
pub struct Likelihood {
    wiring: LikelihoodGraph,
    program: Program,
    diffusion: DiffusionConfig,
    schedule: SpacedSchedule,
    tables: Tables,
    batch: usize,
}

impl Likelihood {
    /// Compiles a graph and its plan with the weights in `flat`, over the
    /// timesteps that `respacing` keeps ("" for all).
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room, [`Error::Config`] for an
    /// impossible respacing.
    pub async fn compile_async(
        ctx: Context<'_>,
        wiring: LikelihoodGraph,
        plan: Plan,
        diffusion: &DiffusionConfig,
        respacing: &str,
        flat: &FlatBuffers,
    ) -> Result<Likelihood> {
        let options = CompileOptions { weights: FlatKind::Weights, ..Default::default() };
        let program = Program::compile_async(ctx, plan, flat, options).await?;
        let schedule = SpacedSchedule::new(diffusion, respacing)?;
        let tables = schedule.tables()?;
        let batch = wiring.graph.shape(wiring.t)[0];
        let diffusion = diffusion.clone();
        Ok(Likelihood { wiring, program, diffusion, schedule, tables, batch })
    }

    /// Images at once.
    pub fn batch(&self) -> usize {
        self.batch
    }

    /// Timesteps that are summed over.
    pub fn steps(&self) -> usize {
        self.schedule.num_steps()
    }

    /// The original timesteps in the order of the results, last first.
    pub fn timesteps(&self) -> Vec<usize> {
        self.schedule.timestep_map.iter().rev().copied().collect()
    }

    /// Scores a batch; `progress` is called after every timestep and may stop by
    /// an error. `noise` gives the noise of each loop step if the graph takes it.
    ///
    /// # Errors
    /// [`Error::Shape`] for operands that do not fit, [`Error::Device`] on a fault.
    pub async fn evaluate_async(
        &self,
        ctx: Context<'_>,
        job: &LikelihoodJob<'_>,
        noise: Option<GivenNoise<'_>>,
        progress: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<ImageLikelihood>> {
        let (gpu, w) = (ctx.gpu, &self.wiring);
        let len: usize = w.graph.shape(w.x0).iter().skip(1).product();
        let count = job.images.len() / len;
        self.check(job, count * len, count)?;
        if noise.is_some() != w.noise.is_some() {
            let detail = "noise must be given exactly if it is not drawn on the device";
            return Err(Error::shape("likelihood", detail));
        }
        let mut padded = job.images.to_vec();
        padded.resize(self.batch * len, 0.0);
        self.program.write(gpu, w.x0, &padded)?;
        if let Some(id) = w.labels {
            let mut labels = job.labels.to_vec();
            labels.resize(self.batch, 0);
            self.program.write(gpu, id, &labels)?;
        }
        let of_image = |image: &[f32]| ImageLikelihood {
            prior_bpd: self.tables.prior_bpd(image),
            ..Default::default()
        };
        let mut scores: Vec<ImageLikelihood> = job.images.chunks(len).map(of_image).collect();
        for (done, i) in (0..self.steps()).rev().enumerate() {
            if let (Some(id), Some(noise)) = (w.noise, noise) {
                self.program.write(gpu, id, &noise(done))?;
            }
            let terms = self.terms(ctx, job, i).await?;
            for (score, terms) in scores.iter_mut().zip(terms.chunks(TERMS)) {
                score.vb.push(terms[0].into());
                score.xstart_mse.push(terms[1].into());
                score.mse.push(terms[2].into());
            }
            progress()?;
        }
        Ok(scores)
    }

    fn check(&self, job: &LikelihoodJob, values: usize, count: usize) -> Result<()> {
        let labels = if self.wiring.classes.is_some() { count } else { job.labels.len() };
        if values != job.images.len() || count > self.batch || job.labels.len() != labels {
            let detail = format!(
                "{} values and {} labels for a batch of {}",
                job.images.len(),
                job.labels.len(),
                self.batch
            );
            return Err(Error::shape("likelihood", detail));
        }
        check_labels("likelihood", job.labels, self.wiring.classes)
    }

    /// The terms [n, 3] of kept step `i`.
    async fn terms(&self, ctx: Context<'_>, job: &LikelihoodJob<'_>, i: usize) -> Result<Vec<f32>> {
        let (gpu, w, n) = (ctx.gpu, &self.wiring, self.batch);
        let t = self.schedule.model_timestep(i, &self.diffusion);
        let [lo, hi] = rng::key(job.seed);
        self.program.write(gpu, w.t, &vec![t; n])?;
        self.program.write(gpu, w.coefs, &vec![self.tables.q_sample_coefs(i); n])?;
        let bound = self.tables.vlb_coefs(i, self.diffusion.var_type).repeat(n);
        self.program.write(gpu, w.bound, &bound)?;
        self.program.write(gpu, w.rng, &[lo, hi, i as u32, job.first as u32])?;
        self.program.run(gpu)?;
        Ok(self.program.read_async(gpu, &[w.terms]).await?.remove(0))
    }
}
