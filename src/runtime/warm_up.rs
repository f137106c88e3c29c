//! Compiling what a driver would leave for the first launch.
//!
//! llvmpipe translates a shader to machine code when a pipeline is first launched,
//! seconds for a large kernel, one after the other on the thread of the device's queue.
//! An empty launch makes it do so at once; one on another device of the same adapter
//! does it beside the first, and the driver's own cache then spares the first device
//! the work.

use super::pipelines::{Compiled, storage_bindings};
use crate::Result;
use crate::gpu::Gpu;
use crate::kernel::{DIGITS, Kernel};

/// Bytes of what is bound, no less than any shader's smallest binding.
const BYTES: u64 = 4096;

/// Launches no workgroups of a pipeline and waits.
///
/// # Errors
/// [`crate::Error::Device`] if the device reported a fault.
pub(super) fn warm_up(
    gpu: &Gpu,
    kernel: &Kernel,
    defines: &[i64],
    opened: u32,
    compiled: &Compiled,
) -> Result<()> {
    let buffer = |usage| {
        let label = Some("stand-in of a binding");
        let size = BYTES;
        let mapped_at_creation = false;
        gpu.device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation })
    };
    let params = buffer(wgpu::BufferUsages::UNIFORM);
    // What is read and what is written may not be of one buffer.
    let [read, written] = [(); 2].map(|()| buffer(wgpu::BufferUsages::STORAGE));
    let entry = |binding, buffer: &wgpu::Buffer| (binding, buffer.clone());
    let bound: Vec<_> = std::iter::once(entry(0, &params))
        .chain(
            storage_bindings(kernel, defines, opened)
                .map(|(number, read_only)| entry(number, if read_only { &read } else { &written })),
        )
        .collect();
    let entries: Vec<_> = bound
        .iter()
        .map(|(binding, buffer)| wgpu::BindGroupEntry {
            binding: *binding,
            resource: buffer.as_entire_binding(),
        })
        .collect();
    let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(kernel.name),
        layout: &compiled.layout,
        entries: &entries,
    });
    let mut encoder = gpu.device.create_command_encoder(&Default::default());
    {
        let mut pass = encoder.begin_compute_pass(&Default::default());
        pass.set_pipeline(&compiled.pipeline);
        pass.set_bind_group(0, &bind_group, &[]);
        if kernel.uses_immediates(defines) {
            pass.set_immediates(0, bytemuck::cast_slice(&DIGITS));
        }
        pass.dispatch_workgroups(0, 0, 0);
    }
    gpu.queue.submit([encoder.finish()]);
    gpu.wait()
}
