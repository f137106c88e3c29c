//! Loading networks and drawing from them, shared by all commands that draw.

use super::shared::bar;
use demist::caps::Caps;
use demist::checkpoint::parameters;
use demist::checkpoint::{NetworkInfo, TensorFile, read_network};
use demist::data::first_names;
use demist::diffusion::{
    Guide, GuideGraph, SampleJob, SampleOptions, SamplingGraph, SamplingLoop, SamplingNeeds,
    SpacedSchedule,
};
use demist::graph::{FlatKind, ParamInfo, Plan};
use demist::model::{ModelConfig, UNetConfig};
use demist::output::image::to_u8;
use demist::runtime::{Context, FlatBuffers};
use demist::train::StopFlag;
use demist::{Error, Result};
use std::path::Path;

/// Weights on the device, compiled for sampling.
pub struct Loaded {
    pub info: NetworkInfo,
    pub sampler: SamplingLoop,
    /// Keep the weights alive that the programs are bound to.
    _flat: FlatBuffers,
    _guide: Option<FlatBuffers>,
}

/// How a network is to be compiled.
#[derive(Debug, Clone, Copy, Default)]
pub struct Want<'a> {
    /// Images at once.
    pub batch: usize,
    /// The predicted clean images will be asked for.
    pub keep_x0: bool,
    /// Evaluate with and without the class.
    pub classifier_free: bool,
    /// A classifier to guide with.
    pub classifier: Option<&'a Path>,
    /// Half precision.
    pub half: bool,
}

/// A network's values in device layout: of a run's state the averaged ones.
pub fn values(
    params: &[ParamInfo],
    path: &Path,
    info: &NetworkInfo,
    file: &TensorFile,
) -> Result<Vec<Vec<f32>>> {
    parameters(params, file, info.holds.prefix()).map_err(|e| Error::file(path, e))
}

/// Uploads weights for a plan.
pub fn upload(
    ctx: Context,
    plan: &Plan,
    params: &[ParamInfo],
    values: &[Vec<f32>],
) -> Result<FlatBuffers> {
    let report = plan.report();
    ctx.gpu.check_room(report.slots + report.pinned + report.params_inference)?;
    let flat = FlatBuffers::inference(ctx.gpu, &plan.params)?;
    flat.write(ctx.gpu, FlatKind::Weights, params, values)?;
    Ok(flat)
}

/// Uploads `file`'s weights and compiles as wanted.
pub fn load(
    ctx: Context,
    path: &Path,
    info: NetworkInfo,
    file: &TensorFile,
    want: Want,
) -> Result<Loaded> {
    let caps = &ctx.gpu.caps;
    info.model.check_batch(want.batch, caps.max_binding)?;
    let guide = match want.classifier {
        Some(classifier) => Some(load_guide(ctx, classifier, &info, want.batch)?),
        None => None,
    };
    let needs = SamplingNeeds {
        given_noise: false,
        keep_x0: want.keep_x0,
        guided: guide.is_some(),
        classifier_free: want.classifier_free,
        half: want.half,
    };
    let model = info.model.unet().map_err(|e| Error::file(path, e.to_string()))?;
    let wiring = SamplingGraph::new(model, want.batch, needs)?;
    let values = values(&wiring.graph.params, path, &info, file)?;
    let plan = wiring.plan(caps)?;
    let flat = upload(ctx, &plan, &wiring.graph.params, &values)?;
    let (guide, guide_flat) = guide.unzip();
    let weights = (&flat, FlatKind::Weights);
    let sampler = SamplingLoop::compile(ctx, wiring, plan, &info.diffusion, weights, guide)?;
    Ok(Loaded { info, sampler, _flat: flat, _guide: guide_flat })
}

/// Reads a classifier that knows the same classes as the network.
fn load_guide(
    ctx: Context,
    path: &Path,
    network: &NetworkInfo,
    batch: usize,
) -> Result<(Guide, FlatBuffers)> {
    let (info, file) = read_network(path)?;
    let model = info.model.encoder().map_err(|e| Error::file(path, e.to_string()))?;
    let (ours, theirs) = (&info.data.classes, &network.data.classes);
    if let Some(n) = network.model.classes().filter(|n| *n != model.out_channels) {
        return Err(Error::Config(format!(
            "the classifier knows {} classes, the network {n}",
            model.out_channels
        )));
    }
    if network.model.classes().is_some() && !ours.is_empty() && !theirs.is_empty() && ours != theirs
    {
        return Err(Error::Config(format!(
            "the classifier knows the classes {}, the network {}",
            first_names(ours),
            first_names(theirs)
        )));
    }
    info.model.check_batch(batch, ctx.gpu.caps.max_binding)?;
    let wiring = GuideGraph::new(model, batch)?;
    let values = values(&wiring.graph.params, path, &info, &file)?;
    let plan = wiring.plan(&ctx.gpu.caps)?;
    let flat = upload(ctx, &plan.0, &wiring.graph.params, &values)?;
    let guide = Guide::compile(ctx, wiring, plan, model, &info.diffusion, &flat)?;
    Ok((guide, flat))
}

