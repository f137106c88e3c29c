//! `demist tune`: measures which variant of each kernel is the fastest on a device
//! and keeps the winners, for every other command to take.

use super::shared::{DeviceArgs, bar, effort, named_network, stop_on_ctrl_c};
use demist::engine::bench::{Case, Direction, Effort, Measured, Subject, WORKLOADS, subjects};
use demist::engine::graph::shape_name;
use demist::engine::runtime::Context;
use demist::engine::tuning::{Cache, DeviceKey, Tuning, TuningFile};
use demist::train::StopFlag;
use demist::{Error, Result};
use std::path::{Path, PathBuf};

/// Arguments of `tune`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A network file, or the name of a published network ("64x64_diffusion"), whose
    /// shapes are measured; without it those of the smaller workloads of `demist bench`.
    model: Option<PathBuf>,
    /// Images at once.
    #[arg(long, default_value_t = 4)]
    batch: usize,
    /// Store activations and convolution weights in half precision.
    #[arg(long)]
    half: bool,
    /// Also what the backward walk of training or of guidance runs.
    #[arg(long)]
    train: bool,
    /// About how long to measure each shape, beside compiling it.
    #[arg(long, default_value_t = 0.5, allow_negative_numbers = true)]
    seconds: f64,
    /// Count the time that threads ran instead of elapsed time, for software
    /// drivers on a busy machine (Linux only). Does not see how well work spreads
    /// over the cores.
    #[arg(long)]
    cpu: bool,
    /// Measure and print, but keep nothing.
    #[arg(long)]
    dry_run: bool,
    /// Print what is kept for this device instead of measuring.
    #[arg(long, conflicts_with_all = ["model", "train", "dry_run"])]
    print: bool,
}

/// Measures, prints and keeps, or prints what is kept.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    let effort = effort(args.seconds, args.cpu, "shape")?;
    let cache = Cache::from_env();
    if cache.is_none() && !args.dry_run {
        return Err(Error::Config(
            "there is no cache folder to keep a tuning in: set DEMIST_CACHE to one, or give \
             --dry-run"
                .into(),
        ));
    }
    let model = args.model.as_deref().map(named_network).transpose()?;
    let opened = device.open_for_tuning()?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    let key = gpu.summary.key();
    let path = cache.map(|c| c.tuning(&key));
    if let Some(path) = path.as_deref().filter(|_| args.print) {
        return print_kept(path, &key);
    }
    let direction = if args.train { Direction::Backward } else { Direction::Forward };
    let cases = match model {
        Some((model, _)) => {
            model.check_batch(args.batch, gpu.caps.max_binding)?;
            vec![Case::network(&model, args.batch, direction, args.half)?]
        }
        None => workloads(args)?,
    };
    let subjects = subjects(&cases, &gpu.caps)?;
    let stop = stop_on_ctrl_c()?;
    note!("measuring {} shapes", subjects.len());
    // What was measured before a fault is worth keeping, too.
    let mut measured = Vec::new();
    let outcome = measure_all(ctx, &subjects, effort, &stop, &mut measured);
    let stopped = match outcome {
        Err(Error::Interrupted) => true,
        Err(_) if measured.is_empty() => return outcome,
        _ => false,
    };
    if !measured.is_empty() {
        print_table(&measured);
    }
    if stopped {
        say!("stopped: {} of {} shapes were measured", measured.len(), subjects.len());
    }
    if let Some(path) = path.filter(|_| !args.dry_run && !measured.is_empty()) {
        keep(&path, key, &measured)?;
        say!("wrote {}", path.display());
    }
    if stopped { Ok(()) } else { outcome }
}

/// What `demist bench` measures on any device, forward or backward.
fn workloads(args: &Args) -> Result<Vec<Case>> {
    let small = WORKLOADS.iter().filter(|w| !w.heavy);
    let wanted = |train: bool, d: Direction| (d == Direction::Forward) || train;
    small
        .flat_map(|w| w.directions.iter().map(move |d| (w, *d)))
        .filter(|(_, d)| wanted(args.train, *d))
        .map(|(w, d)| w.case(d, args.half))
        .collect()
}

