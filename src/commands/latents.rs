//! `demist invert` and `demist interpolate`: images as DDIM latents (Song et
//! al. 2021, section 4.3 and 5.3). Without added noise the sampler is a map from
//! latents to images that can be followed backwards.

use super::sample::check_count;
use super::sampling::{Draw, Loaded, Want, draw, draws_from_noise, load};
use super::shared::{
    DeviceArgs, OutputKind, command_line, open_device, prepare_output, read_images, stop_on_ctrl_c,
};
use demist::checkpoint::{NetworkInfo, read_network};
use demist::diffusion::{SampleOptions, Sampler, SpacedSchedule};
use demist::output::image::to_u8;
use demist::output::{Grid, npz};
use demist::runtime::Context;
use demist::train::StopFlag;
use demist::{Error, Result, rng};
use std::path::{Path, PathBuf};

/// Arguments of `invert`.
#[derive(Debug, clap::Args)]
pub struct InvertArgs {
    /// A network file.
    file: PathBuf,
    /// Images: a picture, a folder, an atlas .png with its .json, an .npz of
    /// samples.
    images: PathBuf,
    /// Images to encode, spread over the set.
    #[arg(short = 'n', long, default_value_t = 8)]
    count: usize,
    /// Class of the images for a conditional network, where they do not tell.
    #[arg(long)]
    class: Option<String>,
    /// Steps in each direction; more follow the path better.
    #[arg(long, default_value = "250")]
    steps: String,
    /// A picture of originals, latents and reconstructions; with .npz the
    /// latents themselves (float32 `latents`).
    #[arg(short, long, default_value = "inverted.png")]
    out: PathBuf,
}

/// Arguments of `interpolate`.
#[derive(Debug, clap::Args)]
pub struct InterpolateArgs {
    /// A network file.
    file: PathBuf,
    /// Where to begin: a picture, or the number of a latent ("3").
    #[arg(long, value_name = "IMAGE|NUMBER")]
    from: String,
    /// Where to end.
    #[arg(long, value_name = "IMAGE|NUMBER")]
    to: String,
    /// Images along the way, both ends included.
    #[arg(long, default_value_t = 9)]
    frames: usize,
    /// Classes for a conditional network, by name or number; one row each.
    #[arg(long = "class", value_name = "CLASS", value_delimiter = ',')]
    classes: Vec<String>,
    /// Denoising steps.
    #[arg(long, default_value = "100")]
    steps: String,
    /// Seed that numbered latents are drawn from.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The picture.
    #[arg(short, long, default_value = "interpolation.png")]
    out: PathBuf,
}

/// More are no picture.
const MAX_FRAMES: usize = 1000;

/// A network ready to follow its deterministic path both ways.
struct DdimPath<'a> {
    ctx: Context<'a>,
    loaded: Loaded,
    steps: String,
    stop: StopFlag,
}

impl DdimPath<'_> {
    fn go(&self, sampler: Sampler, start: &[f32], labels: &[u32], name: &str) -> Result<Vec<f32>> {
        // Clamping would make the path one that cannot be walked back.
        let options = SampleOptions {
            respacing: self.steps.clone(),
            sampler,
            clip: false,
            ..Default::default()
        };
        let (size, channels) = image_shape(&self.loaded.info);
        let count = start.len() / (size * size * channels);
        let what = Draw { count, labels, start: Some(start), ..Default::default() };
        Ok(draw(self.ctx, &self.loaded, &options, what, &self.stop, name)?.images)
    }

    fn encode(&self, images: &[f32], labels: &[u32]) -> Result<Vec<f32>> {
        self.go(Sampler::DdimReverse, images, labels, "encoding")
    }

    fn decode(&self, latents: &[f32], labels: &[u32]) -> Result<Vec<f32>> {
        self.go(Sampler::Ddim { eta: 0.0 }, latents, labels, "decoding")
    }
}

