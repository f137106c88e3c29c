//! Which of an op's variants is fastest: every shape that a network has to choose
//! for is taken out of it, as a plan of that one op, and its candidates are run in turn.
//!
//! What counts are the launches in which the candidates' plans differ. Where the
//! device tells the time, it is the time between its own timestamps.

use super::measure::ROUNDS;
use super::{Case, Direction, Effort, Planned, TimeKind, Watch};
use crate::caps::Caps;
use crate::gpu::Gpu;
use crate::graph::{Choice, Dispatch, Plan};
use crate::runtime::{Clock, CompileOptions, Context, FlatBuffers, Program, Span};
use crate::{Error, Result};
use std::collections::HashMap;
use std::time::Instant;

/// A rule is given up for what is faster by this factor, since less is within what
/// measurements differ by.
pub const WORTHWHILE: f64 = 1.03;

/// A candidate's launches are repeated in one submit until they last about this long.
const SUBMIT_MS: f64 = 5.0;

/// At most so often.
const MOST_REPEATS: usize = 100;

/// A shape that several variants of a kernel can run.
pub struct Subject {
    /// What is to be chosen; by the rule so far.
    pub choice: Choice,
    /// The op alone.
    case: Case,
}

/// Choices that take two nodes: a convolution applies the norm before it, or leaves moments
/// for the one after it.
const OF_TWO_NODES: [&str; 2] = ["norm_conv", "conv_moments"];

/// Whether a choice can be measured on the node that made it.
fn measurable(choice: &Choice) -> bool {
    choice.times > 0 && choice.candidates.len() > 1 && !OF_TWO_NODES.contains(&choice.op)
}

/// The times of a subject's candidates.
#[derive(Debug, Clone, PartialEq)]
pub struct Measured {
    /// What was to be chosen.
    pub choice: Choice,
    /// Milliseconds of each candidate: the median over the rounds. `None` where the
    /// driver refused the kernel.
    pub ms: Vec<Option<f64>>,
    /// The fastest, or the rule if that is about as fast.
    pub winner: usize,
}

/// What there is to tune in some cases: each shape of each choice once, where it
/// occurs most often.
///
/// # Errors
/// As [`Case::plan`].
pub fn subjects(cases: &[Case], caps: &Caps) -> Result<Vec<Subject>> {
    let caps = untuned(caps);
    let mut found: Vec<(Choice, usize)> = Vec::new();
    for (i, case) in cases.iter().enumerate() {
        let choices = case.plan(&caps, &[])?.plan.choices;
        for choice in choices.into_iter().filter(measurable) {
            let same =
                |(c, _): &&mut (Choice, usize)| (c.op, &c.shape) == (choice.op, &choice.shape);
            match found.iter_mut().find(same) {
                Some(known) if known.0.times < choice.times => *known = (choice, i),
                Some(_) => {}
                None => found.push((choice, i)),
            }
        }
    }
    let subject = |(choice, i): (Choice, usize)| Subject::new(&cases[i], choice, &caps);
    found.into_iter().map(subject).collect()
}

/// Candidates are compared with the rule, not with what was tuned before.
fn untuned(caps: &Caps) -> Caps {
    Caps { tuning: None, ..caps.clone() }
}

impl Subject {
    fn new(whole: &Case, choice: Choice, caps: &Caps) -> Result<Subject> {
        let forward = whole.node(choice.node, Direction::Forward);
        let asks = |c: &Choice| (c.op, &c.shape) == (choice.op, &choice.shape);
        let case = match forward.plan(caps, &[])?.plan.choices.iter().any(asks) {
            true => forward,
            false => whole.node(choice.node, Direction::Backward),
        };
        Ok(Subject { choice, case })
    }

    /// Bytes that measuring needs on a device.
    ///
    /// # Errors
    /// As [`Case::plan`].
    pub fn bytes(&self, caps: &Caps) -> Result<u64> {
        let plan = self.case.plan(&untuned(caps), &[])?.plan;
        Ok(self.case.bytes(&plan).saturating_mul(self.choice.candidates.len() as u64))
    }

