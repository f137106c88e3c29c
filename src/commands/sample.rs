//! `demist sample`: draws images from a network file, guided or not, and
//! enlarges them by further networks.

use super::shared::{
    DeviceArgs, GivenImages, OutputKind, ProcessArgs, check_count, check_scale, classes_typed,
    command_line, describe, file_name_part, number_of_classes, open_device, prepare_output,
    read_images, stop_on_ctrl_c, watch,
};
use demist::diffusion::SpacedSchedule;
use demist::output::image::to_u8;
use demist::output::{Grid, image, npz};
use demist::train::StopFlag;
use demist::{Classes, Device, DrawRequest, Drawn, Error, Generator, Network, Result, block_on};
use std::path::PathBuf;

/// Arguments of `sample`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file, or a run folder's network.safetensors.
    file: PathBuf,
    /// Classes to draw, by name or number, comma-separated, or "all"; one row
    /// each. Random classes otherwise, or those that --low-res tells.
    #[arg(long = "class", value_name = "CLASS", value_delimiter = ',')]
    classes: Vec<String>,
    /// Images, of each class if classes are given.
    #[arg(short = 'n', long, default_value_t = 8)]
    count: usize,
    /// Small images for a super-resolution network: an .npz of samples, a folder,
    /// an atlas or a picture; the first --count of an archive, spread over others.
    #[arg(long, value_name = "IMAGES")]
    low_res: Option<PathBuf>,
    /// Enlarge what was drawn by this super-resolution network; may be repeated.
    #[arg(long, value_name = "NETWORK")]
    upsample: Vec<PathBuf>,
    /// Steps of the enlarging networks [default: as --steps].
    #[arg(long, value_name = "STEPS", requires = "upsample")]
    upsample_steps: Option<String>,
    /// Show so many predicted clean images on the way, one row an image.
    #[arg(long, value_name = "COLUMNS")]
    strip: Option<usize>,
    /// Compute in half precision: half the memory, and on a GPU less time.
    #[arg(long)]
    half: bool,
    /// Images computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// What to write: a grid (.png), a NumPy archive (.npz), or a folder of PNGs.
    #[arg(short, long, default_value = "samples.png")]
    out: PathBuf,
    #[command(flatten)]
    process: ProcessArgs,
    #[command(flatten)]
    guidance: GuidanceArgs,
}

/// What pulls samples towards their class.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Guidance")]
struct GuidanceArgs {
    /// Follow the gradient of this classifier.
    #[arg(long, value_name = "NETWORK")]
    classifier: Option<PathBuf>,
    /// Scale of the classifier's gradient [default: 1].
    #[arg(long, value_name = "SCALE", requires = "classifier", allow_negative_numbers = true)]
    classifier_scale: Option<f64>,
    /// Weight of classifier-free guidance: 1 is the conditional prediction, more
    /// exaggerates the difference to the unconditional one.
    #[arg(long, value_name = "WEIGHT", default_value_t = 1.0, allow_negative_numbers = true)]
    guidance: f64,
    /// Do not tell the network the class; a classifier may still guide.
    #[arg(long)]
    unconditional: bool,
}

impl GuidanceArgs {
    /// The weight of classifier-free guidance, where the network is to be evaluated
    /// with and without its class.
    fn weight(&self) -> Option<f64> {
        (self.guidance != 1.0).then_some(self.guidance)
    }

    fn classifier_scale(&self) -> f64 {
        self.classifier_scale.unwrap_or(1.0)
    }
}

/// What is meant by the arguments.
struct Job {
    network: Network,
    request: DrawRequest,
    /// Networks that enlarge what was drawn, one after the other.
    stages: Vec<Stage>,
    kind: OutputKind,
}

/// A network that enlarges, which is read when its turn comes.
struct Stage {
    path: PathBuf,
    request: DrawRequest,
}

/// Draws and writes.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    // What can be refused is refused before the work.
    let job = Job::meant(args)?;
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let device = open_device(device)?;
    let mut generator = Generator::new(&device, job.network.clone())?;
    let out = Output { args, job: &job, device: device.summary().to_string() };
    match args.strip {
        Some(columns) => out.strip(&mut generator, columns, &stop)?,
        None => {
            let mut watch = watch("sampling", &stop);
            let mut drawn = block_on(generator.draw_watched(&job.request, &mut watch))?;
            drop(generator);
            for stage in &job.stages {
                drawn = stage.enlarge(&device, &drawn, &stop)?;
            }
            out.write(&drawn)?;
        }
    }
    say!("wrote {}", args.out.display());
    Ok(())
}

