//! Respacing: sampling a T-step process in fewer steps, by keeping some of its
//! timesteps and giving each the betas that lead from one to the next.

use std::collections::BTreeSet;

use super::config::DiffusionConfig;
use super::schedule::named_betas;
use super::tables::Tables;
use crate::{Error, Result};

/// The timesteps of a `steps`-step process that `spec` keeps, ascending.
///
/// * `""`: all of them.
/// * `"250"` or `"90,60,60,20,20"`: the process is cut into that many equal
///   sections (the first ones get the remainder), and each keeps its number of
///   steps, evenly spread from its first to its last. One step is its first.
/// * `"ddim25"`: the smallest stride from 0 that gives exactly 25 steps (Song
///   et al. 2021).
///
/// # Errors
/// A spec that is none of these, asks for more steps than a section has, or
/// for a number that no stride gives.
pub fn space_timesteps(steps: usize, spec: &str) -> Result<Vec<usize>> {
    let spec = spec.trim();
    if spec.is_empty() {
        return Ok((0..steps).collect());
    }
    if let Some(count) = spec.strip_prefix("ddim") {
        return strided_steps(steps, spec, parse_count(spec, count)?);
    }
    let counts = spec.split(',').map(|part| parse_count(spec, part)).collect::<Result<Vec<_>>>()?;
    sectioned_steps(steps, spec, &counts)
}

fn parse_count(spec: &str, text: &str) -> Result<usize> {
    text.trim().parse().map_err(|_| {
        Error::Config(format!(
            "timestep respacing {spec:?}: {text:?} is not a number of steps \
             (write \"250\", \"90,60,60,20,20\" or \"ddim25\")"
        ))
    })
}

fn strided_steps(steps: usize, spec: &str, count: usize) -> Result<Vec<usize>> {
    (1..steps)
        .find(|&stride| steps.div_ceil(stride) == count)
        .map(|stride| (0..steps).step_by(stride).collect())
        .ok_or_else(|| {
            Error::Config(format!(
                "timestep respacing {spec:?}: no integer stride takes exactly {count} of {steps} \
                 steps"
            ))
        })
}

fn sectioned_steps(steps: usize, spec: &str, counts: &[usize]) -> Result<Vec<usize>> {
    let (base, extra) = (steps / counts.len(), steps % counts.len());
    let mut kept = BTreeSet::new();
    let mut start = 0;
    for (i, &count) in counts.iter().enumerate() {
        let size = base + usize::from(i < extra);
        if count > size {
            return Err(Error::Config(format!(
                "timestep respacing {spec:?}: section {} has {size} of the {steps} steps and cannot \
                 keep {count}",
                i + 1
            )));
        }
        let stride = if count > 1 { (size - 1) as f64 / (count - 1) as f64 } else { 1.0 };
        // Accumulated, not multiplied out, as in the reference implementation:
        // the rounding error decides which way an exact half goes ("21" of
        // 1000 keeps 499, not 500).
        let mut position = 0.0_f64;
        for _ in 0..count {
            kept.insert(start + position.round_ties_even() as usize);
            position += stride;
        }
        start += size;
    }
    Ok(kept.into_iter().collect())
}

/// A noise schedule reduced to the timesteps that are kept.
#[derive(Debug, Clone, PartialEq)]
pub struct SpacedSchedule {
    /// Betas of the kept steps, each leading from the kept step before.
    pub betas: Vec<f64>,
    /// The original timestep of each kept step, ascending.
    pub timestep_map: Vec<usize>,
    /// Number of timesteps T before respacing.
    pub original_steps: usize,
}

impl SpacedSchedule {
    /// The schedule of `config` with the steps that `respacing` keeps (see
    /// [`space_timesteps`]; training keeps all, `""`).
    ///
    /// # Errors
    /// As [`named_betas`] and [`space_timesteps`], and fewer than 2 kept steps.
    pub fn new(config: &DiffusionConfig, respacing: &str) -> Result<Self> {
        let original_steps = config.diffusion_steps;
        let original_betas = named_betas(config.noise_schedule, original_steps)?;
        let timestep_map = space_timesteps(original_steps, respacing)?;
        if timestep_map.len() < 2 {
            return Err(Error::Config(format!(
                "timestep respacing {respacing:?} keeps {} of {original_steps} steps: at least 2 \
                 are needed",
                timestep_map.len()
            )));
        }
        let mut betas = Vec::with_capacity(timestep_map.len());
        let mut alpha_bar = 1.0;
        let mut last_kept = 1.0;
        let mut kept = timestep_map.iter().copied().peekable();
        for (t, beta) in original_betas.iter().enumerate() {
            alpha_bar *= 1.0 - beta;
            if kept.next_if_eq(&t).is_some() {
                betas.push(1.0 - alpha_bar / last_kept);
                last_kept = alpha_bar;
            }
        }
        Ok(SpacedSchedule { betas, timestep_map, original_steps })
    }

    /// Number of kept steps.
    pub fn num_steps(&self) -> usize {
        self.timestep_map.len()
    }

    /// The timestep to feed the network at kept step `i`: the original one, in
    /// thousandths of T if the config rescales.
    ///
    /// # Panics
    /// If `i` is not below [`num_steps`](Self::num_steps).
    pub fn model_timestep(&self, i: usize, config: &DiffusionConfig) -> f32 {
        let t = self.timestep_map[i] as f32;
        if config.rescale_timesteps { t * (1000.0 / self.original_steps as f64) as f32 } else { t }
    }

    /// The tables of this schedule.
    ///
    /// # Errors
    /// As [`Tables::new`].
    pub fn tables(&self) -> Result<Tables> {
        Tables::new(&self.betas)
    }
}