    /// Times all candidates in turn, within about the budget of `effort`. `go_on` is
    /// asked between runs and ends it by an error. `None` if the candidates do not differ
    /// in what they launch.
    ///
    /// # Errors
    /// As planning, compiling and running, and what `go_on` says.
    pub fn measure(
        &self,
        ctx: Context,
        effort: Effort,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Option<Measured>> {
        let Some(plans) = self.plans(&untuned(&ctx.gpu.caps))? else { return Ok(None) };
        let all: Vec<Dispatch> = plans.iter().flat_map(|p| p.dispatches.clone()).collect();
        match ctx.pipelines.make_ready(ctx.gpu, &all) {
            // Which one it was shows below.
            Ok(()) | Err(Error::Kernel { .. }) => {}
            Err(e) => return Err(e),
        }
        let flat = self.case.weights(ctx.gpu, &plans[0])?;
        let runs = self.compile(ctx, plans, &flat, effort.time, go_on)?;
        let ms = medians(ctx.gpu, &runs, effort, go_on)?;
        let winner = winner(&ms, self.choice.rule);
        Ok(Some(Measured { choice: self.choice.clone(), ms, winner }))
    }

    /// A plan for each candidate of the launches that not all have in common.
    fn plans(&self, caps: &Caps) -> Result<Option<Vec<Plan>>> {
        let plan = |name: &&'static str| {
            self.case.plan(caps, &[(self.choice.op, name)]).map(|Planned { plan, .. }| plan)
        };
        let mut plans = self.choice.candidates.iter().map(plan).collect::<Result<Vec<Plan>>>()?;
        let counts: Vec<_> = plans.iter().map(|p| count(&p.dispatches)).collect();
        for plan in &mut plans {
            let mut common = counts[0].clone();
            for (launch, n) in &mut common {
                let in_all = counts.iter().map(|c| c.get(launch).copied().unwrap_or(0)).min();
                *n = in_all.unwrap_or(0);
            }
            plan.dispatches.retain(|d| match common.get_mut(&Launched::of(d)) {
                Some(n) if *n > 0 => {
                    *n -= 1;
                    false
                }
                _ => true,
            });
            drop_slots(plan);
        }
        Ok(plans.iter().any(|p| !p.dispatches.is_empty()).then_some(plans))
    }

    /// The candidates, ready to run; all of them on the same operands.
    fn compile(
        &self,
        ctx: Context,
        plans: Vec<Plan>,
        flat: &FlatBuffers,
        time: TimeKind,
        go_on: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Vec<Option<Run>>> {
        let mut bound = Vec::new();
        let mut runs = Vec::new();
        for (i, plan) in plans.into_iter().enumerate() {
            go_on()?;
            let options = CompileOptions { bound: &bound, ..Default::default() };
            let program = match Program::compile(ctx, plan.clone(), flat, options) {
                Ok(program) => program,
                Err(Error::Kernel { .. }) if i != self.choice.rule => {
                    runs.push(None);
                    continue;
                }
                Err(e) => return Err(e),
            };
            if bound.is_empty() {
                self.case.feed_all(ctx.gpu, &program)?;
                let pinned = |id| Some((id, program.pinned(id).ok()?));
                bound = self.case.inputs().filter_map(pinned).collect();
            }
            runs.push(Some(Run::new(ctx, program, plan, flat, time)?));
        }
        Ok(runs)
    }
}

/// What tells launches apart, their operands left aside.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Launched {
    kernel: &'static str,
    defines: Vec<i64>,
    params: Vec<u8>,
    groups: u64,
}

impl Launched {
    fn of(d: &Dispatch) -> Launched {
        let (defines, params) = (d.defines.clone(), d.params.clone());
        Launched { kernel: d.kernel.name, defines, params, groups: d.groups }
    }
}

fn count(dispatches: &[Dispatch]) -> HashMap<Launched, usize> {
    let mut counts = HashMap::new();
    dispatches.iter().for_each(|d| *counts.entry(Launched::of(d)).or_default() += 1);
    counts
}

/// Takes the memory from slots that no launch is left for.
fn drop_slots(plan: &mut Plan) {
    let used = plan.dispatches.iter().flat_map(|d| &d.bindings);
    let used: Vec<usize> = used.filter_map(|b| plan.slots.of.get(&b.1).map(|p| p.slot)).collect();
    for (slot, bytes) in plan.slots.sizes.iter_mut().enumerate() {
        if !used.contains(&slot) {
            *bytes = 16;
        }
    }
}

