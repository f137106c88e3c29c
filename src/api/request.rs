//! [`DrawRequest`]: what is to be drawn, and what is refused before the work.

use super::Network;
use crate::caps::human_bytes;
use crate::diffusion::{SampleOptions, Sampler, SpacedSchedule};
use crate::{Error, Result, rng};

/// The classes of images that are drawn.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum Classes {
    /// Any: drawn at random from the seed; none of a network without classes.
    #[default]
    Any,
    /// Every class, [`DrawRequest::count`] images of each.
    All,
    /// These, by name ("hat") or by number as text ("2"), [`DrawRequest::count`] images of
    /// each.
    Named(Vec<String>),
    /// The class number of each image, [`DrawRequest::count`] in all.
    OfEach(Vec<u32>),
}

impl Classes {
    /// These classes, by name or by number as text.
    pub fn named<S: Into<String>>(names: impl IntoIterator<Item = S>) -> Classes {
        Classes::Named(names.into_iter().map(Into::into).collect())
    }

    /// Whether a class is told that a network must know.
    fn names_some(&self) -> bool {
        match self {
            Classes::Any | Classes::All => false,
            Classes::Named(names) => !names.is_empty(),
            Classes::OfEach(labels) => !labels.is_empty(),
        }
    }
}

/// What a [`Generator`](super::Generator) is to draw. The default is one image of any
/// class, in 50 steps of DDIM without added noise.
#[derive(Debug, Clone)]
pub struct DrawRequest {
    /// The classes of the images.
    pub classes: Classes,
    /// Images; of each class, where several are named.
    pub count: usize,
    /// Images computed at once, at most. More take more memory and use a GPU better.
    pub batch: usize,
    /// Seed of the noise. An image depends on it, on the image's number and on the
    /// options below; on the batch only in how sums are rounded.
    pub seed: u64,
    /// Denoising steps: a number ("50"), sections ("90,60,60,20,20"), the original DDIM
    /// spacing ("ddim25"), or "" for all steps of the process.
    pub steps: String,
    /// The update rule. `None` takes DDIM without added noise, and DDPM where a
    /// classifier guides: its gradient shifts DDIM's clean image by its share of the
    /// noise, without a bound where there is hardly a signal (the first steps of the cosine
    /// schedule); DDPM's mean moves by the small variance.
    pub sampler: Option<Sampler>,
    /// Clamps the predicted clean image to the range of pixels in every step.
    pub clip: bool,
    /// Weight of classifier-free guidance, which evaluates the network with and without
    /// the class: 1 is the conditional prediction, more exaggerates what the class makes
    /// of it. `None` evaluates the network once.
    pub guidance: Option<f64>,
    /// Does not tell the network the class; a classifier may still guide.
    pub unconditional: bool,
    /// Follows the gradient of this classifier.
    pub classifier: Option<Network>,
    /// Scale of the classifier's gradient.
    pub classifier_scale: f64,
    /// The small images of a super-resolution network: `[count, s, s, c]` in -1..=1, rows
    /// first, channels last.
    pub low_res: Option<Vec<f32>>,
    /// Begins with these values instead of noise: latents `[count, h, w, c]`, or images
    /// where the rule is [`Sampler::DdimReverse`], which leads from images to latents.
    pub start: Option<Vec<f32>>,
    /// Hands out the predicted clean images after these steps of the loop, counted from 1
    /// ([`DrawStep::predicted`](super::DrawStep::predicted)).
    pub shown_steps: Vec<usize>,
    /// Stores activations and convolution weights in half precision: half the memory,
    /// and on a GPU less time.
    pub half: bool,
}

impl Default for DrawRequest {
    fn default() -> Self {
        DrawRequest {
            classes: Classes::default(),
            count: 1,
            batch: 8,
            seed: 0,
            steps: "50".into(),
            sampler: None,
            clip: true,
            guidance: None,
            unconditional: false,
            classifier: None,
            classifier_scale: 1.0,
            low_res: None,
            start: None,
            shown_steps: Vec::new(),
            half: false,
        }
    }
}

