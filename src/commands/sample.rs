//! `demist sample`

use super::sampling::{draw, load};
use super::{command_line, open_device, stop_on_ctrl_c};
use demist::checkpoint::{NetworkInfo, read_network};
use demist::diffusion::{SampleOptions, Sampler, SpacedSchedule};
use demist::gpu::human_bytes;
use demist::output::{Grid, image, npz};
use demist::runtime::{Context, Pipelines};
use demist::{Error, Result};
use std::path::{Path, PathBuf};

/// Arguments of `sample`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file, or the state of a run.
    file: PathBuf,
    /// Images to draw (per class, if --class is given).
    #[arg(short = 'n', long, default_value_t = 8)]
    count: usize,
    /// Classes by name or number, comma-separated; "all" for every one.
    /// Without it each image draws its class at random.
    #[arg(long = "class", value_delimiter = ',')]
    classes: Vec<String>,
    /// Kept timesteps: "250", "90,60,60,20,20", "ddim25", or "" for all.
    #[arg(long, default_value = "50")]
    steps: String,
    /// Update rule.
    #[arg(long, value_enum, default_value_t = Rule::Ddim)]
    sampler: Rule,
    /// Noise of DDIM: 0 is deterministic, 1 as noisy as DDPM.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    eta: f64,
    /// Do not clamp the predicted image to the range of pixels.
    #[arg(long)]
    no_clip: bool,
    /// Seed of the noise; the same seed draws the same images in any batch size.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Images computed at once.
    #[arg(long, default_value_t = 8)]
    batch: usize,
    /// What to write: a grid (.png), a NumPy archive (.npz), or a folder of PNGs.
    #[arg(short, long, default_value = "samples.png")]
    out: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Rule {
    /// Ancestral sampling.
    Ddpm,
    /// Implicit sampling.
    Ddim,
}

/// Draws and writes.
pub fn run(device: Option<&str>, args: &Args) -> Result<()> {
    if args.count == 0 || args.batch == 0 {
        return Err(Error::Config("--count and --batch must be at least 1".into()));
    }
    let (info, file) = read_network(&args.file)?;
    let (labels, count) = choose_labels(args, &info)?;
    let options = SampleOptions {
        respacing: args.steps.clone(),
        sampler: match args.sampler {
            Rule::Ddpm => Sampler::Ddpm,
            Rule::Ddim => Sampler::Ddim { eta: args.eta },
        },
        clip: !args.no_clip,
        seed: args.seed,
    };
    // What can be refused is refused before the work.
    options.sampler.validate()?;
    SpacedSchedule::new(&info.diffusion, &options.respacing)?;
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let gpu = open_device(device)?;
    let pipelines = Pipelines::new();
    let ctx = Context { gpu: &gpu, pipelines: &pipelines };
    let loaded = load(ctx, &args.file, info, &file, args.batch.min(count))?;
    let pixels = draw(ctx, &loaded, &options, &labels, count, &stop)?;
    write(args, &loaded.info, &pixels, &labels, count, &gpu.summary.to_string())?;
    say!("wrote {}", args.out.display());
    Ok(())
}

/// The class of every image, row by row (none of an unconditional network),
/// and the number of images.
fn choose_labels(args: &Args, info: &NetworkInfo) -> Result<(Vec<u32>, usize)> {
    let Some(classes) = info.model.num_classes else {
        if let Some(name) = args.classes.first() {
            info.class(name)?;
        }
        check_count(args.count, 1, info)?;
        return Ok((Vec::new(), args.count));
    };
    if args.classes.is_empty() {
        check_count(args.count, 1, info)?;
        let draw = |i| {
            demist::rng::uniform_below(
                args.seed,
                0,
                demist::rng::STREAM_LABEL,
                i,
                0,
                classes as u32,
            )
        };
        return Ok(((0..args.count as u32).map(draw).collect(), args.count));
    }
    let wanted: Vec<u32> = if args.classes.iter().any(|c| c == "all") {
        (0..classes as u32).collect()
    } else {
        args.classes.iter().map(|c| info.class(c)).collect::<Result<_>>()?
    };
    let count = check_count(args.count, wanted.len(), info)?;
    let labels = wanted.into_iter().flat_map(|c| std::iter::repeat_n(c, args.count)).collect();
    Ok((labels, count))
}

/// `each` images of every one of `classes`: as many as the random numbers tell
/// apart, of a kind that can be written, and no more than there is room for.
fn check_count(each: usize, classes: usize, info: &NetworkInfo) -> Result<usize> {
    let (side, channels) = (info.model.image_size, info.model.in_channels);
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

/// A name ending in .png or .npz is a file, anything else a folder of images.
fn is_file_name(out: &Path) -> bool {
    out.extension().is_some_and(|e| e == "png" || e == "npz")
}

/// Makes the output folder, and fails before the work rather than after it.
fn prepare_output(out: &Path) -> Result<()> {
    let folder = if is_file_name(out) {
        if out.is_dir() {
            return Err(Error::file(out, "is a folder, a file of that name cannot be written"));
        }
        out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."))
    } else {
        std::fs::create_dir_all(out).map_err(|e| Error::io("create", out, e))?;
        out
    };
    let probe = tempfile::tempfile_in(folder);
    probe.map(|_| ()).map_err(|e| Error::io("write in", folder, io_reason(e)))
}

/// The reason alone: a temporary file's error repeats its path.
fn io_reason(e: std::io::Error) -> std::io::Error {
    e.kind().into()
}

/// A class name as part of a file name: it comes from a file and may hold
/// separators.
fn file_name_part(class: &str) -> String {
    let safe = |c: char| if c.is_alphanumeric() || "-.".contains(c) { c } else { '_' };
    class.chars().take(64).map(safe).collect::<String>().trim_start_matches('.').to_owned()
}

fn write(
    args: &Args,
    info: &NetworkInfo,
    pixels: &[u8],
    labels: &[u32],
    count: usize,
    device: &str,
) -> Result<()> {
    let (size, channels) = (info.model.image_size, info.model.in_channels);
    let name =
        |l: &u32| info.data.classes.get(*l as usize).cloned().unwrap_or_else(|| l.to_string());
    let recipe = command_line();
    let text = [("Software", "demist"), ("Comment", recipe.as_str()), ("Source", device)];
    match args.out.extension().and_then(|e| e.to_str()) {
        Some("png") => {
            let columns = if args.classes.is_empty() { args.count.min(8) } else { args.count };
            let mut grid = Grid::new(pixels, [size, size, channels], columns).footer(format!(
                "{} steps of {:?}, seed {}, {device}",
                if args.steps.is_empty() { "all" } else { &args.steps },
                args.sampler,
                args.seed
            ));
            if !args.classes.is_empty() {
                grid = grid.row_labels(labels.iter().step_by(args.count).map(name));
            }
            grid.save(&args.out, &text)
        }
        Some("npz") => {
            let labels: Vec<i64> = labels.iter().map(|l| i64::from(*l)).collect();
            let labels = (!labels.is_empty()).then_some(labels.as_slice());
            npz::save_samples(&args.out, pixels, [count, size, size, channels], labels)
        }
        _ => {
            for (i, image) in pixels.chunks(size * size * channels).enumerate() {
                let class = labels.get(i).map(|l| format!("{}_", file_name_part(&name(l))));
                let class = class.unwrap_or_default();
                image::save_png(
                    &args.out.join(format!("{class}{i:05}.png")),
                    image,
                    size,
                    size,
                    channels,
                    &text,
                )?;
            }
            Ok(())
        }
    }
}