/// A candidate's launches, several times over.
struct Run {
    program: Program,
    repeats: usize,
    time: TimeKind,
}

impl Run {
    /// Runs `once`, which `plan` describes, and decides how often a submit repeats it.
    fn new(
        ctx: Context,
        once: Program,
        plan: Plan,
        flat: &FlatBuffers,
        time: TimeKind,
    ) -> Result<Run> {
        let launches = plan.dispatches.len();
        let run = Run { program: once, repeats: 1, time };
        if launches == 0 {
            return Ok(run);
        }
        let cold = run.ms(ctx.gpu)?;
        // What takes a second is not repeated for the sake of precision.
        let warm = if cold > 1000.0 { cold } else { run.ms(ctx.gpu)? };
        let repeats = ((SUBMIT_MS / warm.max(1e-6)) as usize).clamp(1, MOST_REPEATS);
        if repeats == 1 {
            return Ok(run);
        }
        let dispatches = vec![plan.dispatches; repeats].concat();
        let repeated = Plan { dispatches, ..plan };
        let options = CompileOptions { share: Some(&run.program), ..Default::default() };
        let program = Program::compile(ctx, repeated, flat, options)?;
        Ok(Run { program, repeats, time })
    }

    /// Milliseconds of the launches, once.
    fn ms(&self, gpu: &Gpu) -> Result<f64> {
        let launches = self.program.plan().dispatches.len() / self.repeats;
        if launches == 0 {
            return Ok(0.0);
        }
        match Clock::of(gpu) {
            clock @ (Clock::BetweenDispatches | Clock::AroundPasses)
                if self.time == TimeKind::Elapsed =>
            {
                let spans = self.program.run_timed(gpu, clock)?;
                let sum = |once: &[Span]| once.iter().map(|s| s.nanos).sum::<u64>() as f64 / 1e6;
                Ok(median(spans.chunks(launches).map(sum).collect()))
            }
            _ => {
                let watch = Watch::start(self.time);
                self.program.run(gpu)?;
                gpu.wait()?;
                Ok(watch.elapsed().as_secs_f64() * 1e3 / self.repeats as f64)
            }
        }
    }
}

/// Runs the candidates in turn, each round beginning with another one, and returns the
/// middle of each one's times.
fn medians(
    gpu: &Gpu,
    runs: &[Option<Run>],
    effort: Effort,
    go_on: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Option<f64>>> {
    let mut times = vec![Vec::new(); runs.len()];
    let begun = Instant::now();
    for round in 0..*ROUNDS.end() {
        let spent = begun.elapsed();
        let enough = round >= *ROUNDS.start() || spent > 3 * effort.budget;
        if round > 0 && spent > effort.budget && enough {
            break;
        }
        for at in (0..runs.len()).map(|i| (round + i) % runs.len()) {
            go_on()?;
            if let Some(run) = &runs[at] {
                times[at].push(run.ms(gpu)?);
            }
        }
    }
    Ok(times.into_iter().map(|t| (!t.is_empty()).then(|| median(t))).collect())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let n = values.len();
    (values[(n - 1) / 2] + values[n / 2]) / 2.0
}

/// The least of the times, if it is worth giving up the rule.
fn winner(ms: &[Option<f64>], rule: usize) -> usize {
    let known = ms.iter().enumerate().filter_map(|(i, ms)| Some((i, (*ms)?)));
    let Some((best, least)) = known.min_by(|a, b| a.1.total_cmp(&b.1)) else { return rule };
    match ms[rule] {
        Some(ms) if ms < WORTHWHILE * least => rule,
        _ => best,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rule_stays_unless_something_is_clearly_faster() {
        assert_eq!(winner(&[Some(1.0), Some(0.98), Some(2.0)], 0), 0);
        assert_eq!(winner(&[Some(1.0), Some(0.96), Some(2.0)], 0), 1);
        assert_eq!(winner(&[None, Some(1.5), Some(1.0)], 1), 2);
        assert_eq!(winner(&[None, Some(1.5)], 0), 1);
        assert_eq!(winner(&[None, None], 1), 1);
    }
}
