//! [`Generator`]: a network on a device, that draws what it is asked for.

use super::{Device, DrawRequest, Drawn, Network};
use crate::diffusion::{
    Guide, GuideGraph, SampleJob, Sampler, SamplingGraph, SamplingLoop, SamplingNeeds,
    SpacedSchedule,
};
use crate::graph::{FlatKind, ParamInfo, Plan};
use crate::output::image::from_u8;
use crate::runtime::FlatBuffers;
use crate::{Error, Result, rng};
use std::ops::Range;

/// A diffusion network on a device.
///
/// What a request needs is compiled when it is drawn, and kept for the next one that
/// needs the same.
pub struct Generator {
    device: Device,
    network: Network,
    compiled: Option<Compiled>,
}

/// A sampling loop with the weights that it is bound to.
struct Compiled {
    setup: Setup,
    /// Serves smaller batches too: see [`Generator::prepare`].
    prepared: bool,
    sampling: SamplingLoop,
    _weights: FlatBuffers,
    _classifier_weights: Option<FlatBuffers>,
}

/// What of a request decides what is compiled.
#[derive(Clone)]
struct Setup {
    batch: usize,
    needs: SamplingNeeds,
    classifier: Option<Network>,
}

impl Setup {
    /// `count` images of a request.
    fn of(request: &DrawRequest, count: usize) -> Setup {
        Setup {
            batch: request.batch.min(count),
            needs: SamplingNeeds {
                given_noise: false,
                keep_x0: !request.shown_steps.is_empty(),
                guided: request.classifier.is_some(),
                classifier_free: request.guidance.is_some(),
                half: request.half,
            },
            classifier: request.classifier.clone(),
        }
    }

    /// Whether what was compiled for this serves `other`, or up to `most` images at once.
    fn serves(&self, other: &Setup, most: usize) -> bool {
        let same_classifier = match (&self.classifier, &other.classifier) {
            (Some(a), Some(b)) => a.is(b),
            (a, b) => a.is_none() && b.is_none(),
        };
        (other.batch..=most).contains(&self.batch) && self.needs == other.needs && same_classifier
    }
}

/// How far drawing is.
#[derive(Debug, Clone)]
pub struct DrawStep<'a> {
    /// Steps done of all batches: 0 when everything is compiled and the first begins.
    pub done: usize,
    /// Steps of all batches.
    pub in_all: usize,
    /// Numbers of the images at work.
    pub images: Range<usize>,
    /// Steps done of these images.
    pub step: usize,
    /// Steps of each image.
    pub steps: usize,
    /// The clean images `[images, size, size, channels]` that the network predicts after
    /// this step, if it is one of [`DrawRequest::shown_steps`].
    pub predicted: Option<&'a [f32]>,
}

impl DrawStep<'_> {
    /// Images drawn so far, those at work by their share of the steps.
    pub fn images_drawn(&self) -> f64 {
        let share = self.step as f64 / self.steps.max(1) as f64;
        self.images.start as f64 + share * self.images.len() as f64
    }
}

/// Called after every step; an error that it returns stops the drawing.
pub type Watch<'a> = &'a mut dyn FnMut(&DrawStep) -> Result<()>;

impl Generator {
    /// Opens a network file on a device.
    ///
    /// # Errors
    /// [`Error::Io`] or [`Error::File`] if it is no file of a diffusion network.
    #[cfg(feature = "files")]
    pub fn open(device: &Device, path: impl AsRef<std::path::Path>) -> Result<Generator> {
        Self::new(device, Network::read(path)?)
    }

    /// A network that was read already.
    ///
    /// # Errors
    /// [`Error::File`] if it is no diffusion network.
    pub fn new(device: &Device, network: Network) -> Result<Generator> {
        network.unet()?;
        Ok(Generator { device: device.clone(), network, compiled: None })
    }

    /// The device.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The network.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// Draws images.
    ///
    /// # Errors
    /// [`Error::Config`] for an impossible request, [`Error::Memory`] if the device has no
    /// room for the batch, [`Error::Device`] on a fault.
    pub async fn draw(&mut self, request: &DrawRequest) -> Result<Drawn> {
        self.draw_watched(request, &mut |_| Ok(())).await
    }