impl Job {
    fn meant(args: &Args) -> Result<Job> {
        if args.count == 0 || args.batch == 0 || args.strip == Some(0) {
            return Err(Error::Config("--count, --batch and --strip must be at least 1".into()));
        }
        let network = Network::read(&args.file)?;
        let request = request(args, &network)?;
        let kind = OutputKind::of(&args.out)?;
        if args.strip.is_some() && kind != OutputKind::Picture {
            return Err(Error::Config("--strip draws a picture: --out must end in .png".into()));
        }
        let stages = stages(args, &network, &request)?;
        let request = with_small_images(args, &network, request)?;
        let labelled = request.labelled(&network);
        let classes = number_of_classes(&request.classes, labelled);
        if request.low_res.is_some() && classes > 1 {
            return Err(Error::Config(
                "the images of --low-res are drawn once each: give one --class, or none to draw \
                 each as what it is"
                    .into(),
            ));
        }
        check_count(request.count, classes, &network)?;
        request.check(&network)?;
        Ok(Job { network, request, stages, kind })
    }
}

/// The request that is typed, but for small images.
fn request(args: &Args, network: &Network) -> Result<DrawRequest> {
    let model = network.info().model.unet();
    let model = model.map_err(|e| Error::file(&args.file, e.to_string()))?;
    let guidance = &args.guidance;
    let classifier = guidance.classifier.as_ref().map(Network::read).transpose()?;
    check_scale("--classifier-scale", guidance.classifier_scale())?;
    check_scale("--guidance", guidance.guidance)?;
    if (guidance.weight().is_some() || guidance.unconditional) && !model.null_class {
        return Err(Error::Config(
            "the network knows no images without a class: --guidance and --unconditional need one \
             that was trained with --label-dropout"
                .into(),
        ));
    }
    Ok(DrawRequest {
        classes: classes_typed(&args.classes),
        count: args.count,
        batch: args.batch,
        guidance: guidance.weight(),
        unconditional: guidance.unconditional,
        classifier_scale: guidance.classifier_scale(),
        half: args.half,
        ..args.process.request(classifier)?
    })
}

/// The request with the images of `--low-res`, and their classes if none are typed.
fn with_small_images(args: &Args, network: &Network, request: DrawRequest) -> Result<DrawRequest> {
    let (path, small) = match (&args.low_res, network.small_size()) {
        (Some(path), Some(small)) => (path, small),
        (None, None) => return Ok(request),
        (None, Some(small)) => {
            return Err(Error::Config(format!(
                "this network enlarges images of {small} pixels; give them by --low-res"
            )));
        }
        (Some(_), None) => {
            return Err(Error::Config("--low-res is for super-resolution networks".into()));
        }
    };
    let labelled = request.labelled(network);
    let GivenImages { pixels, count, labels } =
        read_images(path, small, network.channels(), args.count, labelled.info())?;
    let classes = match (&request.classes, labels, labelled.classes()) {
        (Classes::Any, Ok(labels), Some(_)) => Classes::OfEach(labels),
        (typed, ..) => typed.clone(),
    };
    Ok(DrawRequest { classes, count, low_res: Some(pixels), ..request })
}

/// The enlarging networks; each must take what the one before makes.
fn stages(args: &Args, network: &Network, request: &DrawRequest) -> Result<Vec<Stage>> {
    if args.strip.is_some() && !args.upsample.is_empty() {
        return Err(Error::Config(
            "--strip shows one network's steps; leave out --upsample".into(),
        ));
    }
    let labelled = request.labelled(network);
    let mut small = network.clone();
    let mut stages = Vec::new();
    for path in &args.upsample {
        let stage = Network::read(path)?;
        stage.check_enlarges(&small, labelled)?;
        let steps = args.upsample_steps.as_ref().unwrap_or(&request.steps).clone();
        SpacedSchedule::new(&stage.info().diffusion, &steps)
            .map_err(|e| Error::file(path, e.to_string()))?;
        // A file that does not fit is found now, not when its turn comes.
        stage.check_weights()?;
        stages.push(Stage {
            path: path.clone(),
            request: DrawRequest {
                batch: args.batch,
                half: args.half,
                // Other noise than the stage before, of which this one is a detail.
                seed: request.seed.wrapping_add(1 + stages.len() as u64),
                sampler: request.sampler,
                clip: request.clip,
                unconditional: request.unconditional && stage.classes().is_some(),
                steps,
                ..Default::default()
            },
        });
        small = stage;
    }
    Ok(stages)
}

