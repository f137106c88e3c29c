//! `demist sample`

use super::sampling::{draw, load};
use super::{command_line, open_device, stop_on_ctrl_c};
use demist::checkpoint::{NetworkInfo, read_network};
use demist::diffusion::{SampleOptions, Sampler};
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
    #[arg(long, default_value_t = 0.0)]
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
    let labels = choose_labels(args, &info)?;
    let count = if labels.is_empty() { args.count } else { labels.len() };
    let options = SampleOptions {
        respacing: args.steps.clone(),
        sampler: match args.sampler {
            Rule::Ddpm => Sampler::Ddpm,
            Rule::Ddim => Sampler::Ddim { eta: args.eta },
        },
        clip: !args.no_clip,
        seed: args.seed,
    };
    options.sampler.validate()?;
    check_writable(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let gpu = open_device(device)?;
    let pipelines = Pipelines::new();
    let ctx = Context { gpu: &gpu, pipelines: &pipelines };
    let loaded = load(ctx, &args.file, info, &file, args.batch.min(count))?;
    let pixels = draw(ctx, &loaded, &options, &labels, count, &stop)?;
    write(args, &loaded.info, &pixels, &labels, count, &gpu.summary.to_string())?;
    println!("wrote {}", args.out.display());
    Ok(())
}

/// The class of every image, row by row.
fn choose_labels(args: &Args, info: &NetworkInfo) -> Result<Vec<u32>> {
    let Some(classes) = info.model.num_classes else {
        return match args.classes.first() {
            Some(name) => info.class(name).map(|_| Vec::new()),
            None => Ok(Vec::new()),
        };
    };
    if args.classes.is_empty() {
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
        return Ok((0..args.count as u32).map(draw).collect());
    }
    let wanted: Vec<u32> = if args.classes.iter().any(|c| c == "all") {
        (0..classes as u32).collect()
    } else {
        args.classes.iter().map(|c| info.class(c)).collect::<Result<_>>()?
    };
    Ok(wanted.into_iter().flat_map(|c| std::iter::repeat_n(c, args.count)).collect())
}

/// Fails before the work rather than after it.
fn check_writable(out: &Path) -> Result<()> {
    let parent = out.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    tempfile::tempfile_in(parent).map(|_| ()).map_err(|e| Error::io("write to", parent, e))
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
            std::fs::create_dir_all(&args.out).map_err(|e| Error::io("create", &args.out, e))?;
            for (i, image) in pixels.chunks(size * size * channels).enumerate() {
                let class = labels.get(i).map(|l| format!("{}_", name(l))).unwrap_or_default();
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