    /// As [`Generator::draw`]; `watch` is called when everything is compiled and after
    /// every step. To stop, it returns an error, for instance [`Error::Interrupted`].
    ///
    /// # Errors
    /// As [`Generator::draw`], and what `watch` returns.
    pub async fn draw_watched(&mut self, request: &DrawRequest, watch: Watch<'_>) -> Result<Drawn> {
        let (labels, count) = request.resolve(&self.network)?;
        self.compile(Setup::of(request, count), request.batch, false).await?;
        let mut drawn = self.without_images(request, labels, count);
        for first in (0..count).step_by(request.batch) {
            let images = first..count.min(first + request.batch);
            let values = self.draw_batch(request, &drawn, images, watch).await?;
            drawn.values.extend(values);
        }
        Ok(drawn)
    }

    /// Compiles what a request needs, so that drawing begins at once. It serves later
    /// requests too that need the same for as many images or fewer, if their
    /// [`DrawRequest::batch`] is no less than this one's.
    ///
    /// # Errors
    /// As [`Generator::draw`].
    pub async fn prepare(&mut self, request: &DrawRequest) -> Result<()> {
        let (_, count) = request.resolve(&self.network)?;
        self.compile(Setup::of(request, count), request.batch, true).await
    }

    /// Follows images `[count, size, size, channels]` in -1..=1 back to the latents that
    /// deterministic DDIM draws them from (Song et al. 2021, section 4.3): a request with
    /// them as [`DrawRequest::start`], no clamping, and the same steps leads to the images
    /// again, the closer the more steps there are. Of the request, `start`, `sampler` and
    /// `clip` do not matter.
    ///
    /// # Errors
    /// As [`Generator::draw_watched`].
    pub async fn encode(
        &mut self,
        images: &[f32],
        request: &DrawRequest,
        watch: Watch<'_>,
    ) -> Result<Drawn> {
        let request = DrawRequest {
            start: Some(images.to_vec()),
            sampler: Some(Sampler::DdimReverse),
            // Clamping would make the path one that cannot be walked back.
            clip: false,
            ..request.clone()
        };
        self.draw_watched(&request, watch).await
    }

    /// Enlarges what another network drew. It gets bytes, as it would from a file, and the
    /// images keep their classes. Of the request, `classes`, `count` and `low_res` do not matter.
    ///
    /// # Errors
    /// As [`Generator::draw_watched`].
    pub async fn enlarge(
        &mut self,
        small: &Drawn,
        request: &DrawRequest,
        watch: Watch<'_>,
    ) -> Result<Drawn> {
        let conditional = self.network.classes().is_some();
        let labels = if conditional { small.labels.clone() } else { Vec::new() };
        let request = DrawRequest {
            classes: super::Classes::OfEach(labels),
            count: small.count,
            low_res: Some(from_u8(&small.pixels())),
            ..request.clone()
        };
        let large = self.draw_watched(&request, watch).await?;
        let (labels, class_names) = (small.labels.clone(), small.class_names.clone());
        Ok(Drawn { labels, class_names, ..large })
    }

    /// The noise `[size, size, channels]` that image `number` of a seed is drawn from.
    pub fn latent(&self, seed: u64, number: u32) -> Vec<f32> {
        let mut latent = vec![0.0; self.image_len()];
        rng::fill_normal(&mut latent, seed, 0, rng::STREAM_XT, number);
        latent
    }

    /// Values of one image.
    fn image_len(&self) -> usize {
        self.network.image_size().pow(2) * self.network.channels()
    }

    /// What is known of the images before they are drawn.
    fn without_images(&self, request: &DrawRequest, labels: Vec<u32>, count: usize) -> Drawn {
        let labelled = request.labelled(&self.network);
        Drawn {
            values: Vec::new(),
            count,
            size: self.network.image_size(),
            channels: self.network.channels(),
            class_names: labels.iter().map(|l| labelled.class_name(*l)).collect(),
            labels,
        }
    }

