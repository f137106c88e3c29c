//! `demist sample`: draws images from a network file, guided or not, and
//! enlarges them by further networks.

use super::sampling::{Draw, Loaded, Want, draw, draw_pixels, label_info, load};
use super::shared::{
    DeviceArgs, GivenImages, OutputKind, ProcessArgs, command_line, file_name_part, open_device,
    prepare_output, read_images, stop_on_ctrl_c,
};
use demist::caps::human_bytes;
use demist::checkpoint::check_parameters;
use demist::checkpoint::{NetworkInfo, read_network};
use demist::data::first_names;
use demist::diffusion::{SampleOptions, SpacedSchedule};
use demist::model::model_params;
use demist::output::image::{from_u8, to_u8};
use demist::output::{Grid, image, npz};
use demist::runtime::Context;
use demist::train::StopFlag;
use demist::{Error, Result};
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
pub struct GuidanceArgs {
    /// Follow the gradient of this classifier.
    #[arg(long, value_name = "NETWORK")]
    pub classifier: Option<PathBuf>,
    /// Scale of the classifier's gradient [default: 1].
    #[arg(long, value_name = "SCALE", requires = "classifier", allow_negative_numbers = true)]
    pub classifier_scale: Option<f64>,
    /// Weight of classifier-free guidance: 1 is the conditional prediction, more
    /// exaggerates the difference to the unconditional one.
    #[arg(long, value_name = "WEIGHT", default_value_t = 1.0, allow_negative_numbers = true)]
    pub guidance: f64,
    /// Do not tell the network the class; a classifier may still guide.
    #[arg(long)]
    pub unconditional: bool,
}

/// Refuses scales of guidance that no picture survives.
pub fn check_scale(name: &str, scale: f64) -> Result<f64> {
    if scale.abs() <= MAX_SCALE {
        Ok(scale)
    } else {
        Err(Error::Config(format!("{name} {scale:?} is not between -{MAX_SCALE} and {MAX_SCALE}")))
    }
}

impl GuidanceArgs {
    /// `options` with the scales.
    fn apply(&self, options: SampleOptions) -> Result<SampleOptions> {
        let scale = self.classifier_scale.unwrap_or(1.0);
        Ok(SampleOptions {
            classifier_scale: check_scale("--classifier-scale", scale)?,
            guidance_weight: check_scale("--guidance", self.guidance)?,
            unconditional: self.unconditional,
            ..options
        })
    }

    /// Whether the network is evaluated with and without its class.
    pub fn is_classifier_free(&self) -> bool {
        self.guidance != 1.0
    }
}

/// The largest scale of guidance.
const MAX_SCALE: f64 = 1e4;

