//! What was measured, as a table's rows and as JSON, and how two reports differ.
//! Reports of other systems (`benches/compare`) have the same form, without what only
//! this program knows of a run.

use super::{Ceilings, Direction, TimeKind};
use crate::files::atomic;
use crate::files::stamp::{commit, now};
use crate::gpu::AdapterSummary;
use crate::graph::{Cost, Dispatch, Why};
use crate::{Error, Result};
use serde::{Deserialize, Serialize};
use std::path::Path;

/// A ceiling that a program can hang under.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Multiply-adds.
    Arithmetic,
    /// Bytes to and from memory.
    Memory,
    /// Launches.
    Launches,
}

impl std::fmt::Display for Limit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Limit::Arithmetic => "arithmetic",
            Limit::Memory => "memory",
            Limit::Launches => "launches",
        })
    }
}

/// What a program has to do at least.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Work {
    /// Floating-point operations, of convolutions as the direct algorithm has them.
    pub flops: u64,
    /// Those of them that are done on cooperative matrices.
    pub coop_flops: u64,
    /// Bytes of all that is bound, touched once a launch.
    pub bytes: u64,
    /// Launches.
    pub dispatches: usize,
}

impl From<&Dispatch> for Work {
    fn from(d: &Dispatch) -> Self {
        let coop = d.kernel.define(&d.defines, "COOP") != 0;
        let Cost { flops, bytes } = d.cost;
        Work { flops, coop_flops: if coop { flops } else { 0 }, bytes, dispatches: 1 }
    }
}

impl std::iter::Sum for Work {
    fn sum<I: Iterator<Item = Work>>(parts: I) -> Work {
        parts.fold(Work::default(), |a, b| Work {
            flops: a.flops + b.flops,
            coop_flops: a.coop_flops + b.coop_flops,
            bytes: a.bytes + b.bytes,
            dispatches: a.dispatches + b.dispatches,
        })
    }
}

/// The ceiling that allows least.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bound {
    /// Which it is.
    pub limit: Limit,
    /// How long the work takes under it, in milliseconds.
    pub ms: f64,
}

/// The binding ceiling: each alone gives a time below which no run can be, and the
/// longest of them binds.
pub fn bind(work: Work, ceilings: &Ceilings) -> Bound {
    let coop_gflops = ceilings.coop_gflops.unwrap_or(ceilings.fma_gflops);
    let arithmetic = (work.flops - work.coop_flops) as f64 / ceilings.fma_gflops
        + work.coop_flops as f64 / coop_gflops;
    let bounds = [
        (Limit::Arithmetic, arithmetic / 1e6),
        (Limit::Memory, work.bytes as f64 / (ceilings.copy_gbs * 1e6)),
        (Limit::Launches, work.dispatches as f64 * ceilings.dispatch_us / 1e3),
    ];
    let [first, rest @ ..] = bounds.map(|(limit, ms)| Bound { limit, ms });
    rest.into_iter().fold(first, |most, b| if b.ms > most.ms { b } else { most })
}

/// The part of a network's time that one op takes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Share {
    /// The op, with ".backward" where that is it.
    pub op: String,
    /// Its launches.
    pub launches: usize,
    /// Milliseconds, all launches alone.
    pub ms: f64,
    /// Of the sum of all ops, from 0 to 1.
    pub share: f64,
}

/// How a case stands beside the ceilings.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    /// Bytes bound by the median time, in GB/s.
    pub gbs: f64,
    /// The ceiling's time as percent of the median.
    pub percent: f64,
    /// Which ceiling that is.
    pub bound_by: Limit,
    /// Launches.
    pub dispatches: usize,
}

