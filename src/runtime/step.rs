//! One dispatch, ready to be encoded.

use crate::Result;
use crate::gpu::Gpu;
use crate::kernel::DIGITS;
use std::sync::Arc;

/// Arithmetic per submit, so that no watchdog takes a long one for a hang.
pub(super) const FLOPS_PER_SUBMIT: u64 = 400_000_000_000;

/// A launch of a pipeline with what it reads and writes.
pub(super) struct Step {
    pub pipeline: Arc<wgpu::ComputePipeline>,
    pub bind_group: wgpu::BindGroup,
    /// Workgroups by dimension; the third has one.
    pub groups: (u32, u32),
    /// Arithmetic that it does.
    pub flops: u64,
    /// Takes [`DIGITS`].
    pub immediates: bool,
    /// Runs only when weights have changed.
    pub prepares: bool,
}

impl Step {
    pub fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        if self.immediates {
            pass.set_immediates(0, bytemuck::cast_slice(&DIGITS));
        }
        pass.dispatch_workgroups(self.groups.0, self.groups.1, 1);
    }

    /// Submits it alone and waits.
    pub async fn run_alone(&self, gpu: &Gpu) -> Result<()> {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.encode(&mut encoder.begin_compute_pass(&Default::default()));
        gpu.queue.submit([encoder.finish()]);
        gpu.wait_async().await
    }
}
