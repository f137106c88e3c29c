//! `demist bench`: how fast the kernels and whole networks are on a device, beside
//! what the device can do at best.

use super::shared::{DeviceArgs, bar, effort, print_choices};
use demist::engine::bench::{
    Case, CaseResult, Ceilings, Comparison, Effort, Report, Variant, WORKLOADS, Workload, compare,
    run_case,
};
use demist::engine::caps::Caps;
use demist::engine::graph::{Choice, shape_name};
use demist::engine::runtime::Context;
use demist::output::bars::{Bar, bar_chart};
use demist::{Error, Result};
use std::path::{Path, PathBuf};

/// Arguments of `bench`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only these workloads ("W1,W5"); without it all, on a software driver
    /// without the large ones.
    #[arg(long, value_delimiter = ',', value_name = "W1,..")]
    workload: Vec<String>,
    /// Only workloads of this op: conv2d, group_norm, attention or unet.
    #[arg(long)]
    op: Option<String>,
    /// Force a variant: "conv2d=tile8x8", or "tile8x8" for whatever has one.
    #[arg(long, conflicts_with = "all_variants")]
    variant: Option<String>,
    /// Also measure every other candidate of each choice, one after the other.
    #[arg(long)]
    all_variants: bool,
    /// Store activations and convolution weights in half precision.
    #[arg(long)]
    half: bool,
    /// About how long to measure each case, beside compiling it.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    seconds: f64,
    /// Count the time that threads ran instead of elapsed time, for software
    /// drivers on a busy machine (Linux only).
    #[arg(long)]
    cpu: bool,
    /// Say which variant was taken for which shape, and why.
    #[arg(long)]
    explain: bool,
    /// Write a report.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Draw a bar chart.
    #[arg(long, value_name = "FILE.png")]
    chart: Option<PathBuf>,
    /// Compare two reports instead of measuring.
    #[arg(long, num_args = 2, value_names = ["A.json", "B.json"], exclusive = true)]
    compare: Vec<PathBuf>,
}

/// Measures and prints, or compares.
pub fn run(device: &DeviceArgs, args: &Args) -> Result<()> {
    if let [a, b] = &args.compare[..] {
        return print_comparison(a, b);
    }
    let effort = effort(args.seconds, args.cpu, "case")?;
    let workloads = args.workloads()?;
    let opened = device.open_for_measuring()?;
    let (gpu, ctx) = (opened.gpu(), opened.context());
    let jobs = args.jobs(&workloads, &gpu.caps)?;
    let progress = bar(jobs.len() as u64, "measuring");
    progress.set_message("the device's ceilings");
    progress.tick();
    let ceilings = Ceilings::measure(ctx, effort)?;
    print_ceilings(&ceilings);
    let mut report = Report {
        tuned: gpu.caps.tuning.is_some(),
        ..Report::new(&gpu.summary, effort.time, ceilings)
    };
    let wide = jobs.iter().map(|j| j.name().len()).max().unwrap_or(0);
    say!("{}", header(wide));
    for job in &jobs {
        progress.set_message(job.name());
        let outcome = job.run(ctx, &ceilings, effort);
        progress.inc(1);
        progress.suspend(|| match outcome {
            Ok((result, choices)) => {
                say!("{}", row(wide, &result));
                print_shares(&result);
                if args.explain {
                    print_choices(&choices);
                }
                report.cases.push(result);
                Ok(())
            }
            // The next one may fit.
            Err(Error::Memory(detail)) => {
                note!("{} left out: {detail}", job.name());
                Ok(())
            }
            Err(e) => Err(e),
        })?;
    }
    progress.finish_and_clear();
    if let Some(path) = &args.json {
        report.write(path)?;
        say!("wrote {}", path.display());
    }
    if let Some(path) = &args.chart {
        draw(path, &report)?;
        say!("wrote {}", path.display());
    }
    Ok(())
}

/// One case to measure.
struct Job {
    workload: &'static Workload,
    case: std::rc::Rc<Case>,
    variant: Variant,
}

impl Job {
    fn name(&self) -> String {
        let Case { op, direction, half, .. } = &*self.case;
        let half = if *half { " in half" } else { "" };
        let variant = match self.variant.name().as_str() {
            "default" => String::new(),
            forced => format!(" {forced}"),
        };
        format!("{} {op} {direction}{half}{variant}", self.workload.id)
    }

    fn run(
        &self,
        ctx: Context,
        ceilings: &Ceilings,
        effort: Effort,
    ) -> Result<(CaseResult, Vec<Choice>)> {
        let plan = self.variant.plan(&self.case, &ctx.gpu.caps)?.plan;
        ctx.gpu.check_room(self.case.bytes(&plan))?;
        let result = run_case(ctx, self.workload, &self.case, &self.variant, ceilings, effort)?;
        Ok((result, plan.choices))
    }
}

