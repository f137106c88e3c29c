//! `demist invert` and `demist interpolate`: images as DDIM latents (Song et
//! al. 2021, section 4.3 and 5.3). Without added noise the sampler is a map from
//! latents to images that can be followed backwards.

use super::shared::{
    DeviceArgs, OutputKind, check_count, classes_typed, command_line, draws_from_noise,
    open_device, prepare_output, read_images, stop_on_ctrl_c, watch,
};
use demist::output::image::{mean_squared_error, psnr, to_u8};
use demist::output::{Grid, npz};
use demist::train::StopFlag;
use demist::{Classes, DrawRequest, Drawn, Error, Generator, Network, Result, block_on, slerp};
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

/// A network that follows its deterministic path both ways.
struct DdimPath {
    generator: Generator,
    stop: StopFlag,
}

impl DdimPath {
    fn encode(&mut self, images: &[f32], request: &DrawRequest) -> Result<Vec<f32>> {
        let mut watch = watch("encoding", &self.stop);
        Ok(block_on(self.generator.encode(images, request, &mut watch))?.values)
    }

    fn decode(&mut self, latents: Vec<f32>, request: &DrawRequest) -> Result<Drawn> {
        let request = DrawRequest { start: Some(latents), ..request.clone() };
        let mut watch = watch("decoding", &self.stop);
        block_on(self.generator.draw_watched(&request, &mut watch))
    }
}

/// A request of the path that leads both ways.
fn path_request(steps: &str, batch: usize) -> DrawRequest {
    // Clamping would make the path one that cannot be walked back.
    DrawRequest { steps: steps.into(), clip: false, batch, ..Default::default() }
}

/// Encodes images, decodes them again and shows both.
pub fn invert(device: &DeviceArgs, args: &InvertArgs) -> Result<()> {
    if args.count == 0 {
        return Err(Error::Config("--count must be at least 1".into()));
    }
    let network = Network::read(&args.file)?;
    let request = path_request(&args.steps, 8);
    // The network and the steps, before the images are read.
    request.check_process(&network)?;
    draws_from_noise(&network)?;
    let kind = OutputKind::of(&args.out)?;
    if kind == OutputKind::Folder {
        return Err(Error::file(&args.out, "--out must end in .png or .npz"));
    }
    let class = args.class.as_ref().map(|name| network.info().class(name)).transpose()?;
    let (size, channels) = (network.image_size(), network.channels());
    let given = read_images(&args.images, size, channels, args.count, network.info())?;
    check_count(given.count, 1, &network)?;
    let labels = match class {
        Some(class) => vec![class; given.count],
        None => given.needed_labels(&args.images, network.info(), ": give --class")?,
    };
    let request = DrawRequest { classes: Classes::OfEach(labels), count: given.count, ..request };
    request.check(&network)?;
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let device = open_device(device)?;
    let mut path = DdimPath { generator: Generator::new(&device, network)?, stop };
    let latents = path.encode(&given.pixels, &request)?;
    let back = path.decode(latents.clone(), &request)?.values;
    let mean_square = mean_squared_error(&latents, &vec![0.0; latents.len()]);
    say!(
        "latents     mean square {mean_square:.4} (1 where they are what the sampler starts from)"
    );
    say!("round trip  {:.2} dB PSNR", psnr(&given.pixels, &back));
    if kind == OutputKind::Archive {
        npz::save_floats(&args.out, "latents", &latents, &[given.count, size, size, channels])?;
    } else {
        // Latents are about three times as wide as pixels.
        let shown: Vec<f32> = latents.iter().map(|v| v / 3.0).collect();
        let pixels = to_u8(&[given.pixels, shown, back].concat());
        Grid::new(&pixels, [size, size, channels], given.count)
            .row_labels(["image", "latent", "back"])
            .footer(format!("{} steps each way, {}", args.steps, device.summary()))
            .save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    }
    say!("wrote {}", args.out.display());
    Ok(())
}

/// Draws the images between two latents.
pub fn interpolate(device: &DeviceArgs, args: &InterpolateArgs) -> Result<()> {
    if !(2..=MAX_FRAMES).contains(&args.frames) {
        return Err(Error::Config(format!("--frames must be at least 2, at most {MAX_FRAMES}")));
    }
    let network = Network::read(&args.file)?;
    let request = DrawRequest {
        count: args.frames,
        seed: args.seed,
        ..path_request(&args.steps, args.frames.min(16))
    };
    request.check_process(&network)?;
    draws_from_noise(&network)?;
    let rows = rows(args, &network)?;
    OutputKind::must_be_picture(&args.out)?;
    check_count(args.frames, rows.len(), &network)?;
    let ends = [End::parse(&args.from, &network)?, End::parse(&args.to, &network)?];
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let device = open_device(device)?;
    let mut path = DdimPath { generator: Generator::new(&device, network)?, stop };
    let (size, channels) =
        (path.generator.network().image_size(), path.generator.network().channels());
    let (mut pixels, mut names) = (Vec::new(), Vec::new());
    for classes in rows {
        let request = DrawRequest { classes, ..request.clone() };
        block_on(path.generator.prepare(&request))?;
        let [a, b] = [ends[0].latent(&mut path, &request)?, ends[1].latent(&mut path, &request)?];
        let at = |k: usize| slerp(&a, &b, k as f64 / (args.frames - 1) as f64);
        let drawn = path.decode((0..args.frames).flat_map(at).collect(), &request)?;
        pixels.extend(drawn.pixels());
        names.extend(drawn.class_names.into_iter().next());
    }
    let mut grid = Grid::new(&pixels, [size, size, channels], args.frames).footer(format!(
        "{} to {}, {} steps, {}",
        args.from,
        args.to,
        args.steps,
        device.summary()
    ));
    if !names.is_empty() {
        grid = grid.row_labels(names);
    }
    grid.save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    say!("wrote {}", args.out.display());
    Ok(())
}

/// The class of each row; one row without a class for a network that has none.
fn rows(args: &InterpolateArgs, network: &Network) -> Result<Vec<Classes>> {
    match (network.classes(), classes_typed(&args.classes)) {
        (Some(_), Classes::Any) => Err(Error::Config(format!(
            "the network is conditional: give --class, of {}",
            network.info().class_names()
        ))),
        (None, Classes::Any) => Ok(vec![Classes::Any]),
        (None, _) => network.info().class(&args.classes[0]).map(|_| Vec::new()),
        (Some(classes), Classes::All) => {
            Ok((0..classes).map(|c| Classes::named([c.to_string()])).collect())
        }
        (Some(_), _) => args
            .classes
            .iter()
            .map(|name| network.info().class(name).map(|_| Classes::named([name])))
            .collect(),
    }
}

/// One end of an interpolation.
enum End {
    Number(u32),
    Image(Vec<f32>),
}

impl End {
    fn parse(text: &str, network: &Network) -> Result<End> {
        if let Ok(number) = text.parse() {
            return Ok(End::Number(number));
        }
        let path = Path::new(text);
        if !path.exists() {
            return Err(Error::Config(format!(
                "`{text}` is neither an image file nor a number from 0 to {}",
                u32::MAX
            )));
        }
        let (size, channels) = (network.image_size(), network.channels());
        Ok(End::Image(read_images(path, size, channels, 1, network.info())?.pixels))
    }

    fn latent(&self, path: &mut DdimPath, request: &DrawRequest) -> Result<Vec<f32>> {
        match self {
            End::Number(number) => Ok(path.generator.latent(request.seed, *number)),
            End::Image(image) => path.encode(image, &DrawRequest { count: 1, ..request.clone() }),
        }
    }
}
