//! Which timesteps the images of a training step are noised to.

use super::TrainStep;
use crate::checkpoint::NetworkInfo;
use crate::diffusion::timestep_weights::{HISTORY_PER_TERM, draw};
use crate::diffusion::{LossSecondMoment, TimestepWeights};
use crate::rng;

/// Draws timesteps: all alike, or by their losses so far.
pub(super) struct Timesteps {
    seed: u64,
    /// The losses so far, where they decide.
    losses: Option<LossSecondMoment>,
}

impl Timesteps {
    /// As the recipe says; a resumed training knows its losses.
    pub fn new(info: &NetworkInfo, known: Option<LossSecondMoment>) -> Self {
        let by_loss = info.training.timestep_weights == TimestepWeights::LossSecondMoment;
        let none = || LossSecondMoment::new(info.diffusion.diffusion_steps, HISTORY_PER_TERM);
        let losses = if by_loss { Some(known.unwrap_or_else(none)) } else { known };
        Timesteps { seed: info.training.seed, losses }
    }

    /// The losses so far, where they decide.
    pub fn losses(&self) -> Option<&LossSecondMoment> {
        self.losses.as_ref()
    }

    /// Whether [`Timesteps::learn`] wants the loss of every image.
    pub fn learns(&self) -> bool {
        self.losses.is_some()
    }

    /// Remembers the losses of images at these timesteps.
    pub fn learn(&mut self, timesteps: &[usize], losses: &[f32]) {
        if let Some(known) = &mut self.losses {
            timesteps.iter().zip(losses).for_each(|(t, loss)| known.update(*t, *loss));
        }
    }

    /// Timesteps of the images `first..first + n` at step `number`, and their
    /// importance weights (none where all count alike).
    pub fn draw(
        &self,
        step: &TrainStep,
        number: u64,
        first: u64,
        n: usize,
    ) -> (Vec<usize>, Vec<f64>) {
        let images = first..first + n as u64;
        match self.losses.as_ref().filter(|losses| losses.warmed_up()) {
            None => (images.map(|i| step.draw_timestep(number, i)).collect(), Vec::new()),
            Some(losses) => {
                let p = losses.probabilities();
                let (stream, seed) = (rng::STREAM_TIMESTEP, self.seed);
                let uniform =
                    |i: u64| rng::uniform_f32(seed, number as u32, stream, i as u32, 0).into();
                images.map(|i| draw(&p, uniform(i))).unzip()
            }
        }
    }
}
