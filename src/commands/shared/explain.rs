//! `--explain`: which variant of a kernel runs, and why.

use demist::engine::graph::{Choice, shape_name};

/// The choices that a plan made, a line each.
pub fn print_choices(choices: &[Choice]) {
    choices.iter().filter(|c| c.times > 0).for_each(print_choice);
}

/// A line about a decision.
fn print_choice(c: &Choice) {
    let others: Vec<&str> = c.candidates.iter().copied().filter(|n| *n != c.name()).collect();
    say!(
        "    {} of {}: {} ({}), {} times; other candidates: {}",
        c.op,
        shape_name(&c.shape),
        c.name(),
        c.why,
        c.times,
        if others.is_empty() { "none".into() } else { others.join(", ") }
    );
}
