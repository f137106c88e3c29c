//! `demist sweep`: one picture of what guidance does, classes down and scales
//! across, every cell from the same noise.

use super::sample::{ProcessArgs, classes_named, prepare_output};
use super::sampling::{Draw, Want, draw_pixels, label_info, load};
use super::{command_line, open_device, stop_on_ctrl_c};
use demist::checkpoint::read_network;
use demist::diffusion::SampleOptions;
use demist::output::Grid;
use demist::runtime::{Context, Pipelines};
use demist::{Error, Result};
use std::path::PathBuf;

/// Arguments of `sweep`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file.
    file: PathBuf,
    /// Sweep the scale of this classifier; without it the weight of
    /// classifier-free guidance.
    #[arg(long, value_name = "NETWORK")]
    classifier: Option<PathBuf>,
    /// Scales, comma-separated.
    #[arg(long, value_delimiter = ',', default_value = "0,1,2,4,8", allow_negative_numbers = true)]
    scales: Vec<f64>,
    /// Classes by name or number, comma-separated, or "all".
    #[arg(long = "class", value_name = "CLASS", value_delimiter = ',', default_value = "all")]
    classes: Vec<String>,
    #[command(flatten)]
    process: ProcessArgs,
    /// The picture.
    #[arg(short, long, default_value = "sweep.png")]
    out: PathBuf,
}

/// Draws the picture.
pub fn run(device: Option<&str>, args: &Args) -> Result<()> {
    let (info, file) = read_network(&args.file)?;
    let named = label_info(&info, args.classifier.as_deref())?;
    let base = args.process.options(&info, None)?;
    if named.model.classes().is_none() {
        return Err(Error::Config("neither network nor classifier knows classes".into()));
    }
    let labels = classes_named(&args.classes, &named)?;
    if labels.is_empty() || args.scales.is_empty() || args.scales.iter().any(|s| !s.is_finite()) {
        return Err(Error::Config("at least one class and one finite scale are needed".into()));
    }
    if args.out.extension().is_none_or(|e| e != "png") {
        return Err(Error::Config("--out must end in .png".into()));
    }
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let gpu = open_device(device)?;
    let pipelines = Pipelines::new();
    let ctx = Context { gpu: &gpu, pipelines: &pipelines };
    let want = Want {
        batch: labels.len().min(8),
        classifier_free: args.classifier.is_none(),
        classifier: args.classifier.as_deref(),
        ..Default::default()
    };
    let loaded = load(ctx, &args.file, info, &file, want)?;
    let (size, channels) = (loaded.info.model.image_size(), loaded.info.model.in_channels());
    let len = size * size * channels;
    let mut columns = Vec::new();
    for scale in &args.scales {
        let options = SampleOptions {
            classifier_scale: *scale,
            guidance_weight: if args.classifier.is_some() { 1.0 } else { *scale },
            ..base.clone()
        };
        let what = Draw { count: labels.len(), labels: &labels, ..Default::default() };
        columns.push(draw_pixels(ctx, &loaded, &options, what, &stop)?);
    }
    let cells = (0..labels.len()).flat_map(|row| columns.iter().map(move |c| (row, c)));
    let pixels: Vec<u8> =
        cells.flat_map(|(row, c)| c[row * len..(row + 1) * len].iter().copied()).collect();
    let name = |l: &u32| named.data.classes.get(*l as usize).cloned().unwrap_or(l.to_string());
    let what = if args.classifier.is_some() { "classifier scale" } else { "guidance weight" };
    Grid::new(&pixels, [size, size, channels], columns.len())
        .title(what)
        .column_labels(args.scales.iter().map(f64::to_string))
        .row_labels(labels.iter().map(name))
        .footer(format!("{}, {}", args.process.describe(), gpu.summary))
        .save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    say!("wrote {}", args.out.display());
    Ok(())
}