fn image_shape(info: &NetworkInfo) -> (usize, usize) {
    (info.model.image_size(), info.model.in_channels())
}

/// Encodes images, decodes them again and shows both.
pub fn invert(device: &DeviceArgs, args: &InvertArgs) -> Result<()> {
    if args.count == 0 {
        return Err(Error::Config("--count must be at least 1".into()));
    }
    let (info, file) = read_network(&args.file)?;
    SpacedSchedule::new(&info.diffusion, &args.steps)?;
    draws_from_noise(&args.file, &info)?;
    let kind = OutputKind::of(&args.out)?;
    if kind == OutputKind::Folder {
        return Err(Error::file(&args.out, "--out must end in .png or .npz"));
    }
    let class = args.class.as_ref().map(|name| info.class(name)).transpose()?;
    let (size, channels) = image_shape(&info);
    let given = read_images(&args.images, size, channels, args.count, &info)?;
    check_count(given.count, 1, &info)?;
    let labels = match class {
        Some(class) => vec![class; given.count],
        None => given.needed_labels(&args.images, &info, ": give --class")?,
    };
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let opened = open_device(device)?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    let want = Want { batch: given.count.min(8), ..Default::default() };
    let loaded = load(ctx, &args.file, info, &file, want)?;
    let path = DdimPath { ctx, loaded, steps: args.steps.clone(), stop };
    let latents = path.encode(&given.pixels, &labels)?;
    let back = path.decode(&latents, &labels)?;
    let mse = mean_square(&latents, None);
    say!("latents     mean square {mse:.4} (1 where they are what the sampler starts from)");
    say!("round trip  {:.2} dB PSNR", psnr(&given.pixels, &back));
    if kind == OutputKind::Archive {
        npz::save_floats(&args.out, "latents", &latents, &[given.count, size, size, channels])?;
    } else {
        // Latents are about three times as wide as pixels.
        let shown: Vec<f32> = latents.iter().map(|v| v / 3.0).collect();
        let pixels = to_u8(&[given.pixels, shown, back].concat());
        Grid::new(&pixels, [size, size, channels], given.count)
            .row_labels(["image", "latent", "back"])
            .footer(format!("{} steps each way, {}", args.steps, gpu.summary))
            .save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    }
    say!("wrote {}", args.out.display());
    Ok(())
}

fn mean_square(a: &[f32], b: Option<&[f32]>) -> f64 {
    let other = |i: usize| f64::from(b.map_or(0.0, |b| b[i]));
    let sum: f64 = a.iter().enumerate().map(|(i, v)| (f64::from(*v) - other(i)).powi(2)).sum();
    sum / a.len().max(1) as f64
}

/// Peak signal-to-noise ratio of images in [-1, 1], in dB over all of them.
pub fn psnr(a: &[f32], b: &[f32]) -> f64 {
    10.0 * (4.0 / mean_square(a, Some(b)).max(1e-12)).log10()
}

