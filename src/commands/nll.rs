//! `demist nll`: bits per dimension of a data set under a network.

use super::shared::{
    DeviceArgs, OutputKind, bar, open_device, prepare_output, read_images, stop_on_ctrl_c,
};
use demist::output::metrics::MetricsWriter;
use demist::output::plot::{Series, Style, line_plot};
use demist::{
    Error, Generator, ImageLikelihood, LikelihoodRequest, LikelihoodStep, Likelihoods, Network,
    Result, block_on,
};
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
    let network = Network::read(&args.file)?;
    // Refuses what it cannot score, before a folder is made.
    let request = args.request(&network)?;
    if OutputKind::of(&args.out)? != OutputKind::Folder {
        return Err(Error::file(&args.out, "--out is a folder of three files: give no extension"));
    }
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let device = open_device(device)?;
    let generator = Generator::new(&device, network)?;
    let mut shown = None;
    let mut watch = |step: &LikelihoodStep| {
        let bar = shown.get_or_insert_with(|| bar(step.in_all as u64, "scoring"));
        bar.set_position(step.done as u64);
        if !step.scored.is_empty() {
            let so_far = mean(step.scored, ImageLikelihood::total_bpd);
            bar.set_message(format!("{so_far:.3} bits/dim so far"));
        }
        if step.done == step.in_all {
            bar.finish();
        }
        if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
    };
    let scores = block_on(generator.likelihood(&request, &mut watch))?;
    report(args, generator.network(), &scores)
}

impl Args {
    fn request(&self, network: &Network) -> Result<LikelihoodRequest> {
        let model = network.info().model.unet();
        model.map_err(|e| Error::file(&self.file, e.to_string()))?;
        let (size, channels) = (network.image_size(), network.channels());
        let given = read_images(&self.data, size, channels, self.count, network.info())?;
        let request = LikelihoodRequest {
            labels: given.needed_labels(&self.data, network.info(), "")?,
            images: given.pixels,
            steps: self.steps.clone(),
            clip: !self.no_clip,
            batch: self.batch,
            seed: self.seed,
        };
        request.check(network)?;
        Ok(request)
    }
}

fn mean(scores: &[ImageLikelihood], of: impl Fn(&ImageLikelihood) -> f64) -> f64 {
    scores.iter().map(of).sum::<f64>() / scores.len().max(1) as f64
}

fn report(args: &Args, network: &Network, scores: &Likelihoods) -> Result<()> {
    let Likelihoods { images: scores, timesteps } = scores;
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
    if !network.info().diffusion.var_type.is_learned() {
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
