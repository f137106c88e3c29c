//! Loading a network and drawing from it, shared by `sample` and `demo`.

use super::{bar, check_batch, check_room};
use demist::Result;
use demist::checkpoint::{NetworkInfo, TensorFile};
use demist::diffusion::{ImageSampler, SampleOptions, SamplingGraph};
use demist::graph::FlatKind;
use demist::model::parameters;
use demist::runtime::{Context, FlatBuffers};
use demist::train::StopFlag;
use demist::{Error, output::image::to_u8};
use std::path::Path;

/// A network's weights on the device, compiled for sampling.
pub struct Loaded {
    pub info: NetworkInfo,
    pub sampler: ImageSampler,
    /// Keeps the weights alive that the sampler is bound to.
    _flat: FlatBuffers,
}

/// Uploads `file`'s weights and compiles for batches of `batch`.
pub fn load(
    ctx: Context,
    path: &Path,
    info: NetworkInfo,
    file: &TensorFile,
    batch: usize,
) -> Result<Loaded> {
    check_batch(&ctx.gpu.caps, &info.model, batch)?;
    let wiring = SamplingGraph::new(&info.model, batch, false, false)?;
    let params = &wiring.graph.params;
    // A run's state holds several sets; its average is what should be drawn from.
    let prefix = if info.holds == "state" { "ema." } else { "" };
    let values = parameters(params, file, prefix).map_err(|e| Error::file(path, e))?;
    let plan = wiring.plan(&ctx.gpu.caps)?;
    check_room(ctx.gpu, &plan.report(), 1)?;
    let flat = FlatBuffers::new(ctx.gpu, &plan.params, &[FlatKind::Weights])?;
    flat.write(ctx.gpu, FlatKind::Weights, params, &values)?;
    let sampler =
        ImageSampler::compile(ctx, wiring, plan, &info.diffusion, &flat, FlatKind::Weights)?;
    Ok(Loaded { info, sampler, _flat: flat })
}

/// Draws `count` images in batches under a progress bar: bytes NHWC. An
/// image depends on the seed and its number alone, not on the batch.
pub fn draw(
    ctx: Context,
    loaded: &Loaded,
    options: &SampleOptions,
    labels: &[u32],
    count: usize,
    stop: &StopFlag,
) -> Result<Vec<u8>> {
    let batch = loaded.sampler.batch();
    let steps = demist::diffusion::SpacedSchedule::new(&loaded.info.diffusion, &options.respacing)?
        .num_steps();
    let bar = bar((steps * count.div_ceil(batch)) as u64, "sampling");
    let mut images = Vec::new();
    for first in (0..count).step_by(batch) {
        let n = batch.min(count - first);
        let labels = if labels.is_empty() { labels } else { &labels[first..first + n] };
        let drawn = loaded.sampler.sample(ctx, options, first as u64, labels, n, &mut |_, _| {
            bar.inc(1);
            let rate =
                bar.position() as f64 / steps as f64 * batch as f64 / bar.elapsed().as_secs_f64();
            bar.set_message(format!("{rate:.2} images/s"));
            if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
        })?;
        if drawn.iter().any(|v| !v.is_finite()) {
            return Err(Error::Device(format!(
                "{} produced pixels that are not finite",
                ctx.gpu.summary.name
            )));
        }
        images.extend(to_u8(&drawn));
    }
    bar.finish();
    Ok(images)
}