/// Draws and writes.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    if args.count == 0 || args.batch == 0 || args.strip == Some(0) {
        return Err(Error::Config("--count, --batch and --strip must be at least 1".into()));
    }
    let (info, file) = read_network(&args.file)?;
    let model = info.model.unet().map_err(|e| Error::file(&args.file, e.to_string()))?.clone();
    // What can be refused is refused before the work.
    let options = args.process.options(&info, args.guidance.classifier.is_some())?;
    let options = args.guidance.apply(options)?;
    if (args.guidance.is_classifier_free() || args.guidance.unconditional) && !model.null_class {
        return Err(Error::Config(
            "the network knows no images without a class: --guidance and --unconditional need one \
             that was trained with --label-dropout"
                .into(),
        ));
    }
    let named = label_info(&info, args.guidance.classifier.as_deref())?;
    let kind = OutputKind::of(&args.out)?;
    if args.strip.is_some() && kind != OutputKind::Picture {
        return Err(Error::Config("--strip draws a picture: --out must end in .png".into()));
    }
    let stages = stages(args, &info, &named)?;
    let given = match (&args.low_res, model.small_size) {
        (Some(path), Some(small)) => {
            Some(read_images(path, small, model.in_channels, args.count, &named)?)
        }
        (None, None) => None,
        (None, Some(small)) => {
            return Err(Error::Config(format!(
                "this network enlarges images of {small} pixels; give them by --low-res"
            )));
        }
        (Some(_), None) => {
            return Err(Error::Config("--low-res is for super-resolution networks".into()));
        }
    };
    let (labels, count) = choose_labels(args, &named, given.as_ref())?;
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let opened = open_device(device)?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    let want = Want {
        batch: args.batch.min(count),
        keep_x0: args.strip.is_some(),
        classifier_free: args.guidance.is_classifier_free(),
        classifier: args.guidance.classifier.as_deref(),
        half: args.half,
    };
    let loaded = load(ctx, &args.file, info, &file, want)?;
    let what = Draw {
        count,
        labels: &labels,
        low_res: given.as_ref().map(|g| g.pixels.as_slice()),
        ..Default::default()
    };
    let device = gpu.summary.to_string();
    let out = Output { args, kind, info: &named, labels: &labels, count, device };
    match args.strip {
        Some(columns) => out.strip(ctx, &loaded, &options, what, columns, &stop)?,
        None => {
            let pixels = draw_pixels(ctx, &loaded, &options, what, &stop)?;
            let mut size = loaded.info.model.image_size();
            drop(loaded);
            let pixels =
                enlarge(ctx, args, &options, &stages, (&labels, count), pixels, &mut size, &stop)?;
            out.write(&pixels, size)?;
        }
    }
    say!("wrote {}", args.out.display());
    Ok(())
}

/// Checks that each enlarging network takes what the one before makes; `named`
/// tells the classes of the labels.
fn stages(args: &Args, base: &NetworkInfo, named: &NetworkInfo) -> Result<Vec<NetworkInfo>> {
    if args.strip.is_some() && !args.upsample.is_empty() {
        return Err(Error::Config(
            "--strip shows one network's steps; leave out --upsample".into(),
        ));
    }
    let mut size = base.model.image_size();
    let mut stages = Vec::new();
    for path in &args.upsample {
        let (info, file) = read_network(path)?;
        let fail = |detail: String| Err(Error::file(path, detail));
        let model = info.model.unet().map_err(|e| Error::file(path, e.to_string()))?;
        match model.small_size {
            Some(small) if small == size => {}
            Some(small) => {
                return fail(format!("enlarges images of {small} pixels, these are of {size}"));
            }
            None => return fail("is no super-resolution network".into()),
        }
        if model.in_channels != base.model.in_channels() {
            return fail(format!(
                "is for images of {} channels, these have {}",
                model.in_channels,
                base.model.in_channels()
            ));
        }
        if let Some(classes) = model.num_classes {
            let (theirs, ours) = (&info.data.classes, &named.data.classes);
            match named.model.classes() {
                None => {
                    return fail(format!(
                        "needs one of {classes} classes, the first network draws images of none"
                    ));
                }
                Some(n) if n != classes => {
                    return fail(format!("knows {classes} classes, the first network {n}"));
                }
                Some(_) if !theirs.is_empty() && !ours.is_empty() && theirs != ours => {
                    let [theirs, ours] = [theirs, ours].map(|c| first_names(c));
                    return fail(format!("knows the classes {theirs}, the first network {ours}"));
                }
                Some(_) => {}
            }
        }
        let steps = args.upsample_steps.as_ref().unwrap_or(&args.process.steps);
        SpacedSchedule::new(&info.diffusion, steps)
            .map_err(|e| Error::file(path, e.to_string()))?;
        // A file that does not fit is found now, not when its turn comes.
        let prefix = info.holds.prefix();
        check_parameters(&model_params(&info.model)?, &file, prefix)
            .map_err(|e| Error::file(path, e))?;
        size = model.image_size;
        stages.push(info);
    }
    Ok(stages)
}

