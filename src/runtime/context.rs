//! A device and its kernels, as they are handed around.

use super::pipelines::Pipelines;
use crate::gpu::Gpu;

/// An open device with its pipelines: what everything that runs needs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The device.
    pub gpu: &'a Gpu,
    /// Its compiled kernels.
    pub pipelines: &'a Pipelines,
}