impl Args {
    /// Those that are named, or all.
    fn workloads(&self) -> Result<Vec<&'static Workload>> {
        let list = |key: fn(&Workload) -> &'static str| {
            let mut names: Vec<&str> = WORKLOADS.iter().map(key).collect();
            names.dedup();
            names.join(", ")
        };
        for name in &self.workload {
            if !WORKLOADS.iter().any(|w| w.id.eq_ignore_ascii_case(name)) {
                let all = list(|w| w.id);
                return Err(Error::Config(format!("no workload {name}; there are {all}")));
            }
        }
        if let Some(op) = self.op.as_ref().filter(|op| !WORKLOADS.iter().any(|w| w.op == **op)) {
            let all = list(|w| w.op);
            return Err(Error::Config(format!("no workload of the op {op}; there are {all}")));
        }
        let named = |w: &&Workload| {
            (self.workload.is_empty()
                || self.workload.iter().any(|name| w.id.eq_ignore_ascii_case(name)))
                && self.op.as_ref().is_none_or(|op| w.op == *op)
        };
        let found: Vec<_> = WORKLOADS.iter().filter(named).collect();
        if found.is_empty() {
            return Err(Error::Config("none of these workloads is of that op".into()));
        }
        Ok(found)
    }

    /// The cases with their variants. A variant that one case does not have is
    /// looked for in the others.
    fn jobs(&self, workloads: &[&'static Workload], caps: &Caps) -> Result<Vec<Job>> {
        let mut jobs = Vec::new();
        let mut refused = None;
        for workload in workloads {
            if workload.heavy && caps.software && self.workload.is_empty() {
                continue;
            }
            for direction in workload.directions {
                let case = std::rc::Rc::new(workload.case(*direction, self.half)?);
                let plan = case.plan(caps, &[])?.plan;
                let variants = match &self.variant {
                    Some(text) => match Variant::parse(text, &plan) {
                        Ok(v) => vec![v],
                        Err(e) => {
                            refused = Some(e);
                            continue;
                        }
                    },
                    None if self.all_variants => {
                        [vec![Variant::default()], Variant::others(&plan)].concat()
                    }
                    None => vec![Variant::default()],
                };
                let job = |variant| Job { workload, case: case.clone(), variant };
                jobs.extend(variants.into_iter().map(job));
            }
        }
        match refused {
            Some(e) if jobs.is_empty() => Err(e),
            _ => Ok(jobs),
        }
    }
}

fn print_ceilings(c: &Ceilings) {
    let half = c.fma_f16_gflops.map_or(String::new(), |g| format!(" ({g:.1} in half)"));
    let coop = c.coop_gflops.map_or(String::new(), |g| format!(", {g:.1} on matrices"));
    say!(
        "ceilings    {:.1} GFLOP/s of multiply-adds{half}{coop}, {:.2} GB/s copying",
        c.fma_gflops,
        c.copy_gbs
    );
    say!(
        "            {:.2} G loads/s from a cache, {:.2} from workgroup memory, {:.1} us a launch",
        c.storage_gloads,
        c.workgroup_gloads,
        c.dispatch_us
    );
}

fn header(wide: usize) -> String {
    format!(
        "{:<wide$}  {:>14}  {:>10}  {:>10}  {:>8}  {:>7}  {:>21}  {:>8}",
        "workload", "input", "median ms", "min ms", "GFLOP/s", "GB/s", "of the ceiling", "launches"
    )
}

fn row(wide: usize, r: &CaseResult) -> String {
    let beside = r.standing.map_or(String::new(), |s| {
        let ceiling = format!("{:.1} % {}", s.percent, s.bound_by);
        format!("  {:>7.2}  {ceiling:>21}  {:>8}", s.gbs, s.dispatches)
    });
    format!(
        "{:<wide$}  {:>14}  {:>10.3}  {:>10.3}  {:>8.2}{beside}",
        r.name(),
        shape_name(&r.shape),
        r.median_ms,
        r.min_ms,
        r.gflops
    )
}

fn print_shares(r: &CaseResult) {
    let part = |s: &demist::engine::bench::Share| {
        format!("{} {:.1} % ({} launches)", s.op, 100.0 * s.share, s.launches)
    };
    let parts: Vec<String> = r.shares.iter().filter(|s| s.share >= 0.005).map(part).collect();
    if !parts.is_empty() {
        say!("    {}", parts.join(", "));
    }
}

fn draw(path: &Path, report: &Report) -> Result<()> {
    let bar = |c: &CaseResult| {
        let (ms, gflops, s) = (c.median_ms, c.gflops, c.standing?);
        let percent = s.percent;
        let remark = format!("{percent:.1} % of {}: {ms:.3} ms, {gflops:.2} GFLOP/s", s.bound_by);
        Some(Bar { label: c.name(), value: percent, remark })
    };
    let bars: Vec<Bar> = report.cases.iter().filter_map(bar).collect();
    let title = format!("demist {} on {}", report.version, report.adapter);
    bar_chart(path, &title, "percent of the binding ceiling", 100.0, &bars)
}

fn print_comparison(a: &Path, b: &Path) -> Result<()> {
    let (first, second) = (Report::read(a)?, Report::read(b)?);
    for (name, path, r) in [("A", a, &first), ("B", b, &second)] {
        let commit = r.commit.as_deref().map_or(String::new(), |c| format!(", commit {c}"));
        say!(
            "{name}  {}: {} ({}){}, {:?} time, {} {}{commit}, {}",
            path.display(),
            r.adapter,
            r.driver,
            if r.tuned { ", tuned" } else { "" },
            r.time,
            r.program,
            r.version,
            r.date
        );
    }
    if first.time != second.time {
        note!("one counts elapsed, the other processor time: the ratios mean nothing");
    }
    let rows = compare(&first, &second);
    let wide = rows.iter().map(|r| r.name.len()).max().unwrap_or(0);
    say!("{:<wide$}  {:>10}  {:>10}  {:>7}", "case", "A ms", "B ms", "B / A");
    for r in &rows {
        say!("{}", comparison_row(wide, r));
    }
    Ok(())
}

fn comparison_row(wide: usize, r: &Comparison) -> String {
    let ms = |ms: Option<f64>| ms.map_or("missing".into(), |ms| format!("{ms:.3}"));
    let ratio = r.ratio().map_or("-".into(), |r| format!("{r:.3}"));
    format!("{:<wide$}  {:>10}  {:>10}  {ratio:>7}", r.name, ms(r.a_ms), ms(r.b_ms))
}
