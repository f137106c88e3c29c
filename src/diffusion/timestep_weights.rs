//! Which timesteps training draws: uniformly, or more often where the loss is
//! large (Nichol and Dhariwal 2021, section 3.3).

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// How likely training draws each timestep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimestepWeights {
    /// Every timestep alike.
    #[default]
    Uniform,
    /// In proportion to the root of the mean squared loss of its last terms.
    LossSecondMoment,
}

/// Losses of each timestep that are remembered.
pub const HISTORY_PER_TERM: usize = 10;
/// Share of the probability that is spread over all timesteps alike.
pub const UNIFORM_SHARE: f64 = 0.001;

/// The state of importance sampling: the last losses of every timestep.
///
/// Until each timestep has a full history all are drawn alike. Then
/// `p(t) = (1 - share) * sqrt(mean(loss(t)^2)) / sum + share / T`, and a loss
/// counts `1 / (T p(t))`, so that its expectation stays what it was.
#[derive(Debug, Clone, PartialEq)]
pub struct LossSecondMoment {
    history: usize,
    /// [T, history], oldest first.
    losses: Vec<f32>,
    counts: Vec<u32>,
}

impl LossSecondMoment {
    /// An empty history of `history` losses for each of `steps` timesteps.
    pub fn new(steps: usize, history: usize) -> Self {
        LossSecondMoment { history, losses: vec![0.0; steps * history], counts: vec![0; steps] }
    }

    /// Remembers the unweighted `loss` of timestep `t`, forgetting its oldest.
    /// A loss that is not finite says nothing and is left out.
    ///
    /// # Panics
    /// If `t` is not a timestep.
    pub fn update(&mut self, t: usize, loss: f32) {
        if !loss.is_finite() {
            return;
        }
        let terms = &mut self.losses[t * self.history..(t + 1) * self.history];
        let count = self.counts[t] as usize;
        if count < self.history {
            terms[count] = loss;
            self.counts[t] += 1;
        } else {
            terms.rotate_left(1);
            terms[self.history - 1] = loss;
        }
    }

    /// Whether every timestep has its history.
    pub fn warmed_up(&self) -> bool {
        self.counts.iter().all(|c| *c as usize == self.history)
    }

    /// The probability of every timestep; they add up to 1.
    pub fn probabilities(&self) -> Vec<f64> {
        let steps = self.counts.len() as f64;
        let roots: Vec<f64> = self.losses.chunks(self.history).map(root_mean_square).collect();
        let sum: f64 = roots.iter().sum();
        if !self.warmed_up() || sum <= 0.0 {
            return vec![1.0 / steps; self.counts.len()];
        }
        roots.iter().map(|r| r / sum * (1.0 - UNIFORM_SHARE) + UNIFORM_SHARE / steps).collect()
    }

    /// The history as values [T, history] and counts `[T]`, for a checkpoint.
    pub fn state(&self) -> (&[f32], Vec<f32>) {
        (&self.losses, self.counts.iter().map(|c| *c as f32).collect())
    }

    /// A history from its [`state`](Self::state).
    ///
    /// # Errors
    /// [`Error::Config`] if the lengths or counts do not fit, or a loss is not finite.
    pub fn from_state(steps: usize, losses: Vec<f32>, counts: &[f32]) -> Result<Self> {
        let history = losses.len() / steps.max(1);
        let fits = |c: &f32| c.fract() == 0.0 && (0.0..=history as f32).contains(c);
        if history == 0
            || losses.len() != steps * history
            || counts.len() != steps
            || !counts.iter().all(fits)
            || !losses.iter().all(|loss| loss.is_finite())
        {
            return Err(Error::Config(format!(
                "{} losses and {} counts are no history of {steps} timesteps",
                losses.len(),
                counts.len()
            )));
        }
        let counts = counts.iter().map(|c| *c as u32).collect();
        Ok(LossSecondMoment { history, losses, counts })
    }
}

fn root_mean_square(losses: &[f32]) -> f64 {
    let squares: f64 = losses.iter().map(|l| f64::from(*l).powi(2)).sum();
    (squares / losses.len() as f64).sqrt()
}

/// Draws from `probabilities` by one uniform number in 0..1: the index and its
/// importance weight `1 / (T p)`.
pub fn draw(probabilities: &[f64], u: f64) -> (usize, f64) {
    let mut below = 0.0;
    let last = probabilities.len().saturating_sub(1);
    let index = probabilities.iter().position(|p| {
        below += p;
        u < below
    });
    let index = index.unwrap_or(last);
    (index, 1.0 / (probabilities.len() as f64 * probabilities[index]))
}
