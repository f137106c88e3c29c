//! `demist nll`: bits per dimension of a data set under a network.

use super::sampling::{upload, values};
use super::shared::{
    DeviceArgs, OutputKind, bar, open_device, prepare_output, read_images, stop_on_ctrl_c,
};
use demist::checkpoint::{NetworkInfo, read_network};
use demist::diffusion::{
    ImageLikelihood, Likelihood, LikelihoodGraph, LikelihoodJob, SpacedSchedule,
};
use demist::output::metrics::MetricsWriter;
use demist::output::plot::{Series, Style, line_plot};
use demist::{Error, Result};
use std::path::{Path, PathBuf};

/// Arguments of `nll`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file.
    file: PathBuf,
    /// Images: a folder, an atlas .png with its .json, IDX files, an .npz of
    /// samples or a picture. They are not mirrored.
    data: PathBuf,
    /// Images to score, spread over the set.
    #[arg(short = 'n', long, default_value_t = 64)]
    count: usize,
    /// Timesteps to sum over: "" for all, which the bound needs to be tight, or
    /// fewer ("100") for a quick look.
    #[arg(long, default_value = "")]
    steps: String,
    /// Do not clamp the predicted image to the range of pixels.
    #[arg(long)]
    no_clip: bool,
    /// Images computed at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Seed of the noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Folder for nll.csv (by timestep), images.csv (by image) and nll.png.
    #[arg(short, long, default_value = "nll")]
    out: PathBuf,
}

/// Scores and writes.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    if args.count == 0 || args.batch == 0 {
        return Err(Error::Config("--count and --batch must be at least 1".into()));
    }
    let (info, file) = read_network(&args.file)?;
    let model = info.model.unet().map_err(|e| Error::file(&args.file, e.to_string()))?;
    let (size, channels) = (model.image_size, model.in_channels);
    let given = read_images(&args.data, size, channels, args.count, &info)?;
    let labels = given.needed_labels(&args.data, &info, "")?;
    let batch = args.batch.min(given.count);
    // Refuses what it cannot score, before a folder is made.
    let wiring = LikelihoodGraph::new(model, &info.diffusion, batch, !args.no_clip, false)?;
    SpacedSchedule::new(&info.diffusion, &args.steps)?;
    if OutputKind::of(&args.out)? != OutputKind::Folder {
        return Err(Error::file(&args.out, "--out is a folder of three files: give no extension"));
    }
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let opened = open_device(device)?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    info.model.check_batch(batch, gpu.caps.max_binding)?;
    let plan = wiring.plan(&gpu.caps)?;
    let params = &wiring.graph.params;
    let flat = upload(ctx, &plan, params, &values(params, &args.file, &info, &file)?)?;
    let scorer = Likelihood::compile(ctx, wiring, plan, &info.diffusion, &args.steps, &flat)?;

    let len = size * size * channels;
    let bar = bar((scorer.steps() * given.count.div_ceil(batch)) as u64, "scoring");
    let mut scores: Vec<ImageLikelihood> = Vec::new();
    for first in (0..given.count).step_by(batch) {
        let n = batch.min(given.count - first);
        let job = LikelihoodJob {
            first: first as u64,
            images: &given.pixels[first * len..(first + n) * len],
            labels: if labels.is_empty() { &[] } else { &labels[first..first + n] },
            seed: args.seed,
        };
        scores.extend(scorer.evaluate(ctx, &job, None, &mut || {
            bar.inc(1);
            if !scores.is_empty() {
                bar.set_message(format!("{:.3} bits/dim so far", mean(&scores, |s| s.total_bpd())));
            }
            if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
        })?);
    }
    bar.finish();
    report(args, &info, &scores, &scorer.timesteps())
}

fn mean(scores: &[ImageLikelihood], of: impl Fn(&ImageLikelihood) -> f64) -> f64 {
    scores.iter().map(of).sum::<f64>() / scores.len().max(1) as f64
}

fn report(
    args: &Args,
    info: &NetworkInfo,
    scores: &[ImageLikelihood],
    timesteps: &[usize],
) -> Result<()> {
    let total = mean(scores, ImageLikelihood::total_bpd);
    let spread = mean(scores, |s| (s.total_bpd() - total).powi(2)).sqrt();
    let error = spread / (scores.len() as f64).sqrt();
    say!("{} images, {} timesteps, seed {}", scores.len(), timesteps.len(), args.seed);
    say!("total       {total:.4} bits/dim (standard error {error:.4})");
    say!("prior       {:.6} bits/dim", mean(scores, |s| s.prior_bpd));
    say!(
        "last term   {:.4} bits/dim (t = 0)",
        mean(scores, |s| s.vb.last().copied().unwrap_or(0.0))
    );
    let average = |v: &[f64]| v.iter().sum::<f64>() / v.len().max(1) as f64;
    say!("mse         {:.5} of the noise", mean(scores, |s| average(&s.mse)));
    say!("x0-mse      {:.5} of the image", mean(scores, |s| average(&s.xstart_mse)));
    if !info.diffusion.var_type.is_learned() {
        note!("the network's variance is fixed: the bound is that of the schedule's variance");
    }
    let by_step = write_steps(args, scores, timesteps)?;
    let by_image = write_images(args, scores)?;
    let plot = args.out.join("nll.png");
    draw(&plot, scores, timesteps, total)?;
    for path in [by_step, by_image, plot] {
        say!("{}", path.display());
    }
    Ok(())
}

fn write_steps(args: &Args, scores: &[ImageLikelihood], timesteps: &[usize]) -> Result<PathBuf> {
    let path = args.out.join("nll.csv");
    let mut csv = MetricsWriter::create(&path, &["timestep", "vb", "mse", "xstart_mse"])?;
    for (i, t) in timesteps.iter().enumerate() {
        let row = [
            *t as f64,
            mean(scores, |s| s.vb[i]),
            mean(scores, |s| s.mse[i]),
            mean(scores, |s| s.xstart_mse[i]),
        ];
        csv.append(i as u64, &row)?;
    }
    Ok(path)
}

fn write_images(args: &Args, scores: &[ImageLikelihood]) -> Result<PathBuf> {
    let path = args.out.join("images.csv");
    let mut csv = MetricsWriter::create(&path, &["total_bpd", "prior_bpd"])?;
    for (i, s) in scores.iter().enumerate() {
        csv.append(i as u64, &[s.total_bpd(), s.prior_bpd])?;
    }
    Ok(path)
}

/// The terms over the timesteps, on a logarithmic axis.
fn draw(path: &Path, scores: &[ImageLikelihood], timesteps: &[usize], total: f64) -> Result<()> {
    let points = |of: &dyn Fn(&ImageLikelihood, usize) -> f64| -> Vec<(f64, f64)> {
        let point = |(i, t): (usize, &usize)| (*t as f64, mean(scores, |s| of(s, i)));
        timesteps.iter().enumerate().map(point).collect()
    };
    let series = [
        Series {
            name: "bound, bits/dim",
            points: points(&|s, i| s.vb[i]),
            style: Style::Strong(0),
        },
        Series {
            name: "mse of the noise",
            points: points(&|s, i| s.mse[i]),
            style: Style::Strong(1),
        },
        Series {
            name: "mse of the image",
            points: points(&|s, i| s.xstart_mse[i]),
            style: Style::Strong(2),
        },
    ];
    let title = format!("{total:.3} bits/dim over {} images", scores.len());
    line_plot(path, &title, "timestep", "", &series)
}