impl DrawRequest {
    /// The largest scale of guidance that is not refused.
    pub const MAX_SCALE: f64 = 1e4;

    /// The update rule that is followed.
    pub fn rule(&self) -> Sampler {
        self.sampler.unwrap_or(match self.classifier {
            Some(_) => Sampler::Ddpm,
            None => Sampler::Ddim { eta: 0.0 },
        })
    }

    /// The network whose classes the images belong to: the classifier where it guides a
    /// network that has none.
    pub fn labelled<'a>(&'a self, network: &'a Network) -> &'a Network {
        self.classifier.as_ref().filter(|_| network.classes().is_none()).unwrap_or(network)
    }

    /// Refuses what `network` cannot draw, without a device. Drawing does this first.
    ///
    /// # Errors
    /// [`Error::Config`], or [`Error::File`] if a network is not what it is used for.
    pub fn check(&self, network: &Network) -> Result<()> {
        self.resolve(network).map(drop)
    }

    /// The class number of every image, none where there are no classes; and the number of
    /// images.
    ///
    /// # Errors
    /// As [`DrawRequest::check`].
    pub(super) fn resolve(&self, network: &Network) -> Result<(Vec<u32>, usize)> {
        if self.count == 0 || self.batch == 0 {
            return Err(config("count and batch must be at least 1"));
        }
        self.check_process(network)?;
        self.check_guidance(network)?;
        let labelled = self.labelled(network);
        let (labels, count) = match (&self.classes, labelled.classes()) {
            (classes, None) if classes.names_some() => {
                return Err(config("the network is not conditional, it has no classes"));
            }
            (_, None) => (Vec::new(), self.count),
            (Classes::Any, Some(classes)) => (self.random_labels(classes)?, self.count),
            (Classes::All, Some(classes)) => self.repeat(0..classes as u32)?,
            (Classes::Named(names), Some(_)) => {
                let class = |name: &String| labelled.info().class(name);
                self.repeat(names.iter().map(class).collect::<Result<Vec<u32>>>()?)?
            }
            (Classes::OfEach(labels), Some(classes)) => {
                self.check_labels(labels, classes)?;
                (labels.clone(), self.count)
            }
        };
        self.check_operands(network, count)?;
        Ok((labels, count))
    }

    /// The options of the sampling loop.
    pub(super) fn options(&self) -> SampleOptions {
        SampleOptions {
            respacing: self.steps.clone(),
            sampler: self.rule(),
            clip: self.clip,
            seed: self.seed,
            classifier_scale: self.classifier_scale,
            unconditional: self.unconditional,
            guidance_weight: self.guidance.unwrap_or(1.0),
        }
    }

    /// Refuses a process that `network` cannot follow: the part of [`DrawRequest::check`]
    /// that needs no images.
    ///
    /// # Errors
    /// As [`DrawRequest::check`].
    pub fn check_process(&self, network: &Network) -> Result<()> {
        network.unet()?;
        self.rule().validate()?;
        SpacedSchedule::new(&network.info().diffusion, &self.steps)?;
        Ok(())
    }

    fn check_guidance(&self, network: &Network) -> Result<()> {
        let scales = [
            ("classifier scale", self.classifier_scale),
            ("guidance", self.guidance.unwrap_or(1.0)),
        ];
        for (name, scale) in scales {
            if scale.is_nan() || scale.abs() > Self::MAX_SCALE {
                return Err(Error::Config(format!(
                    "{name} {scale:?} is not between -{0} and {0}",
                    Self::MAX_SCALE
                )));
            }
        }
        if (self.guidance.is_some() || self.unconditional) && !network.unet()?.null_class {
            return Err(config(
                "the network knows no images without a class: guidance without a classifier and \
                 unconditional drawing need one that was trained with label dropout",
            ));
        }
        let Some(classifier) = &self.classifier else { return Ok(()) };
        let known = classifier.encoder()?.out_channels;
        match network.classes() {
            Some(n) if n != known => {
                Err(Error::Config(format!("the classifier knows {known} classes, the network {n}")))
            }
            Some(_) => match classifier.other_names(network) {
                Some([own, other]) => Err(Error::Config(format!(
                    "the classifier knows the classes {own}, the network {other}"
                ))),
                None => Ok(()),
            },
            None => Ok(()),
        }
    }