impl Stage {
    fn enlarge(&self, device: &Device, small: &Drawn, stop: &StopFlag) -> Result<Drawn> {
        let mut generator = Generator::open(device, &self.path)?;
        block_on(generator.enlarge(small, &self.request, &mut watch("enlarging", stop)))
    }
}

/// Where the images go, and what is written beside them.
struct Output<'a> {
    args: &'a Args,
    job: &'a Job,
    device: String,
}

impl Output<'_> {
    fn footer(&self) -> String {
        let guidance = &self.args.guidance;
        let mut text = describe(&self.job.request);
        if guidance.classifier.is_some() {
            text += &format!(", classifier scale {}", guidance.classifier_scale());
        }
        if let Some(weight) = guidance.weight() {
            text += &format!(", guidance {weight}");
        }
        format!("{text}, {}", self.device)
    }

    fn write(&self, drawn: &Drawn) -> Result<()> {
        let (args, count) = (self.args, drawn.count);
        let Drawn { size, channels, .. } = *drawn;
        let pixels = drawn.pixels();
        let recipe = command_line();
        let text = [("Software", "demist"), ("Comment", recipe.as_str()), ("Source", &self.device)];
        match self.job.kind {
            OutputKind::Picture => {
                let rows = !args.classes.is_empty() && count.is_multiple_of(args.count);
                let columns = if rows { args.count } else { count.min(8) };
                let mut grid =
                    Grid::new(&pixels, [size, size, channels], columns).footer(self.footer());
                if rows && !drawn.labels.is_empty() {
                    grid = grid.row_labels(drawn.class_names.iter().step_by(args.count).cloned());
                }
                grid.save(&args.out, &text)
            }
            OutputKind::Archive => {
                let labels: Vec<i64> = drawn.labels.iter().map(|l| i64::from(*l)).collect();
                let labels = (!labels.is_empty()).then_some(labels.as_slice());
                npz::save_samples(&args.out, &pixels, [count, size, size, channels], labels)
            }
            OutputKind::Folder => {
                for image in drawn.images() {
                    let class = image.class_name.map(|name| file_name_part(name) + "_");
                    let name = format!("{}{:05}.png", class.unwrap_or_default(), image.number);
                    let path = args.out.join(name);
                    image::save_png(&path, &image.pixels(), size, size, channels, &text)?;
                }
                Ok(())
            }
        }
    }

    /// One row an image: what the network took it for at `columns` of the steps.
    fn strip(&self, generator: &mut Generator, columns: usize, stop: &StopFlag) -> Result<()> {
        let request = &self.job.request;
        let schedule = SpacedSchedule::new(&self.job.network.info().diffusion, &request.steps)?;
        let steps = schedule.num_steps();
        let columns = columns.min(steps);
        let shown: Vec<usize> = (1..=columns).map(|k| (k * steps).div_ceil(columns)).collect();
        let request = DrawRequest { shown_steps: shown.clone(), ..request.clone() };
        // Of each image the predictions one after the other.
        let mut rows: Vec<Vec<f32>> = Vec::new();
        let mut watch = watch("sampling", stop);
        let drawn = block_on(generator.draw_watched(&request, &mut |step| {
            rows.resize(rows.len().max(step.images.end), Vec::new());
            if let Some(predicted) = step.predicted {
                let images = predicted.chunks(predicted.len() / step.images.len());
                for (row, image) in rows[step.images.clone()].iter_mut().zip(images) {
                    row.extend_from_slice(image);
                }
            }
            watch(step)
        }))?;
        let pixels = to_u8(&rows.concat());
        let timesteps = shown.iter().map(|k| format!("t={}", schedule.timestep_map[steps - k]));
        let mut grid = Grid::new(&pixels, [drawn.size, drawn.size, drawn.channels], columns)
            .title("predicted clean images")
            .column_labels(timesteps)
            .footer(self.footer());
        if !drawn.labels.is_empty() {
            grid = grid.row_labels(drawn.class_names.iter().cloned());
        }
        let recipe = command_line();
        grid.save(&self.args.out, &[("Software", "demist"), ("Comment", &recipe)])
    }
}
