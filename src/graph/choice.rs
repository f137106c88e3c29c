//! The one place where a kernel's variant is decided.
//!
//! An op that has several correct ways to run a shape names them and says which
//! of them its own rule would take ([`super::Lower::choose`]). A forced variant
//! comes first ([`super::Lower::force`], or [`crate::caps::Caps::forced`]), then a
//! [`Tuning`] table, then the rule. What was decided, and why, stays in [`super::Plan::choices`].

use crate::caps::Caps;
use crate::tuning::{Forced, Tuning};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::sync::Arc;

/// The choices that can be forced and tuned, by the name of the kernel that they
/// are about.
pub const CHOICES: [&str; 17] = [
    "conv3x3",
    "conv3x3_dx",
    "conv3x3_dw",
    "norm_conv",
    "conv_moments",
    "conv2d",
    "conv2d_dx",
    "conv2d_dw",
    "conv2d_split",
    "gemm",
    "gemm_dx",
    "gemm_dw",
    "attention",
    "attention_dq",
    "attention_dkv",
    "group_norm_stats",
    "group_norm_sums",
];

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Why {
    /// The op's own rule.
    Rule,
    /// The tuning table.
    Tuned,
    /// The caller or the environment.
    Forced,
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Why::Rule => "rule",
            Why::Tuned => "tuned",
            Why::Forced => "forced",
        })
    }
}

/// A decision of a lowering. Launches of one shape share one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Choice {
    /// The name of the choice, one of [`CHOICES`].
    pub op: &'static str,
    /// Sizes that it is tuned by, bucketed; what they are is the op's affair.
    pub shape: Vec<usize>,
    /// What is correct for the shape.
    pub candidates: Vec<&'static str>,
    /// Index of what the op's rule would take.
    pub rule: usize,
    /// Index of what was taken.
    pub chosen: usize,
    /// Who took it.
    pub why: Why,
    /// Launches (or pairs of them) that it decided: none if it was only considered,
    /// see [`super::Lower::consider`].
    pub times: usize,
    /// Index of the first node that asked.
    pub node: usize,
}

impl Choice {
    /// The name of what was taken.
    pub fn name(&self) -> &'static str {
        self.candidates[self.chosen]
    }
}

/// The smallest power of two that is not less than `size`: sizes of one bucket
/// share a tuning.
pub fn bucket(size: usize) -> usize {
    size.max(1).checked_next_power_of_two().unwrap_or(usize::MAX)
}

/// The state of a lowering's choices.
#[derive(Debug, Clone, Default)]
pub(super) struct Chooser {
    forced: Forced,
    tuning: Option<Arc<Tuning>>,
    choices: Vec<Choice>,
    /// Choices are being considered only.
    pub considering: bool,
    /// First fault, reported by [`Chooser::finish`].
    fault: Option<String>,
}

impl Chooser {
    /// Follows what the capabilities of a device say: their tuning, and what they force.
    pub fn of(caps: &Caps) -> Self {
        let mut chooser = Chooser { tuning: caps.tuning.clone(), ..Self::default() };
        for (choice, candidate) in caps.forced.iter() {
            chooser.force(choice, candidate);
        }
        chooser
    }

    pub fn force(&mut self, op: &str, candidate: &str) {
        if !CHOICES.contains(&op) {
            let detail = format!("variant: `{op}` is no choice; there are {}", CHOICES.join(", "));
            self.fault.get_or_insert(detail);
        }
        self.forced.set(op, candidate);
    }

    pub fn tune(&mut self, tuning: Arc<Tuning>) {
        self.tuning = Some(tuning);
    }

    pub fn is_forced(&self, op: &str) -> bool {
        self.forced.get(op).is_some()
    }

    pub fn choose(
        &mut self,
        node: usize,
        op: &'static str,
        shape: &[usize],
        candidates: &[&'static str],
        rule: usize,
    ) -> usize {
        let same = |c: &&mut Choice| {
            (c.op, c.rule) == (op, rule) && c.shape == shape && c.candidates == candidates
        };
        if let Some(same) = self.choices.iter_mut().find(same) {
            same.times += usize::from(!self.considering);
            return same.chosen;
        }
        let find = |name: &str| candidates.iter().position(|c| *c == name);
        let forced = self.forced.get(op).and_then(find);
        let tuned = || self.tuning.as_ref()?.get(op, shape).and_then(find);
        let (chosen, why) = match forced {
            Some(i) => (i, Why::Forced),
            None => tuned().map_or((rule, Why::Rule), |i| (i, Why::Tuned)),
        };
        let (shape, candidates) = (shape.to_vec(), candidates.to_vec());
        self.choices.push(Choice {
            op,
            shape,
            candidates,
            rule,
            chosen,
            why,
            times: usize::from(!self.considering),
            node,
        });
        chosen
    }

    /// What was decided.
    ///
    /// # Errors
    /// A line about a forced variant that no shape of the lowering has.
    pub fn finish(self) -> std::result::Result<Vec<Choice>, String> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        for (op, name) in self.forced.iter() {
            let mine = || self.choices.iter().filter(|c| c.op == op);
            let known: BTreeSet<&str> = mine().flat_map(|c| c.candidates.clone()).collect();
            if !known.is_empty() && !known.contains(name) {
                let known: Vec<&str> = known.into_iter().collect();
                return Err(format!(
                    "variant: {op} has no `{name}` here; there are {}",
                    known.join(", ")
                ));
            }
        }
        Ok(self.choices)
    }
}
