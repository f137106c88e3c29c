//! `demist profile`: where the time of a network goes, launch by launch.

use super::shared::{DeviceArgs, named_network, print_choices};
use demist::Result;
use demist::diffusion::DiffusionConfig;
use demist::engine::bench::{
    Case, Ceilings, Direction, Effort, Profile, Row, TimeKind, bind, chrome_trace,
};
use demist::engine::graph::{Choice, FlatKind};
use demist::engine::runtime::{Clock, Context};
use demist::model::{ModelConfig, initialise};
use demist::recipe::TrainConfig;
use demist::train::{MicroBatch, Noise, TrainStep, memory_need};
use std::path::PathBuf;
use std::time::Duration;

/// How long each of the device's ceilings is measured.
const CEILING_TIME: Duration = Duration::from_millis(200);

/// Arguments of `profile`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file, or the name of a published network ("64x64_diffusion") or of a
    /// workload of `bench` ("W5").
    file: PathBuf,
    /// Images at once.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// A whole training step instead of the network forward.
    #[arg(long)]
    train: bool,
    /// Store activations and convolution weights in half precision.
    #[arg(long)]
    half: bool,
    /// Write a trace for Perfetto or chrome://tracing.
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// Layers to list, the slowest first.
    #[arg(long, default_value_t = 15)]
    layers: usize,
    /// Say which variant was taken for which shape, and why.
    #[arg(long)]
    explain: bool,
}

/// Profiles and prints.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let (model, diffusion) = named_network(&args.file)?;
    let opened = device.open_for_measuring()?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    model.check_batch(args.batch, gpu.caps.max_binding)?;
    let clock = Clock::of(gpu);
    let (profile, choices) = match args.train {
        true => training(ctx, clock, &model, &diffusion, args)?,
        false => forward(ctx, clock, &model, args)?,
    };
    let what = if args.train { "training step" } else { "forward" };
    say!(
        "{} {what}, batch {}: {} launches, {:.3} ms",
        args.file.display(),
        args.batch,
        profile.len(),
        profile.ms()
    );
    say!("clock       {clock}");
    let effort = Effort { budget: CEILING_TIME, time: TimeKind::Elapsed };
    let ceilings = Ceilings::measure(ctx, effort)?;
    print_rows("op", &profile.by_op(), usize::MAX, &ceilings);
    print_rows("kernel", &profile.by_kernel(), usize::MAX, &ceilings);
    print_rows("layer", &profile.by_layer(), args.layers, &ceilings);
    if args.explain {
        say!("variants");
        print_choices(&choices);
    }
    if let Some(path) = &args.trace {
        let title = format!("{} {what}, batch {}", args.file.display(), args.batch);
        chrome_trace(path, &title, &profile)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// The network alone, with initial weights: their values do not change the time.
fn forward(
    ctx: Context,
    clock: Clock,
    model: &ModelConfig,
    args: &Args,
) -> Result<(Profile, Vec<Choice>)> {
    let case = Case::network(model, args.batch, Direction::Forward, args.half)?;
    let planned = case.plan(&ctx.gpu.caps, &[])?;
    ctx.gpu.check_room(case.bytes(&planned.plan))?;
    let choices = planned.plan.choices.clone();
    note!("compiling {} launches", planned.plan.dispatches.len());
    let prepared = case.prepare(ctx, planned)?;
    prepared.run(ctx.gpu)?;
    let spans = prepared.program.run_timed(ctx.gpu, clock)?;
    Ok((Profile::of(&prepared.program, &spans), choices))
}

/// A training step as `train` runs it: noising, network, losses, gradients, update.
fn training(
    ctx: Context,
    clock: Clock,
    model: &ModelConfig,
    diffusion: &DiffusionConfig,
    args: &Args,
) -> Result<(Profile, Vec<Choice>)> {
    let n = args.batch;
    let config =
        TrainConfig { batch_size: n, micro_batch: n, half: args.half, ..Default::default() };
    let need = memory_need(&ctx.gpu.caps, model, diffusion, &config)?;
    ctx.gpu.check_room(need.bytes())?;
    note!("compiling {} launches", need.report.dispatches);
    let step = TrainStep::new(ctx, model, diffusion, &config, Noise::Drawn)?;
    let weights = initialise(&step.graph().params, 0);
    for kind in [FlatKind::Weights, FlatKind::Ema(0)] {
        step.flat().write(ctx.gpu, kind, &step.graph().params, &weights)?;
    }
    let pixels = n * model.image_size().pow(2) * model.in_channels();
    let images: Vec<f32> = (0..pixels).map(|i| (i % 255) as f32 / 127.0 - 1.0).collect();
    let labels: Vec<u32> = (0..n).map(|i| (i % model.classes().unwrap_or(1)) as u32).collect();
    let timesteps: Vec<usize> = (0..n as u64).map(|i| step.draw_timestep(0, i)).collect();
    let batch = MicroBatch {
        images: &images,
        labels: &labels,
        timesteps: &timesteps,
        importance: &[],
        first: 0,
        noise: None,
    };
    // Warms up and leaves the inputs where the timed runs find them.
    step.micro_step(ctx, 0, 0, &batch)?;
    step.update(ctx, 0)?;
    let mut profile = Profile::default();
    for program in step.programs() {
        profile.append(Profile::of(program, &program.run_timed(ctx.gpu, clock)?));
    }
    Ok((profile, step.plan().choices.clone()))
}

/// How much of its time a row's ceiling would take, and which that is.
fn standing(r: &Row, ceilings: &Ceilings) -> String {
    if r.ms == 0.0 {
        return String::new();
    }
    let bound = bind(r.work, ceilings);
    format!("{:.1} % {}", 100.0 * bound.ms / r.ms, bound.limit)
}

fn print_rows(what: &str, rows: &[Row], most: usize, ceilings: &Ceilings) {
    let shown = &rows[..rows.len().min(most)];
    let wide = shown.iter().map(|r| r.name.len()).max().unwrap_or(0).max(what.len());
    say!();
    say!(
        "{what:<wide$}  {:>8}  {:>10}  {:>7}  {:>9}  {:>20}",
        "launches",
        "ms",
        "share",
        "GFLOP/s",
        "of the ceiling"
    );
    for r in shown {
        let share = format!("{:.1} %", 100.0 * r.share);
        say!(
            "{:<wide$}  {:>8}  {:>10.3}  {share:>7}  {:>9.2}  {:>20}",
            r.name,
            r.launches,
            r.ms,
            r.gflops,
            standing(r, ceilings)
        );
    }
    if rows.len() > shown.len() {
        let rest = &rows[shown.len()..];
        let ms: f64 = rest.iter().map(|r| r.ms).sum();
        let launches: usize = rest.iter().map(|r| r.launches).sum();
        say!("{:<wide$}  {launches:>8}  {ms:>10.3}", format!("{} more", rest.len()));
    }
}