    /// Labels drawn from the seed.
    fn random_labels(&self, classes: usize) -> Result<Vec<u32>> {
        let count = u32::try_from(self.count).map_err(|_| self.too_many(1))?;
        let stream = rng::STREAM_LABEL;
        let label = |i| rng::uniform_below(self.seed, 0, stream, i, 0, classes as u32);
        Ok((0..count).map(label).collect())
    }

    /// As many labels of each class as images are wanted of it.
    fn repeat(&self, classes: impl IntoIterator<Item = u32>) -> Result<(Vec<u32>, usize)> {
        let classes: Vec<u32> = classes.into_iter().collect();
        if self.low_res.is_some() && classes.len() > 1 {
            return Err(config(
                "small images are enlarged once each: name one class for all of them, or the class \
                 of each",
            ));
        }
        let count = self.count.checked_mul(classes.len()).filter(|n| u32::try_from(*n).is_ok());
        let count = count.ok_or_else(|| self.too_many(classes.len()))?;
        let each = |class| std::iter::repeat_n(class, self.count);
        Ok((classes.into_iter().flat_map(each).collect(), count))
    }

    fn too_many(&self, classes: usize) -> Error {
        Error::Config(format!(
            "{} images of {classes} classes are more than {} images",
            self.count,
            u32::MAX
        ))
    }

    fn check_labels(&self, labels: &[u32], classes: usize) -> Result<()> {
        if labels.len() != self.count {
            return Err(Error::Config(format!(
                "{} images with {} classes: give the class of each",
                self.count,
                labels.len()
            )));
        }
        match labels.iter().find(|l| **l as usize >= classes) {
            Some(label) => {
                Err(Error::Config(format!("class {label} of a network of {classes} classes")))
            }
            None => Ok(()),
        }
    }

    /// That there is room for the images, and that given values are as many as they need.
    fn check_operands(&self, network: &Network, count: usize) -> Result<()> {
        if u32::try_from(count).is_err() {
            return Err(self.too_many(1));
        }
        let (side, channels) = (network.image_size(), network.channels());
        let values = count as u64 * (side * side * channels) as u64;
        let mut room: Vec<f32> = Vec::new();
        let fits = usize::try_from(values).is_ok_and(|n| room.try_reserve_exact(n).is_ok());
        if !fits {
            let bytes = human_bytes(values.saturating_mul(4));
            return Err(Error::Memory(format!("{count} images need {bytes}")));
        }
        let check = |name: &str, given: Option<&Vec<f32>>, side: usize| match given {
            Some(v) if v.len() != count * side * side * channels => Err(Error::Config(format!(
                "{name} holds {} values, {count} images of {side}x{side}x{channels} are needed",
                v.len()
            ))),
            _ => Ok(()),
        };
        check("start", self.start.as_ref(), side)?;
        match (network.small_size(), &self.low_res) {
            (Some(small), Some(_)) => check("low_res", self.low_res.as_ref(), small),
            (None, None) => Ok(()),
            (Some(small), None) => Err(Error::Config(format!(
                "this network enlarges images of {small} pixels, and none are given"
            ))),
            (None, Some(_)) => {
                Err(config("small images are for super-resolution networks, this is none"))
            }
        }
    }
}

fn config(text: &str) -> Error {
    Error::Config(text.into())
}