/// Runs the images through the enlarging networks. They get bytes, as they
/// would from a file.
#[allow(clippy::too_many_arguments)]
fn enlarge(
    ctx: Context,
    args: &Args,
    options: &SampleOptions,
    stages: &[NetworkInfo],
    (labels, count): (&[u32], usize),
    mut pixels: Vec<u8>,
    size: &mut usize,
    stop: &StopFlag,
) -> Result<Vec<u8>> {
    for (number, (info, path)) in stages.iter().zip(&args.upsample).enumerate() {
        let (_, file) = read_network(path)?;
        let conditional = info.model.classes().is_some();
        let loaded = load(
            ctx,
            path,
            info.clone(),
            &file,
            Want { batch: args.batch.min(count), half: args.half, ..Default::default() },
        )?;
        let low_res = from_u8(&pixels);
        let options = SampleOptions {
            respacing: args.upsample_steps.clone().unwrap_or_else(|| options.respacing.clone()),
            // Other noise than the stage before, of which this one is a detail.
            seed: options.seed.wrapping_add(1 + number as u64),
            guidance_weight: 1.0,
            ..options.clone()
        };
        let what = Draw {
            count,
            labels: if conditional { labels } else { &[] },
            low_res: Some(&low_res),
            ..Default::default()
        };
        pixels = to_u8(&draw(ctx, &loaded, &options, what, stop, "enlarging")?.images);
        *size = info.model.image_size();
    }
    Ok(pixels)
}

/// The class of every image, row by row (none of an unconditional network),
/// and the number of images; `given` are the small ones they are enlarged from.
fn choose_labels(
    args: &Args,
    info: &NetworkInfo,
    given: Option<&GivenImages>,
) -> Result<(Vec<u32>, usize)> {
    let each = given.map_or(args.count, |g| g.count);
    let Some(classes) = info.model.classes() else {
        if let Some(name) = args.classes.first() {
            info.class(name)?;
        }
        check_count(each, 1, info)?;
        return Ok((Vec::new(), each));
    };
    if args.classes.is_empty() {
        check_count(each, 1, info)?;
        if let Some(labels) = given.and_then(|g| g.labels.as_ref().ok()) {
            return Ok((labels.clone(), each));
        }
        let (seed, stream) = (args.process.seed, demist::rng::STREAM_LABEL);
        let draw = |i| demist::rng::uniform_below(seed, 0, stream, i, 0, classes as u32);
        return Ok(((0..each as u32).map(draw).collect(), each));
    }
    let wanted = classes_named(&args.classes, info)?;
    if given.is_some() && wanted.len() > 1 {
        return Err(Error::Config(
            "the images of --low-res are drawn once each: give one --class, or none to draw each \
             as what it is"
                .into(),
        ));
    }
    let count = check_count(each, wanted.len(), info)?;
    let labels = wanted.into_iter().flat_map(|c| std::iter::repeat_n(c, each)).collect();
    Ok((labels, count))
}

/// Class numbers by name or number; "all" for all of them.
pub fn classes_named(names: &[String], info: &NetworkInfo) -> Result<Vec<u32>> {
    if names.iter().any(|c| c == "all") {
        return Ok((0..info.model.classes().unwrap_or(0) as u32).collect());
    }
    names.iter().map(|c| info.class(c)).collect()
}

/// `each` images of every one of `classes`: as many as the random numbers tell
/// apart, of a kind that can be written, and no more than there is room for.
pub fn check_count(each: usize, classes: usize, info: &NetworkInfo) -> Result<usize> {
    let (side, channels) = (info.model.image_size(), info.model.in_channels());
    if !matches!(channels, 1 | 3) {
        return Err(Error::Config(format!(
            "the network draws images of {channels} channels; 1 (grey) and 3 (RGB) can be written"
        )));
    }
    let count = each.checked_mul(classes).filter(|n| u32::try_from(*n).is_ok());
    let Some(count) = count else {
        return Err(Error::Config(format!(
            "--count {each} of {classes} classes is more than {} images",
            u32::MAX
        )));
    };
    let bytes = count as u64 * (side * side * channels) as u64;
    let mut room: Vec<u8> = Vec::new();
    let fits = usize::try_from(bytes).is_ok_and(|n| room.try_reserve_exact(n).is_ok());
    if !fits {
        return Err(Error::Memory(format!("{count} images need {}", human_bytes(bytes))));
    }
    Ok(count)
}

