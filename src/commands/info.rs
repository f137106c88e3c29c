//! `demist info`: what a network is and what it needs, without allocating.

use super::check_batch;
use demist::Result;
use demist::checkpoint::{NetworkInfo, read_info};
use demist::diffusion::{DiffusionConfig, SamplingGraph};
use demist::gpu::{Caps, human_bytes};
use demist::graph::PlanReport;
use demist::model::{UNetConfig, preset, preset_names};
use std::path::{Path, PathBuf};

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file, or the name of a published network ("256x256_diffusion").
    file: PathBuf,
    /// Images at once, for the memory of the plans.
    #[arg(long, default_value_t = 1)]
    batch: usize,
}

/// Prints configuration, parameters, work and plan memory.
pub fn run(_device: Option<&str>, args: &Args) -> Result<()> {
    let (model, diffusion) = match named(&args.file) {
        Some(model) => {
            say!("preset      {}", args.file.display());
            (model, DiffusionConfig::default())
        }
        None => {
            let info = read_info(&args.file).map_err(|e| hint(e, &args.file))?;
            print_file(&args.file, &info);
            (info.model, info.diffusion)
        }
    };
    print_model(&model);
    say!(
        "diffusion   {} steps, {:?} schedule, predicts {:?}, variance {:?}",
        diffusion.diffusion_steps,
        diffusion.noise_schedule,
        diffusion.mean_type,
        diffusion.var_type
    );
    // Only sizes matter here; a device may bind less, which its own plan then says.
    let caps = Caps { max_binding: u64::MAX / 8, max_buffer: u64::MAX / 8, ..Caps::default() };
    check_batch(&caps, &model, args.batch)?;
    let wiring = SamplingGraph::new(&model, args.batch, false, false)?;
    let plan = wiring.plan(&caps)?;
    let parameters: usize = wiring.graph.params.iter().map(|p| p.len()).sum();
    say!("parameters  {parameters} in {} tensors", wiring.graph.params.len());
    let report = plan.report();
    let macs = report.flops as f64 / 2.0 / args.batch as f64;
    let (macs, unit) = if macs < 1e9 { (macs / 1e6, "MMAC") } else { (macs / 1e9, "GMAC") };
    say!("work        {macs:.2} {unit} an image forward");
    print_plan("inference", args.batch, &report, report.params);
    let image_channels =
        model.out_channels == model.in_channels || model.out_channels == 2 * model.in_channels;
    if image_channels {
        let train = demist::train::plan_report(&caps, &model, &diffusion, args.batch)?;
        // Weights, gradients, two moments and the average.
        print_plan("training", args.batch, &train, 5 * train.params);
    }
    Ok(())
}

fn named(file: &Path) -> Option<UNetConfig> {
    if file.exists() { None } else { preset(file.to_str()?) }
}

fn hint(e: demist::Error, file: &Path) -> demist::Error {
    match e {
        demist::Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            demist::Error::file(
                file,
                format!("no such file, and no preset of that name ({})", preset_names().join(", ")),
            )
        }
        other => other,
    }
}

fn print_file(path: &Path, info: &NetworkInfo) {
    say!("file        {} (holds {})", path.display(), info.holds);
    say!(
        "trained     {} steps, {} images seen, on {}",
        info.progress.step,
        info.progress.images_seen,
        info.device
    );
    say!(
        "data        {} ({} images): {}",
        info.data.source,
        info.data.images,
        info.data.classes.join(", ")
    );
    say!("recipe      {}", info.command);
    let t = &info.training;
    say!(
        "training    batch {} in parts of {}, lr {}, ema {}, seed {}",
        t.batch_size,
        t.micro_batch,
        t.lr,
        t.ema_rate,
        t.seed
    );
}

fn print_model(m: &UNetConfig) {
    say!(
        "network     {}x{} pixels, {} channels in, {} out, width {}, multipliers {:?}, {} residual blocks a level",
        m.image_size,
        m.image_size,
        m.in_channels,
        m.out_channels,
        m.model_channels,
        m.channel_mult,
        m.num_res_blocks
    );
    let heads = m
        .num_head_channels
        .map_or(format!("{} heads", m.num_heads), |d| format!("{d} channels a head"));
    say!(
        "            attention at 1/{:?} of the size, {heads}, {}, {}, dropout {}",
        m.attention_resolutions,
        if m.use_scale_shift_norm { "adaptive group norm" } else { "added embedding" },
        if m.resblock_updown { "residual resampling" } else { "plain resampling" },
        m.dropout
    );
    match m.num_classes {
        Some(n) => say!("            conditional on {n} classes"),
        None => say!("            unconditional"),
    }
}

fn print_plan(what: &str, batch: usize, r: &PlanReport, parameters: u64) {
    let total = r.slots + r.pinned + parameters;
    say!(
        "{what:<11} batch {batch}: peak {} = activations {} + inputs and outputs {} + parameters {}",
        human_bytes(total),
        human_bytes(r.slots),
        human_bytes(r.pinned),
        human_bytes(parameters)
    );
    say!(
        "            {} dispatches, largest binding {}, live set at least {}",
        r.dispatches,
        human_bytes(r.largest_binding),
        human_bytes(r.lower_bound)
    );
}
