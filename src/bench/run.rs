//! Measuring the variants of a case.

use super::report::{CaseResult, Standing, Work, bind};
use super::{Case, Ceilings, Effort, Profile, Workload, measure};
use crate::graph::{Choice, Plan, Why};
use crate::runtime::{Clock, Context};
use crate::{Error, Result};
use std::collections::BTreeSet;

/// What to force, as (choice, candidate); nothing for what the rules say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Variant(pub Vec<(String, String)>);

impl Variant {
    /// What `text` asks of a plan: "conv2d=tile8x8,attention=rows2x1", or a
    /// candidate alone ("tile8x8") for every choice that has it.
    ///
    /// # Errors
    /// [`Error::Config`] that lists the candidates if the plan has no such choice.
    pub fn parse(text: &str, plan: &Plan) -> Result<Variant> {
        let all = variants(plan);
        let known = |op: Option<&str>, name: &str| -> Vec<(String, String)> {
            let fits = |(o, n): &&(&str, &str)| *n == name && op.is_none_or(|op| op == *o);
            all.iter().filter(fits).map(|(o, n)| ((*o).into(), (*n).into())).collect()
        };
        let mut forced = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|e| !e.is_empty()) {
            let found = match entry.split_once('=') {
                Some((op, name)) => known(Some(op.trim()), name.trim()),
                None => known(None, entry),
            };
            if found.is_empty() {
                let names: Vec<String> = all.iter().map(|(o, n)| format!("{o}={n}")).collect();
                let names = if names.is_empty() { "no variants".into() } else { names.join(", ") };
                return Err(Error::Config(format!("no variant `{entry}` here; there are {names}")));
            }
            forced.extend(found);
        }
        Ok(Variant(forced))
    }

    /// Every candidate of every choice of a plan that is not what runs anyway.
    pub fn others(plan: &Plan) -> Vec<Variant> {
        let taken_everywhere = |op: &str, name: &str| {
            let taken = |c: &&Choice| c.op == op && c.times > 0;
            let mut taken = plan.choices.iter().filter(taken).peekable();
            taken.peek().is_some() && taken.all(|c| c.name() == name)
        };
        let all = variants(plan).into_iter();
        all.filter(|(op, name)| !taken_everywhere(op, name))
            .map(|(op, name)| Variant(vec![(op.into(), name.into())]))
            .collect()
    }

    /// "default", or "conv2d=tile8x8".
    pub fn name(&self) -> String {
        if self.0.is_empty() {
            return "default".into();
        }
        self.0.iter().map(|(op, name)| format!("{op}={name}")).collect::<Vec<_>>().join(",")
    }

    fn pairs(&self) -> Vec<(&str, &str)> {
        self.0.iter().map(|(op, name)| (op.as_str(), name.as_str())).collect()
    }

    /// Plans a case with it.
    ///
    /// # Errors
    /// As [`Case::plan`].
    pub fn plan(&self, case: &Case, caps: &crate::caps::Caps) -> Result<super::Planned> {
        case.plan(caps, &self.pairs())
    }
}

/// All candidates of a plan's choices, as (choice, candidate), each once.
pub fn variants(plan: &Plan) -> Vec<(&'static str, &'static str)> {
    let mut seen = BTreeSet::new();
    let all = plan.choices.iter().flat_map(|c| c.candidates.iter().map(|n| (c.op, *n)));
    all.filter(|pair| seen.insert(*pair)).collect()
}

/// What was taken, each choice once: "conv2d=tile16x8|tile8x8" where shapes differ.
fn chosen(plan: &Plan) -> String {
    let mut ops: Vec<(&str, Vec<&str>)> = Vec::new();
    for c in plan.choices.iter().filter(|c| c.times > 0) {
        match ops.iter_mut().find(|(op, _)| *op == c.op) {
            Some((_, names)) if names.contains(&c.name()) => {}
            Some((_, names)) => names.push(c.name()),
            None => ops.push((c.op, vec![c.name()])),
        }
    }
    let text = ops.iter().map(|(op, names)| format!("{op}={}", names.join("|")));
    text.collect::<Vec<_>>().join(" ")
}

/// Who decided: whoever stands above the rules, if anybody did.
fn decider(plan: &Plan) -> Why {
    let any = |why| plan.choices.iter().any(|c| c.why == why);
    [Why::Forced, Why::Tuned].into_iter().find(|w| any(*w)).unwrap_or(Why::Rule)
}

/// Compiles and measures a case. A network's time is also broken down by op, in one
/// further run.
///
/// # Errors
/// As planning, compiling and running.
pub fn run_case(
    ctx: Context,
    workload: &Workload,
    case: &Case,
    variant: &Variant,
    ceilings: &Ceilings,
    effort: Effort,
) -> Result<CaseResult> {
    let planned = variant.plan(case, &ctx.gpu.caps)?;
    let plan = &planned.plan;
    let work: Work = plan.dispatches.iter().map(Work::from).sum();
    let (chosen, chosen_by) = (chosen(plan), decider(plan));
    let prepared = case.prepare(ctx, planned)?;
    let timing = measure(ctx.gpu, effort, || prepared.run(ctx.gpu).map(drop))?;
    let mut shares = Vec::new();
    if workload.is_network() {
        let spans = prepared.program.run_timed(ctx.gpu, Clock::of(ctx.gpu))?;
        shares = Profile::of(&prepared.program, &spans).shares();
    }
    let bound = bind(work, ceilings);
    let per_ms = |amount: u64| amount as f64 / 1e6 / timing.median_ms;
    Ok(CaseResult {
        workload: workload.id.into(),
        op: case.op.into(),
        direction: case.direction,
        half: case.half,
        variant: variant.name(),
        chosen,
        chosen_by,
        shape: case.shape.clone(),
        median_ms: timing.median_ms,
        min_ms: timing.min_ms,
        rounds: timing.rounds,
        gflop: work.flops as f64 / 1e9,
        gflops: per_ms(work.flops),
        standing: Some(Standing {
            gbs: per_ms(work.bytes),
            percent: 100.0 * bound.ms / timing.median_ms,
            bound_by: bound.limit,
            dispatches: work.dispatches,
        }),
        shares,
    })
}