/// Where the images go, and what is written beside them.
struct Output<'a> {
    args: &'a Args,
    kind: OutputKind,
    info: &'a NetworkInfo,
    labels: &'a [u32],
    count: usize,
    device: String,
}

impl Output<'_> {
    fn class_name(&self, label: &u32) -> String {
        let name = self.info.data.classes.get(*label as usize).cloned();
        name.unwrap_or_else(|| label.to_string())
    }

    fn footer(&self) -> String {
        let g = &self.args.guidance;
        let mut text = self.args.process.describe(g.classifier.is_some());
        if g.classifier.is_some() {
            text += &format!(", classifier scale {}", g.classifier_scale.unwrap_or(1.0));
        }
        if g.is_classifier_free() {
            text += &format!(", guidance {}", g.guidance);
        }
        format!("{text}, {}", self.device)
    }

    fn write(&self, pixels: &[u8], size: usize) -> Result<()> {
        let (args, labels, count) = (self.args, self.labels, self.count);
        let channels = self.info.model.in_channels();
        let recipe = command_line();
        let text = [("Software", "demist"), ("Comment", recipe.as_str()), ("Source", &self.device)];
        match self.kind {
            OutputKind::Picture => {
                let rows = !args.classes.is_empty() && count == args.count * (count / args.count);
                let columns = if rows { args.count } else { count.min(8) };
                let mut grid =
                    Grid::new(pixels, [size, size, channels], columns).footer(self.footer());
                if rows && !labels.is_empty() {
                    let names = labels.iter().step_by(args.count).map(|l| self.class_name(l));
                    grid = grid.row_labels(names);
                }
                grid.save(&args.out, &text)
            }
            OutputKind::Archive => {
                let labels: Vec<i64> = labels.iter().map(|l| i64::from(*l)).collect();
                let labels = (!labels.is_empty()).then_some(labels.as_slice());
                npz::save_samples(&args.out, pixels, [count, size, size, channels], labels)
            }
            OutputKind::Folder => {
                for (i, image) in pixels.chunks(size * size * channels).enumerate() {
                    let class = labels.get(i).map(|l| file_name_part(&self.class_name(l)) + "_");
                    let name = format!("{}{i:05}.png", class.unwrap_or_default());
                    let path = args.out.join(name);
                    image::save_png(&path, image, size, size, channels, &text)?;
                }
                Ok(())
            }
        }
    }

    /// One row an image: what the network took it for at `columns` of the steps.
    fn strip(
        &self,
        ctx: Context,
        loaded: &Loaded,
        options: &SampleOptions,
        what: Draw,
        columns: usize,
        stop: &StopFlag,
    ) -> Result<()> {
        let schedule = SpacedSchedule::new(&loaded.info.diffusion, &options.respacing)?;
        let steps = schedule.num_steps();
        let columns = columns.min(steps);
        let shown: Vec<usize> = (1..=columns).map(|k| (k * steps).div_ceil(columns)).collect();
        let what = Draw { show_x0: &shown, ..what };
        let drawn = draw(ctx, loaded, options, what, stop, "sampling")?;
        let (size, channels) = (loaded.info.model.image_size(), loaded.info.model.in_channels());
        let pixels = to_u8(&drawn.x0.concat());
        let timesteps = shown.iter().map(|k| format!("t={}", schedule.timestep_map[steps - k]));
        let mut grid = Grid::new(&pixels, [size, size, channels], columns)
            .title("predicted clean images")
            .column_labels(timesteps)
            .footer(self.footer());
        if !self.labels.is_empty() {
            grid = grid.row_labels(self.labels.iter().map(|l| self.class_name(l)));
        }
        let recipe = command_line();
        grid.save(&self.args.out, &[("Software", "demist"), ("Comment", &recipe)])
    }
}
