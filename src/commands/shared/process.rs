//! The arguments of the denoising steps.

use demist::checkpoint::NetworkInfo;
use demist::diffusion::{SampleOptions, Sampler, SpacedSchedule};
use demist::{Error, Result};

/// The denoising loop.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Denoising")]
pub struct ProcessArgs {
    /// Denoising steps ("50"), sections ("90,60,60,20,20"), the original DDIM
    /// spacing ("ddim25"), or "" for all.
    #[arg(long, default_value = "50")]
    pub steps: String,
    /// The update rule [default: ddim; with a classifier ddpm].
    #[arg(long, value_enum)]
    pub sampler: Option<Rule>,
    /// Noise of DDIM: 0 is deterministic, 1 as noisy as DDPM.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    pub eta: f64,
    /// Do not clamp the predicted image to the range of pixels.
    #[arg(long)]
    pub no_clip: bool,
    /// Seed of the noise; the same seed draws the same images in any batch size.
    #[arg(long, default_value_t = 0)]
    pub seed: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Rule {
    /// Ancestral sampling.
    Ddpm,
    /// Implicit sampling.
    Ddim,
}

impl ProcessArgs {
    /// The rule asked for. A classifier's gradient shifts DDIM's clean image by
    /// its share of the noise, without a bound where there is hardly a signal (the
    /// first steps of the cosine schedule); DDPM's mean moves by the small variance.
    fn rule(&self, classifier: bool) -> Rule {
        self.sampler.unwrap_or(if classifier { Rule::Ddpm } else { Rule::Ddim })
    }

    /// The options, refused early where they are impossible for the network.
    pub fn options(&self, info: &NetworkInfo, classifier: bool) -> Result<SampleOptions> {
        let rule = self.rule(classifier);
        let options = SampleOptions {
            respacing: self.steps.clone(),
            sampler: match rule {
                Rule::Ddpm => Sampler::Ddpm,
                Rule::Ddim => Sampler::Ddim { eta: self.eta },
            },
            clip: !self.no_clip,
            seed: self.seed,
            ..Default::default()
        };
        Sampler::Ddim { eta: self.eta }.validate()?;
        if rule == Rule::Ddpm && self.eta != 0.0 {
            return Err(Error::Config("--eta is for --sampler ddim".into()));
        }
        SpacedSchedule::new(&info.diffusion, &options.respacing)?;
        Ok(options)
    }

    /// For the small print of a picture.
    pub fn describe(&self, classifier: bool) -> String {
        let steps = if self.steps.is_empty() { "all" } else { &self.steps };
        let rule = match self.rule(classifier) {
            Rule::Ddpm => "DDPM",
            Rule::Ddim => "DDIM",
        };
        format!("{steps} steps of {rule}, seed {}", self.seed)
    }
}