/// One measured case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseResult {
    /// "W1" to "W9".
    pub workload: String,
    /// "conv2d", "unet", ..
    pub op: String,
    /// What of it ran.
    pub direction: Direction,
    /// Whether activations were stored as half.
    pub half: bool,
    /// "default", or what was forced: "conv2d=tile8x8".
    pub variant: String,
    /// What ran in the end, each choice once: "conv2d=tile16x8 conv2d_dx=..".
    pub chosen: String,
    /// Who decided that; `Forced` if anything was.
    pub chosen_by: Why,
    /// Shape of the input.
    pub shape: Vec<usize>,
    /// Median over the rounds, in milliseconds.
    pub median_ms: f64,
    /// Least of the rounds, in milliseconds.
    pub min_ms: f64,
    /// Rounds.
    pub rounds: usize,
    /// Work, in thousand million floating-point operations.
    pub gflop: f64,
    /// Work by the median time.
    pub gflops: f64,
    /// Beside the device's ceilings; `None` in reports of other systems.
    #[serde(flatten, default)]
    pub standing: Option<Standing>,
    /// A network's time by op, longest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shares: Vec<Share>,
}

impl CaseResult {
    /// What a case is called in tables, charts and comparisons.
    pub fn name(&self) -> String {
        let half = if self.half { " in half" } else { "" };
        let variant = match self.variant.as_str() {
            "default" => String::new(),
            forced => format!(" {forced}"),
        };
        format!("{} {} {}{half}{variant}", self.workload, self.op, self.direction)
    }
}

/// Everything of one measuring.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// What was measured: "demist", or "PyTorch" where another system ran the workloads.
    #[serde(default = "own_name")]
    pub program: String,
    /// Version of the program.
    pub version: String,
    /// The commit that it was built from, if the build was told.
    pub commit: Option<String>,
    /// When, in UTC: "2026-01-31T12:00:00Z".
    pub date: String,
    /// The adapter's name.
    pub adapter: String,
    /// The driver and its version.
    pub driver: String,
    /// "vulkan", "metal", ..
    pub backend: String,
    /// Whether variants were taken as the device is tuned.
    #[serde(default)]
    pub tuned: bool,
    /// What counted as time.
    pub time: TimeKind,
    /// What the device can do at best; `None` in reports of other systems.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<Ceilings>,
    /// The cases.
    pub cases: Vec<CaseResult>,
}

fn own_name() -> String {
    env!("CARGO_PKG_NAME").into()
}

impl Report {
    /// A report of this program on a device that is not tuned, without cases yet.
    pub fn new(device: &AdapterSummary, time: TimeKind, ceilings: Ceilings) -> Report {
        Report {
            program: own_name(),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: commit().map(str::to_owned),
            date: now(),
            adapter: device.name.clone(),
            driver: device.driver.clone(),
            backend: device.backend.clone(),
            tuned: false,
            time,
            ceilings: Some(ceilings),
            cases: Vec::new(),
        }
    }

    /// Reads a report.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be read, [`Error::File`] if it is none.
    pub fn read(path: &Path) -> Result<Report> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io("read", path, e))?;
        serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is no report of `demist bench`: {e}")))
    }

    /// Writes it as JSON.
    ///
    /// # Errors
    /// [`Error::Io`] if it cannot be written.
    pub fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::file(path, format!("cannot be put into JSON: {e}")))?;
        atomic::write(path, text.as_bytes())
    }
}

/// A case of two reports.
#[derive(Debug, Clone, PartialEq)]
pub struct Comparison {
    /// The case.
    pub name: String,
    /// Median in the first report, in milliseconds.
    pub a_ms: Option<f64>,
    /// Median in the second.
    pub b_ms: Option<f64>,
}

impl Comparison {
    /// The second time by the first: below 1 is faster. `None` if either is missing.
    pub fn ratio(&self) -> Option<f64> {
        Some(self.b_ms? / self.a_ms?)
    }
}

/// The cases of both reports in the order of the first, then what only the second
/// has.
pub fn compare(a: &Report, b: &Report) -> Vec<Comparison> {
    let find =
        |r: &Report, name: &str| r.cases.iter().find(|c| c.name() == name).map(|c| c.median_ms);
    let mut names: Vec<String> = a.cases.iter().map(CaseResult::name).collect();
    let only_b = b.cases.iter().map(CaseResult::name).filter(|n| find(a, n).is_none());
    names.extend(only_b);
    let row = |name: String| Comparison { a_ms: find(a, &name), b_ms: find(b, &name), name };
    names.into_iter().map(row).collect()
}
