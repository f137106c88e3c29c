//! `demist info`: what a network is and what it needs, without allocating.

use super::shared::{
    DeviceArgs, open_device, parse_bytes, print_choices, print_network, print_process,
};
use demist::Result;
use demist::checkpoint::{NetworkInfo, read_info};
use demist::diffusion::{
    DiffusionConfig, GuideGraph, SamplingGraph, SamplingNeeds, released_diffusion,
};
use demist::engine::caps::{Caps, human_bytes};
use demist::engine::graph::{Graph, Plan, PlanReport};
use demist::engine::tuning::Forced;
use demist::model::{ModelConfig, model_preset, preset_names};
use demist::recipe::TrainConfig;
use demist::train::{MemoryNeed, fit_memory, memory_need, plan_step};
use std::path::{Path, PathBuf};

/// Arguments of `info`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file, or the name of a published network ("256x256_diffusion").
    file: PathBuf,
    /// Images at once, for the memory of the plans.
    #[arg(long, default_value_t = 1)]
    batch: usize,
    /// Plan in half precision.
    #[arg(long)]
    half: bool,
    /// Also tell what training recomputes to stay below this ("6GiB", "800MiB").
    #[arg(long, value_name = "BYTES", value_parser = parse_bytes)]
    memory: Option<u64>,
    /// Also say which variant of a kernel the device would run for which shape, and
    /// why; opens it.
    #[arg(long)]
    explain: bool,
}

/// Prints configuration, parameters, work and plan memory.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let (model, diffusion) = match named(&args.file) {
        Some((model, diffusion)) => {
            say!("preset      {}", args.file.display());
            (model, diffusion)
        }
        None => {
            let info = read_info(&args.file).map_err(|e| hint(e, &args.file))?;
            print_file(&args.file, &info);
            (info.model, info.diffusion)
        }
    };
    print_network(&model);
    print_process(&model, &diffusion);
    // Only sizes matter here; a device may bind less, which its own plan then says.
    let caps = Caps { forced: Forced::from_env()?, ..boundless() };
    model.check_batch(args.batch, caps.max_binding)?;
    let (graph, plan) = inference(&caps, &model, args)?;
    let parameters: usize = graph.params.iter().map(|p| p.len()).sum();
    say!("parameters  {parameters} in {} tensors", graph.params.len());
    let report = plan.report();
    let macs = report.flops as f64 / 2.0 / args.batch as f64;
    let (macs, unit) = if macs < 1e9 { (macs / 1e6, "MMAC") } else { (macs / 1e9, "GMAC") };
    let what = match &model {
        ModelConfig::UNet(_) => "forward",
        ModelConfig::Encoder(_) => "for a guidance gradient",
    };
    say!("work        {macs:.2} {unit} an image {what}");
    print_plan("inference", args.batch, &report, report.params_inference);
    let trainable = match &model {
        ModelConfig::UNet(m) => [1, 2].contains(&(m.out_channels / m.in_channels)),
        ModelConfig::Encoder(_) => true,
    };
    if trainable {
        let config = train_config(args);
        let need = memory_need(&caps, &model, &diffusion, &config)?;
        print_plan("training", args.batch, &need.report, need.params());
        let flops = need.report.flops;
        match args.memory {
            None => {
                let levels = model.levels();
                let all = TrainConfig { recompute_levels: (1 << levels) - 1, ..config };
                let least = memory_need(&caps, &model, &diffusion, &all)?;
                print_recomputed(&format!("all {levels} levels"), &least, flops);
            }
            Some(budget) => {
                let mut fitted = config;
                let need = fit_memory(&caps, &model, &diffusion, &mut fitted, budget)?;
                let chosen = match fitted.recompute_levels.count_ones() {
                    0 => "nothing".to_owned(),
                    n => format!("{n} of {} levels, the largest first", model.levels()),
                };
                print_recomputed(&format!("{chosen}, for {}", human_bytes(budget)), &need, flops);
            }
        }
    }
    if args.explain { explain(device, &model, &diffusion, args, trainable) } else { Ok(()) }
}

/// Which variants a device runs, and why.
fn explain(
    device: &DeviceArgs,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    args: &Args,
    trainable: bool,
) -> Result<()> {
    let opened = open_device(device)?;
    let Caps { max_binding, max_buffer, .. } = boundless();
    let caps = Caps { max_binding, max_buffer, ..opened.caps().clone() };
    say!("variants of inference, batch {}", args.batch);
    print_choices(&inference(&caps, model, args)?.1.choices);
    if trainable {
        say!("variants of training, batch {}", args.batch);
        let plan = plan_step(&caps, model, diffusion, &train_config(args))?;
        print_choices(&plan.choices);
    }
    Ok(())
}

/// What a step needs that computes `what` twice, and how much more work that is than
/// the `flops` of a step that keeps everything.
fn print_recomputed(what: &str, need: &MemoryNeed, flops: u64) {
    say!(
        "recompute   {what}: peak {}, activations {}, {:.0} % more work",
        human_bytes(need.bytes()),
        human_bytes(need.report.slots),
        100.0 * (need.report.flops as f64 / flops as f64 - 1.0)
    );
}

/// A training step of one micro-batch.
fn train_config(args: &Args) -> TrainConfig {
    TrainConfig {
        micro_batch: args.batch,
        half: args.half,
        batch_size: args.batch,
        ..Default::default()
    }
}

/// What drawing, or guiding, runs.
fn inference(caps: &Caps, model: &ModelConfig, args: &Args) -> Result<(Graph, Plan)> {
    let batch = args.batch;
    match model {
        ModelConfig::UNet(m) => {
            let wiring = SamplingGraph::new(
                m,
                batch,
                SamplingNeeds { half: args.half, ..Default::default() },
            )?;
            let plan = wiring.plan(caps)?;
            Ok((wiring.graph, plan))
        }
        ModelConfig::Encoder(m) => {
            let wiring = GuideGraph::new(m, batch)?;
            let plan = wiring.plan(caps)?.0;
            Ok((wiring.graph, plan))
        }
    }
}

fn named(file: &Path) -> Option<(ModelConfig, DiffusionConfig)> {
    let name = file.to_str().filter(|_| !file.exists())?;
    Some((model_preset(name)?, released_diffusion(name).unwrap_or_default()))
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
    if info.progress.step == 0 && info.data.images == 0 {
        say!("imported    from {}", info.data.source);
        say!("recipe      {}", info.command);
        return;
    }
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
        t.ema_rates.iter().map(f64::to_string).collect::<Vec<_>>().join(", "),
        t.seed
    );
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
        "            activations lie in {} buffers, {:.1} % of the largest live set ({})",
        r.buffers,
        100.0 * r.slots as f64 / r.lower_bound as f64,
        human_bytes(r.lower_bound)
    );
    say!(
        "            {} launches, largest binding {}",
        r.dispatches,
        human_bytes(r.largest_binding)
    );
}

/// The largest binding and the like do not matter where only sizes are asked for.
fn boundless() -> Caps {
    Caps { max_binding: u64::MAX / 8, max_buffer: u64::MAX / 8, ..Caps::default() }
}
