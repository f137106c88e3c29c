//! The arguments of the denoising steps, and what they mean.

use demist::{DrawRequest, Error, Network, Result, Sampler};

/// The denoising loop.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Denoising")]
pub struct ProcessArgs {
    /// Denoising steps ("50"), sections ("90,60,60,20,20"), the original DDIM
    /// spacing ("ddim25"), or "" for all.
    #[arg(long, default_value = "50")]
    steps: String,
    /// The update rule [default: ddim; with a classifier ddpm].
    #[arg(long, value_enum)]
    sampler: Option<Rule>,
    /// Noise of DDIM: 0 is deterministic, 1 as noisy as DDPM.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    eta: f64,
    /// Do not clamp the predicted image to the range of pixels.
    #[arg(long)]
    no_clip: bool,
    /// Seed of the noise; the same seed draws the same images in any batch size.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rule {
    /// Ancestral sampling.
    Ddpm,
    /// Implicit sampling.
    Ddim,
}

impl ProcessArgs {
    /// A request of this process, guided by a classifier if there is one.
    pub fn request(&self, classifier: Option<Network>) -> Result<DrawRequest> {
        let ddim = Sampler::Ddim { eta: self.eta };
        ddim.validate()?;
        let sampler = match (self.sampler, &classifier) {
            (Some(Rule::Ddim), _) | (None, None) => ddim,
            (Some(Rule::Ddpm), _) | (None, Some(_)) => Sampler::Ddpm,
        };
        if sampler == Sampler::Ddpm && self.eta != 0.0 {
            return Err(Error::Config("--eta is for --sampler ddim".into()));
        }
        Ok(DrawRequest {
            steps: self.steps.clone(),
            sampler: Some(sampler),
            clip: !self.no_clip,
            seed: self.seed,
            classifier,
            ..Default::default()
        })
    }
}

/// The process of a request, for the small print of a picture.
pub fn describe(request: &DrawRequest) -> String {
    let steps = if request.steps.is_empty() { "all" } else { &request.steps };
    let rule = match request.rule() {
        Sampler::Ddpm => "DDPM",
        Sampler::Ddim { .. } | Sampler::DdimReverse => "DDIM",
    };
    format!("{steps} steps of {rule}, seed {}", request.seed)
}

/// Refuses scales of guidance that no picture survives; `name` is the option's.
pub fn check_scale(name: &str, scale: f64) -> Result<f64> {
    let most = DrawRequest::MAX_SCALE;
    if scale.abs() <= most {
        Ok(scale)
    } else {
        Err(Error::Config(format!("{name} {scale:?} is not between -{most} and {most}")))
    }
}