fn measure_all(
    ctx: Context,
    subjects: &[Subject],
    effort: Effort,
    stop: &StopFlag,
    measured: &mut Vec<Measured>,
) -> Result<()> {
    let mut go_on = || if stop.is_set() { Err(Error::Interrupted) } else { Ok(()) };
    let bar = bar(subjects.len() as u64, "measuring");
    for subject in subjects {
        let name = format!("{} of {}", subject.choice.op, shape_name(&subject.choice.shape));
        bar.set_message(name.clone());
        let outcome = subject
            .bytes(&ctx.gpu.caps)
            .and_then(|bytes| ctx.gpu.check_room(bytes))
            .and_then(|()| subject.measure(ctx, effort, &mut go_on));
        match outcome {
            Ok(found) => measured.extend(found),
            // The next one may fit.
            Err(Error::Memory(detail)) => bar.suspend(|| note!("{name} left out: {detail}")),
            Err(e) => {
                bar.finish_and_clear();
                return Err(e);
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    Ok(())
}

/// Adds what was measured to what is kept by now, perhaps by another run.
fn keep(path: &Path, key: DeviceKey, measured: &[Measured]) -> Result<()> {
    // What cannot be read is written anew.
    let known = TuningFile::read(path, &key).ok().flatten();
    let mut tuning = known.map_or_else(Tuning::default, |file| file.tuning);
    for m in measured {
        tuning.set(m.choice.op, &m.choice.shape, m.choice.candidates[m.winner]);
    }
    TuningFile::new(key, tuning).write(path)
}

fn print_table(measured: &[Measured]) {
    let wide = |name: fn(&Measured) -> String, head: &str| {
        measured.iter().map(|m| name(m).len()).max().unwrap_or(0).max(head.len())
    };
    let shape = |m: &Measured| shape_name(&m.choice.shape);
    let (ops, shapes) = (wide(|m| m.choice.op.into(), "kernel"), wide(shape, "shape"));
    say!(
        "{:<ops$}  {:<shapes$}  {:>9}  {:>9}  {:>10}  {:>10}  {:>7}",
        "kernel",
        "shape",
        "rule",
        "winner",
        "rule ms",
        "winner ms",
        "ratio"
    );
    let [mut by_rule, mut tuned] = [0.0; 2];
    for m in measured {
        let c = &m.choice;
        let ms = |i: usize| m.ms[i].unwrap_or(f64::NAN);
        let (rule, best) = (ms(c.rule), ms(m.winner));
        by_rule += rule * c.times as f64;
        tuned += best * c.times as f64;
        let (op, shape) = (c.op, shape(m));
        let (old, new) = (c.candidates[c.rule], c.candidates[m.winner]);
        let ratio = rule / best;
        say!(
            "{op:<ops$}  {shape:<shapes$}  {old:>9}  {new:>9}  {rule:>10.4}  {best:>10.4}  {ratio:>7.3}"
        );
    }
    let changed = measured.iter().filter(|m| m.winner != m.choice.rule).count();
    say!(
        "{changed} of {} shapes have something faster than their rule; in all {by_rule:.3} ms \
         by the rules, {tuned:.3} ms tuned",
        measured.len()
    );
}

fn print_kept(path: &Path, key: &DeviceKey) -> Result<()> {
    let Some(file) = TuningFile::read(path, key)? else {
        say!("{}: nothing is kept for this device and version", path.display());
        return Ok(());
    };
    let commit = file.commit.map_or(String::new(), |c| format!(", commit {c}"));
    say!("{}: demist {}{commit}, {}", path.display(), file.version, file.date);
    for (op, shape, name) in file.tuning.iter() {
        say!("    {op} of {shape}: {name}");
    }
    Ok(())
}