    /// Draws some of the images that `drawn` tells of.
    async fn draw_batch(
        &self,
        request: &DrawRequest,
        drawn: &Drawn,
        images: Range<usize>,
        watch: Watch<'_>,
    ) -> Result<Vec<f32>> {
        let Some(compiled) = &self.compiled else {
            return Err(Error::Config("nothing is compiled".into()));
        };
        let part = |all: &'_ Option<Vec<f32>>| -> Option<Vec<f32>> {
            let len = all.as_ref()?.len() / drawn.count;
            Some(all.as_ref()?[images.start * len..images.end * len].to_vec())
        };
        let (low_res, start) = (part(&request.low_res), part(&request.start));
        let job = SampleJob {
            first: images.start as u64,
            count: images.len(),
            labels: if drawn.labels.is_empty() { &[] } else { &drawn.labels[images.clone()] },
            low_res: low_res.as_deref(),
            start: start.as_deref(),
            show_x0: &request.shown_steps,
        };
        let diffusion = &self.network.info().diffusion;
        let steps = SpacedSchedule::new(diffusion, &request.steps)?.num_steps();
        let before = images.start / request.batch * steps;
        let in_all = drawn.count.div_ceil(request.batch) * steps;
        let mut tell = |step: usize, predicted: Option<&[f32]>| {
            let images = images.clone();
            watch(&DrawStep { done: before + step, in_all, images, step, steps, predicted })
        };
        if images.start == 0 {
            tell(0, None)?;
        }
        let options = request.options();
        let ctx = self.device.context();
        let values = compiled
            .sampling
            .sample_async(ctx, &options, &job, &mut |progress| {
                tell(progress.done, progress.x0.as_deref())
            })
            .await?;
        if values.iter().any(|v| !v.is_finite()) {
            let scale = options.classifier_scale.abs().max(options.guidance_weight.abs());
            let hint = if scale > 1.0 { "; try a smaller scale of guidance" } else { "" };
            return Err(Error::Device(format!(
                "{} produced pixels that are not finite{hint}",
                self.device.summary().name
            )));
        }
        Ok(values)
    }

    /// Uploads the weights and compiles, unless what there is serves the setup. A batch of
    /// another size rounds in another order, so that only what was prepared on purpose
    /// serves others, of at most `most` images.
    async fn compile(&mut self, setup: Setup, most: usize, prepared: bool) -> Result<()> {
        let serves = |c: &Compiled| {
            c.setup.serves(&setup, if c.prepared && !prepared { most } else { setup.batch })
        };
        if let Some(compiled) = self.compiled.as_mut().filter(|c| serves(c)) {
            compiled.prepared |= prepared;
            return Ok(());
        }
        // Its memory goes first.
        self.compiled = None;
        let (gpu, ctx) = (self.device.gpu(), self.device.context());
        let info = self.network.info();
        info.model.check_batch(setup.batch, gpu.caps.max_binding)?;
        let guide = match &setup.classifier {
            Some(classifier) => Some(self.compile_guide(classifier, setup.batch).await?),
            None => None,
        };
        let (guide, classifier_weights) = guide.unzip();
        let wiring = SamplingGraph::new(self.network.unet()?, setup.batch, setup.needs)?;
        let plan = wiring.plan(&gpu.caps)?;
        let flat = upload(&self.device, &self.network, &plan, &wiring.graph.params).await?;
        let weights = (&flat, FlatKind::Weights);
        let sampling =
            SamplingLoop::compile_async(ctx, wiring, plan, &info.diffusion, weights, guide).await?;
        self.compiled = Some(Compiled {
            setup,
            prepared,
            sampling,
            _weights: flat,
            _classifier_weights: classifier_weights,
        });
        Ok(())
    }

    /// Compiles the gradient of a classifier.
    async fn compile_guide(
        &self,
        classifier: &Network,
        batch: usize,
    ) -> Result<(Guide, FlatBuffers)> {
        let (gpu, ctx) = (self.device.gpu(), self.device.context());
        let (model, info) = (classifier.encoder()?, classifier.info());
        info.model.check_batch(batch, gpu.caps.max_binding)?;
        let wiring = GuideGraph::new(model, batch)?;
        let plan = wiring.plan(&gpu.caps)?;
        let flat = upload(&self.device, classifier, &plan.0, &wiring.graph.params).await?;
        let guide = Guide::compile_async(ctx, wiring, plan, model, &info.diffusion, &flat).await?;
        Ok((guide, flat))
    }
}

/// Uploads the weights that a plan reads, if there is room for the plan.
pub(super) async fn upload(
    device: &Device,
    network: &Network,
    plan: &Plan,
    params: &[ParamInfo],
) -> Result<FlatBuffers> {
    let gpu = device.gpu();
    let values = network.values(params)?;
    let report = plan.report();
    gpu.check_room(report.slots + report.pinned + report.params_inference)?;
    let flat = FlatBuffers::inference_async(gpu, &plan.params).await?;
    flat.write(gpu, FlatKind::Weights, params, &values)?;
    Ok(flat)
}
