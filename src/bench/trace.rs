//! Where the time of a program goes: its launches added up by op, kernel and layer,
//! and as a trace that a browser shows (`chrome://tracing`, Perfetto).

use super::report::{Share, Work};
use crate::files::atomic;
use crate::graph::{Dispatch, Plan};
use crate::runtime::{Program, Span};
use crate::{Error, Result};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::Path;

/// A dispatch's label in its two parts: layer ("input_blocks.1.0") and op
/// ("conv2d", "conv2d.backward").
pub fn split_label(label: &str) -> (&str, &str) {
    label.rsplit_once(':').unwrap_or(("", label))
}

/// One launch and its time.
#[derive(Debug, Clone, PartialEq)]
struct Launch {
    kernel: &'static str,
    label: String,
    groups: u64,
    work: Work,
    span: Span,
}

/// Times of all launches of a run.
#[derive(Debug, Clone, Default)]
pub struct Profile {
    launches: Vec<Launch>,
}

/// What some launches took together.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    /// What they have in common.
    pub name: String,
    /// How many they are.
    pub launches: usize,
    /// Milliseconds.
    pub ms: f64,
    /// Of the whole, from 0 to 1.
    pub share: f64,
    /// GFLOP/s.
    pub gflops: f64,
    /// Their work, to be held against ceilings.
    pub work: Work,
}

impl Profile {
    /// Puts the launches of `program` and their times together.
    pub fn of(program: &Program, spans: &[Span]) -> Profile {
        Self::of_plan(program.plan(), spans)
    }

    /// As [`Profile::of`], of a plan.
    pub fn of_plan(plan: &Plan, spans: &[Span]) -> Profile {
        let launch = |(d, span): (&Dispatch, &Span)| Launch {
            kernel: d.kernel.name,
            label: d.label.clone(),
            groups: d.groups,
            work: d.into(),
            span: *span,
        };
        Profile { launches: plan.dispatches.iter().zip(spans).map(launch).collect() }
    }

    /// Appends a run that followed.
    pub fn append(&mut self, other: Profile) {
        let end = self.launches.last().map_or(0, |l| l.span.start + l.span.nanos);
        self.launches.extend(other.launches.into_iter().map(|mut l| {
            l.span.start += end;
            l
        }));
    }

    /// Number of launches.
    pub fn len(&self) -> usize {
        self.launches.len()
    }

    /// True without launches.
    pub fn is_empty(&self) -> bool {
        self.launches.is_empty()
    }

    /// Milliseconds of all launches.
    pub fn ms(&self) -> f64 {
        self.launches.iter().map(|l| l.span.nanos).sum::<u64>() as f64 / 1e6
    }

    fn rows(&self, key: impl Fn(&Launch) -> String) -> Vec<Row> {
        let mut sums: BTreeMap<String, (u64, Work)> = BTreeMap::new();
        for l in &self.launches {
            let (nanos, work) = sums.entry(key(l)).or_default();
            *nanos += l.span.nanos;
            *work = [*work, l.work].into_iter().sum();
        }
        let total = self.ms().max(f64::MIN_POSITIVE);
        let row = |(name, (nanos, work)): (String, (u64, Work))| {
            let ms = nanos as f64 / 1e6;
            let gflops = if nanos == 0 { 0.0 } else { work.flops as f64 / nanos as f64 };
            Row { name, launches: work.dispatches, ms, share: ms / total, gflops, work }
        };
        let mut rows: Vec<Row> = sums.into_iter().map(row).collect();
        rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
        rows
    }

    /// By op, the backward walk apart; longest first.
    pub fn by_op(&self) -> Vec<Row> {
        self.rows(|l| split_label(&l.label).1.into())
    }

    /// By kernel; longest first.
    pub fn by_kernel(&self) -> Vec<Row> {
        self.rows(|l| l.kernel.into())
    }

    /// By layer; longest first.
    pub fn by_layer(&self) -> Vec<Row> {
        self.rows(|l| match split_label(&l.label).0 {
            "" => "(no layer)".into(),
            layer => layer.into(),
        })
    }

    /// The shares of the ops, for a report.
    pub fn shares(&self) -> Vec<Share> {
        let share = |r: Row| Share { op: r.name, launches: r.launches, ms: r.ms, share: r.share };
        self.by_op().into_iter().map(share).collect()
    }
}

/// A complete event of the trace format; times are microseconds.
#[derive(Serialize)]
struct Event<'a> {
    name: &'a str,
    cat: &'a str,
    ph: &'static str,
    ts: f64,
    dur: f64,
    pid: u32,
    tid: u32,
    args: serde_json::Value,
}

/// Writes `profile` in the trace-event format, one row of launches and one of the
/// layers that they belong to.
///
/// # Errors
/// [`Error::Io`] if `path` cannot be written.
pub fn chrome_trace(path: &Path, title: &str, profile: &Profile) -> Result<()> {
    let micros = |nanos: u64| nanos as f64 / 1e3;
    let mut events = Vec::new();
    let mut layers: Vec<(&str, u64, u64)> = Vec::new();
    for l in &profile.launches {
        let (layer, op) = split_label(&l.label);
        let end = l.span.start + l.span.nanos;
        events.push(Event {
            name: l.kernel,
            cat: op,
            ph: "X",
            ts: micros(l.span.start),
            dur: micros(l.span.nanos),
            pid: 1,
            tid: 2,
            args: serde_json::json!({
                "layer": layer, "op": op, "workgroups": l.groups, "gflop": l.work.flops as f64 / 1e9,
            }),
        });
        match layers.last_mut() {
            Some(last) if last.0 == layer => last.2 = last.2.max(end),
            _ => layers.push((layer, l.span.start, end)),
        }
    }
    for (layer, start, end) in layers.into_iter().filter(|l| !l.0.is_empty()) {
        events.push(Event {
            name: layer,
            cat: "layer",
            ph: "X",
            ts: micros(start),
            dur: micros(end - start),
            pid: 1,
            tid: 1,
            args: serde_json::json!({}),
        });
    }
    let name = |what: &str, tid: u32, name: &str| serde_json::json!({"name": what, "ph": "M", "pid": 1, "tid": tid, "args": {"name": name}});
    let mut all = vec![
        name("process_name", 1, title),
        name("thread_name", 1, "layers"),
        name("thread_name", 2, "launches"),
    ];
    let failed = |e: serde_json::Error| Error::file(path, format!("cannot be put into JSON: {e}"));
    for event in &events {
        all.push(serde_json::to_value(event).map_err(failed)?);
    }
    let trace = serde_json::json!({"displayTimeUnit": "ms", "traceEvents": all});
    atomic::write(path, trace.to_string().as_bytes())
}