/// The network at `path` if it draws images from noise alone.
pub fn draws_from_noise<'a>(path: &Path, info: &'a NetworkInfo) -> Result<&'a UNetConfig> {
    let model = info.model.unet().map_err(|e| Error::file(path, e.to_string()))?;
    match model.small_size {
        None => Ok(model),
        Some(small) => Err(Error::file(
            path,
            format!("enlarges images of {small} pixels; a network that needs none is needed"),
        )),
    }
}

/// The classes that labels are taken from: the network's, or the classifier's
/// that guides a network without any.
pub fn label_info(info: &NetworkInfo, classifier: Option<&Path>) -> Result<NetworkInfo> {
    match (info.model.classes(), classifier) {
        (None, Some(path)) => {
            let guide = demist::checkpoint::read_info(path)?;
            let model = guide.model.encoder().map_err(|e| Error::file(path, e.to_string()))?;
            Ok(NetworkInfo {
                model: ModelConfig::Encoder(model.clone()),
                data: guide.data,
                ..info.clone()
            })
        }
        _ => Ok(info.clone()),
    }
}

/// Images to be drawn: the operands of [`SampleJob`] for all of them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Draw<'a> {
    pub count: usize,
    pub labels: &'a [u32],
    pub low_res: Option<&'a [f32]>,
    pub start: Option<&'a [f32]>,
    pub show_x0: &'a [usize],
}

/// What was drawn.
pub struct Drawn {
    /// NHWC floats.
    pub images: Vec<f32>,
    /// For each image in turn the predicted clean images of the steps asked for.
    pub x0: Vec<Vec<f32>>,
}

/// Draws in batches under a progress bar. An image depends on the seed and its
/// number alone, not on the batch.
pub fn draw(
    ctx: Context,
    loaded: &Loaded,
    options: &SampleOptions,
    what: Draw,
    stop: &StopFlag,
    name: &str,
) -> Result<Drawn> {
    let batch = loaded.sampler.batch();
    let model = &loaded.info.model;
    let len = model.image_size().pow(2) * model.in_channels();
    let steps = SpacedSchedule::new(&loaded.info.diffusion, &options.respacing)?.num_steps();
    let bar = bar((steps * what.count.div_ceil(batch)) as u64, name);
    let mut drawn = Drawn { images: Vec::new(), x0: vec![Vec::new(); what.count] };
    for first in (0..what.count).step_by(batch) {
        let n = batch.min(what.count - first);
        let part = |all: Option<&'_ [f32]>, start: usize| -> Option<Vec<f32>> {
            all.map(|v| v[start * first..start * (first + n)].to_vec())
        };
        let small = what.low_res.map_or(0, |v| v.len() / what.count);
        let (low_res, start) = (part(what.low_res, small), part(what.start, len));
        let job = SampleJob {
            first: first as u64,
            count: n,
            labels: if what.labels.is_empty() { &[] } else { &what.labels[first..first + n] },
            low_res: low_res.as_deref(),
            start: start.as_deref(),
            show_x0: what.show_x0,
        };
        let images = loaded.sampler.sample(ctx, options, &job, &mut |progress| {
            bar.inc(1);
            let rate =
                bar.position() as f64 / steps as f64 * batch as f64 / bar.elapsed().as_secs_f64();
            bar.set_message(format!("{rate:.2} images/s"));
            for (i, x0) in progress.x0.iter().flat_map(|x| x.chunks(len)).enumerate() {
                drawn.x0[first + i].extend_from_slice(x0);
            }
            if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
        })?;
        if images.iter().any(|v| !v.is_finite()) {
            let scale = options.classifier_scale.abs().max(options.guidance_weight.abs());
            let hint = if scale > 1.0 { "; try a smaller scale of guidance" } else { "" };
            return Err(Error::Device(format!(
                "{} produced pixels that are not finite{hint}",
                ctx.gpu.summary.name
            )));
        }
        drawn.images.extend(images);
    }
    bar.finish();
    Ok(drawn)
}

/// [`draw`], as bytes.
pub fn draw_pixels(
    ctx: Context,
    loaded: &Loaded,
    options: &SampleOptions,
    what: Draw,
    stop: &StopFlag,
) -> Result<Vec<u8>> {
    Ok(to_u8(&draw(ctx, loaded, options, what, stop, "sampling")?.images))
}

/// The largest binding and the like do not matter where only sizes are asked for.
pub fn boundless() -> Caps {
    Caps { max_binding: u64::MAX / 8, max_buffer: u64::MAX / 8, ..Caps::default() }
}