/// Draws the images between two latents.
pub fn interpolate(device: &DeviceArgs, args: &InterpolateArgs) -> Result<()> {
    if !(2..=MAX_FRAMES).contains(&args.frames) {
        return Err(Error::Config(format!("--frames must be at least 2, at most {MAX_FRAMES}")));
    }
    let (info, file) = read_network(&args.file)?;
    SpacedSchedule::new(&info.diffusion, &args.steps)?;
    draws_from_noise(&args.file, &info)?;
    let classes = match (info.model.classes(), args.classes.is_empty()) {
        (Some(_), true) => {
            return Err(Error::Config(format!(
                "the network is conditional: give --class, of {}",
                info.class_names()
            )));
        }
        (None, false) => info.class(&args.classes[0]).map(|c| vec![c])?,
        _ => super::sample::classes_named(&args.classes, &info)?,
    };
    OutputKind::must_be_picture(&args.out)?;
    check_count(args.frames, classes.len().max(1), &info)?;
    let ends = [End::parse(&args.from, &info)?, End::parse(&args.to, &info)?];
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let opened = open_device(device)?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    let want = Want { batch: args.frames.min(16), ..Default::default() };
    let loaded = load(ctx, &args.file, info, &file, want)?;
    let path = DdimPath { ctx, loaded, steps: args.steps.clone(), stop };
    let (size, channels) = image_shape(&path.loaded.info);
    let rows = classes.len().max(1);
    let mut pixels = Vec::new();
    for row in 0..rows {
        let label: Vec<u32> = classes.get(row).into_iter().copied().collect();
        let [a, b] =
            [0, 1].map(|i| ends[i].latent(&path, &label, args.seed, size * size * channels));
        let (a, b) = (a?, b?);
        let at = |k: usize| slerp(&a, &b, k as f64 / (args.frames - 1) as f64);
        let latents: Vec<f32> = (0..args.frames).flat_map(at).collect();
        let labels: Vec<u32> = label.iter().flat_map(|l| vec![*l; args.frames]).collect();
        pixels.extend(to_u8(&path.decode(&latents, &labels)?));
    }
    let names = classes.iter().map(|c| path.loaded.info.data.classes.get(*c as usize).cloned());
    let mut grid = Grid::new(&pixels, [size, size, channels], args.frames)
        .footer(format!("{} to {}, {} steps, {}", args.from, args.to, args.steps, gpu.summary));
    if !classes.is_empty() {
        grid = grid.row_labels(names.map(Option::unwrap_or_default));
    }
    grid.save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    say!("wrote {}", args.out.display());
    Ok(())
}

/// One end of an interpolation.
enum End {
    Number(u32),
    Image(Vec<f32>),
}

impl End {
    fn parse(text: &str, info: &NetworkInfo) -> Result<End> {
        if let Ok(number) = text.parse() {
            return Ok(End::Number(number));
        }
        if !Path::new(text).exists() {
            return Err(Error::Config(format!(
                "`{text}` is neither an image file nor a number from 0 to {}",
                u32::MAX
            )));
        }
        let (size, channels) = image_shape(info);
        Ok(End::Image(read_images(Path::new(text), size, channels, 1, info)?.pixels))
    }

    fn latent(&self, path: &DdimPath, label: &[u32], seed: u64, len: usize) -> Result<Vec<f32>> {
        match self {
            End::Number(number) => {
                let mut latent = vec![0.0; len];
                rng::fill_normal(&mut latent, seed, 0, rng::STREAM_XT, *number);
                Ok(latent)
            }
            End::Image(image) => path.encode(image, label),
        }
    }
}

/// Along the great circle from `a` to `b` (Shoemake 1985): latents between two
/// stay as long as they are, which a straight line would not do.
fn slerp(a: &[f32], b: &[f32], u: f64) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12);
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let (wa, wb) = if angle.sin().abs() < 1e-6 {
        (1.0 - u, u)
    } else {
        (((1.0 - u) * angle).sin() / angle.sin(), (u * angle).sin() / angle.sin())
    };
    a.iter().zip(b).map(|(x, y)| (wa * f64::from(*x) + wb * f64::from(*y)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slerp_ends_where_it_should_and_keeps_the_length() {
        let (a, b) = ([3.0, 0.0, 4.0], [0.0, 5.0, 0.0]);
        assert_eq!(slerp(&a, &b, 0.0), a);
        let end = slerp(&a, &b, 1.0);
        assert!(end.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5), "{end:?}");
        let middle = slerp(&a, &b, 0.5);
        assert!((mean_square(&middle, None) * 3.0 - 25.0).abs() < 1e-4);
        // The same point twice has no angle between.
        assert_eq!(slerp(&a, &a, 0.3), a);
    }

    #[test]
    fn psnr_of_a_known_error() {
        // A tenth of the range of 2: 20 dB.
        assert!((psnr(&[0.0; 4], &[0.2; 4]) - 20.0).abs() < 1e-4);
    }
}
