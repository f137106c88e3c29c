//! Initial values of parameters.

use crate::graph::{Init, ParamInfo};
use crate::rng;

/// Initial values as PyTorch's defaults would draw them (other random
/// numbers, the same distributions), in device layout.
pub fn initialise(params: &[ParamInfo], seed: u64) -> Vec<Vec<f32>> {
    params.iter().enumerate().map(|(i, p)| initial(p, seed, i as u32)).collect()
}

fn initial(p: &ParamInfo, seed: u64, index: u32) -> Vec<f32> {
    let mut values = vec![0.0; p.len()];
    match p.init {
        Init::Zeros => {}
        Init::Ones => values.fill(1.0),
        Init::Normal => rng::fill_normal(&mut values, seed, 0, rng::STREAM_INIT, index),
        Init::NormalTimes(deviation) => {
            rng::fill_normal(&mut values, seed, 0, rng::STREAM_INIT, index);
            values.iter_mut().for_each(|v| *v *= deviation);
        }
        Init::Uniform(bound) => {
            rng::fill_uniform(&mut values, seed, 0, rng::STREAM_INIT, index);
            values.iter_mut().for_each(|v| *v = (2.0 * *v - 1.0) * bound);
        }
    }
    values
}
