//! `demist evaluate`: how good a network is on images it was not trained on:
//! losses by quarter of the timesteps, a classifier's accuracy on noised and
//! clean images, the gain of a super-resolution network over interpolation.

use super::shared::{
    DeviceArgs, GivenImages, bar, open_device, read_images, stop_on_ctrl_c, watch,
};
use demist::data::Squares;
use demist::diffusion::SpacedSchedule;
use demist::model::ModelConfig;
use demist::output::image::{from_u8, psnr, to_u8};
use demist::train::{Evaluation, StopFlag};
use demist::{
    Classes, Device, DrawRequest, Error, EvaluationRequest, Generator, Network, Result, block_on,
};
use std::path::PathBuf;

/// Arguments of `evaluate`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file.
    file: PathBuf,
    /// Images: a folder, an atlas .png with its .json, IDX files, an .npz of
    /// samples (of which a classifier then says how many are what they should be).
    data: PathBuf,
    /// Images, spread over the set.
    #[arg(short = 'n', long, default_value_t = 1000)]
    count: usize,
    /// Images computed at once.
    #[arg(long, default_value_t = 16)]
    batch: usize,
    /// Steps with which a super-resolution network draws.
    #[arg(long, default_value = "10")]
    steps: String,
    /// Seed of timesteps and noise.
    #[arg(long, default_value_t = 0)]
    seed: u64,
}

/// Evaluates and prints.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    if args.count == 0 || args.batch == 0 {
        return Err(Error::Config("--count and --batch must be at least 1".into()));
    }
    let network = Network::read(&args.file)?;
    let info = network.info();
    let (size, channels) = (info.model.image_size(), info.model.in_channels());
    let given = read_images(&args.data, size, channels, args.count, info)?;
    let labels = given.needed_labels(&args.data, info, "")?;
    if info.model.unet().is_ok_and(|m| m.small_size.is_some()) {
        SpacedSchedule::new(&info.diffusion, &args.steps)?;
    }
    let stop = stop_on_ctrl_c()?;
    let device = open_device(device)?;
    let work =
        Work { device, args, network: network.clone(), given: &given, labels: &labels, stop };
    say!("{} images of {}", given.count, args.data.display());
    match &info.model {
        ModelConfig::Encoder(_) => {
            print_accuracy("clean", &work.losses(false)?);
            print_accuracy("noised", &work.losses(true)?);
        }
        ModelConfig::UNet(model) => {
            print_losses(&work.losses(true)?);
            if let Some(small) = model.small_size {
                work.super_resolution(small)?;
            }
        }
    }
    Ok(())
}

/// What is evaluated, and how.
struct Work<'a> {
    device: Device,
    args: &'a Args,
    network: Network,
    given: &'a GivenImages,
    /// None of an unconditional network.
    labels: &'a [u32],
    stop: StopFlag,
}

impl Work<'_> {
    /// The training losses of the averaged weights.
    fn losses(&self, noised: bool) -> Result<Evaluation> {
        let request = EvaluationRequest {
            images: self.given.pixels.clone(),
            labels: self.labels.to_vec(),
            noised,
            batch: self.args.batch,
            seed: self.args.seed,
        };
        let bar = bar(self.given.count as u64, "evaluating");
        let mut watch = |done| {
            bar.set_position(done as u64);
            if self.stop.is_set() { Err(Error::Interrupted) } else { Ok(()) }
        };
        let evaluation = block_on(self.network.evaluate(&self.device, &request, &mut watch));
        bar.finish_and_clear();
        evaluation
    }

    /// Halves the images by areas, enlarges them, and compares with the
    /// originals.
    fn super_resolution(&self, small: usize) -> Result<()> {
        let model = self.network.info().model.unet()?;
        let (size, channels, count) = (model.image_size, model.in_channels, self.given.count);
        let originals = &self.given.pixels;
        // What a file would hold.
        let small_images = Squares { pixels: originals, side: size, channels }.by_area(small);
        let low_res = from_u8(&to_u8(&small_images));
        let plain = Squares { pixels: &low_res, side: small, channels }.bilinear(size);
        let request = DrawRequest {
            classes: Classes::OfEach(self.labels.to_vec()),
            count,
            batch: self.args.batch,
            seed: self.args.seed,
            steps: self.args.steps.clone(),
            low_res: Some(low_res),
            ..Default::default()
        };
        let mut generator = Generator::new(&self.device, self.network.clone())?;
        let mut watch = watch("enlarging", &self.stop);
        let drawn = block_on(generator.draw_watched(&request, &mut watch))?.values;
        let bytes = |images: &[f32]| psnr(originals, &from_u8(&to_u8(images)));
        say!("bilinear    {:.2} dB PSNR from {small}x{small}", bytes(&plain));
        say!("network     {:.2} dB PSNR, {} steps", bytes(&drawn), self.args.steps);
        Ok(())
    }
}

fn print_accuracy(what: &str, e: &Evaluation) {
    let percent = |name: &str| 100.0 * e.term(name).map_or(f64::NAN, |t| t.total);
    say!(
        "{what:<11} top-1 {:.2} %  top-5 {:.2} %  cross-entropy {:.4}",
        percent("acc@1"),
        percent("acc@5"),
        e.loss()
    );
    if what == "noised"
        && let Some(top1) = e.term("acc@1")
    {
        let quarters = quarters(e, &top1.quartiles, |q| format!("{:.1} %", 100.0 * q));
        say!("            top-1 by quarter of the timesteps: {quarters}");
    }
}

fn print_losses(e: &Evaluation) {
    say!("loss        {:.5}", e.loss());
    for term in &e.terms {
        let quarters = quarters(e, &term.quartiles, |q| format!("{q:.5}"));
        say!("{:<11} {:.5}  by quarter of the timesteps: {quarters}", term.name, term.total);
    }
}

/// Means by quarter of the timesteps; a dash where no image's timestep fell.
fn quarters(e: &Evaluation, means: &[f64], show: impl Fn(f64) -> String) -> String {
    let shown = |(mean, images): (&f64, &usize)| match images {
        0 => "-".to_owned(),
        _ => show(*mean),
    };
    means.iter().zip(&e.quartile_images).map(shown).collect::<Vec<_>>().join(", ")
}
