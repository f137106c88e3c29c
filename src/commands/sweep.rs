//! `demist sweep`: one picture of what guidance does, classes down and scales
//! across, every cell from the same noise.

use super::shared::{
    DeviceArgs, OutputKind, ProcessArgs, check_count, check_scale, classes_typed, command_line,
    describe, draws_from_noise, number_of_classes, open_device, prepare_output, stop_on_ctrl_c,
    watch,
};
use demist::output::Grid;
use demist::{DrawRequest, Error, Generator, Network, Result, block_on};
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

/// What is meant by the arguments.
struct Job {
    network: Network,
    /// One column, at the first scale.
    request: DrawRequest,
}

/// Draws the picture.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let Job { network, request } = Job::meant(args)?;
    OutputKind::must_be_picture(&args.out)?;
    prepare_output(&args.out)?;
    let stop = stop_on_ctrl_c()?;
    let device = open_device(device)?;
    let mut generator = Generator::new(&device, network)?;
    let mut columns = Vec::new();
    for scale in &args.scales {
        let request = args.at(*scale, request.clone());
        let mut watch = watch("sampling", &stop);
        columns.push(block_on(generator.draw_watched(&request, &mut watch))?);
    }
    let Some(first) = columns.first() else { return Ok(()) };
    let images: Vec<Vec<u8>> = columns.iter().map(|c| c.pixels()).collect();
    let len = images[0].len() / first.count;
    let row = |row: usize| images.iter().flat_map(move |c| &c[row * len..(row + 1) * len]);
    let pixels: Vec<u8> = (0..first.count).flat_map(row).copied().collect();
    let title = if args.classifier.is_some() { "classifier scale" } else { "guidance weight" };
    Grid::new(&pixels, [first.size, first.size, first.channels], columns.len())
        .title(title)
        .column_labels(args.scales.iter().map(f64::to_string))
        .row_labels(first.class_names.iter().cloned())
        .footer(format!("{}, {}", describe(&request), device.summary()))
        .save(&args.out, &[("Software", "demist"), ("Comment", &command_line())])?;
    say!("wrote {}", args.out.display());
    Ok(())
}

impl Args {
    /// The request of a column.
    fn at(&self, scale: f64, request: DrawRequest) -> DrawRequest {
        match self.classifier {
            Some(_) => DrawRequest { classifier_scale: scale, ..request },
            None => DrawRequest { guidance: Some(scale), ..request },
        }
    }
}

impl Job {
    fn meant(args: &Args) -> Result<Job> {
        let network = Network::read(&args.file)?;
        let classifier = args.classifier.as_ref().map(Network::read).transpose()?;
        let model = network.info().model.unet();
        let model = model.map_err(|e| Error::file(&args.file, e.to_string()))?;
        draws_from_noise(&network)?;
        let request = DrawRequest {
            classes: classes_typed(&args.classes),
            ..args.process.request(classifier)?
        };
        let labelled = request.labelled(&network);
        if labelled.classes().is_none() {
            return Err(Error::Config("neither network nor classifier knows classes".into()));
        }
        // One of each class for a column, all of them at once.
        let classes = number_of_classes(&request.classes, labelled);
        let request = DrawRequest { batch: classes.min(8), ..request };
        if args.classifier.is_none() && !model.null_class {
            return Err(Error::file(
                &args.file,
                "classifier-free guidance needs a network that was trained with --label-dropout; \
                 otherwise give a --classifier",
            ));
        }
        for scale in &args.scales {
            check_scale("--scales", *scale)?;
        }
        check_count(args.scales.len(), classes, &network)?;
        let first = args.scales.first().copied().unwrap_or(1.0);
        let request = args.at(first, request);
        request.check(&network)?;
        Ok(Job { network, request })
    }
}
