//! `demist sweep`: one picture of what guidance does, classes down and scales
//! across, every cell from the same noise.

use super::sample::{check_count, check_scale, classes_named};
use super::sampling::{Draw, Want, draw_pixels, draws_from_noise, label_info, load};
use super::shared::{
    DeviceArgs, OutputKind, ProcessArgs, command_line, open_device, prepare_output, stop_on_ctrl_c,
};
use demist::checkpoint::read_network;
use demist::diffusion::SampleOptions;
use demist::output::Grid;
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
    /// The picture.
    #[arg(short, long, default_value = "sweep.png")]
    out: PathBuf,
    #[command(flatten)]
    process: ProcessArgs,
}

/// Draws the picture.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let (info, file) = read_network(&args.file)?;
    let named = label_info(&info, args.classifier.as_deref())?;
    let model = draws_from_noise(&args.file, &info)?;
    let guided = args.classifier.is_some();
    let base = args.process.options(&info, guided)?;
    if named.model.classes().is_none() {
        return Err(Error::Config("neither network nor classifier knows classes".into()));
    }
    let labels = classes_named(&args.classes, &named)?;
    if !guided && !model.null_class {
        return Err(Error::file(
            &args.file,
            "classifier-free guidance needs a network that was trained with --label-dropout; \
             otherwise give a --classifier",
        ));
    }
    for scale in &args.scales {
        check_scale("--scales", *scale)?;
    }
    check_count(args.scales.len(), labels.len(), &info)?;
    OutputKind::must_be_picture(&args.out)?;
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let opened = open_device(device)?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    let want = Want {
        batch: labels.len().min(8),
        classifier_free: !guided,
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
            guidance_weight: if guided { 1.0 } else { *scale },
            ..base.clone()
        };
        let what = Draw { count: labels.len(), labels: &labels, ..Default::default() };
        columns.push(draw_pixels(ctx, &loaded, &options, what, &stop)?);
    }
    let cells = (0..labels.len()).flat_map(|row| columns.iter().map(move |c| (row, c)));
    let pixels: Vec<u8> =
        cells.flat_map(|(row, c)| c[row * len..(row + 1) * len].iter().copied()).collect();
    let name = |l: &u32| named.data.classes.get(*l as usize).cloned().unwrap_or(l.to_string());
    let what = if guided { "classifier scale" } else { "guidance weight" };
    Grid::new(&pixels, [size, size, channels], columns.len())
        .title(what)
        .column_labels(args.scales.iter().map(f64::to_string))
        .row_labels(labels.iter().map(name))
        .footer(format!("{}, {}", args.process.describe(guided), gpu.summary))
        .save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    say!("wrote {}", args.out.display());
    Ok(())
}
