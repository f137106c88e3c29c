//! Compiling what a driver would leave for the first launch.
//!
//! llvmpipe translates a shader to machine code when a pipeline is first launched,
//! seconds for a large kernel, one after the other on the thread of the device's queue.
//! An empty launch makes it do so at once; one on another device of the same adapter
//! does it beside the first, and the driver's own cache then spares the first device
//! the work.

use super::compile::{Compiled, Job, storage_bindings};
use super::step::Step;
use crate::Result;
use crate::gpu::Gpu;

/// Bytes of what is bound, no less than any shader's smallest binding.
const BYTES: u64 = 4096;

/// Launches no workgroups of a pipeline and waits.
///
/// # Errors
/// [`crate::Error::Device`] if the device reported a fault.
pub(super) async fn warm_up(gpu: &Gpu, job: &Job, compiled: &Compiled) -> Result<()> {
    let Job { key: (_, defines, writable_reads), kernel, .. } = job;
    let buffer = |usage| {
        let label = Some("stand-in of a binding");
        let size = BYTES;
        let mapped_at_creation = false;
        gpu.device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation })
    };
    let params = buffer(wgpu::BufferUsages::UNIFORM);
    // What is read and what is written may not be of one buffer.
    let [read, written] = [(); 2].map(|()| buffer(wgpu::BufferUsages::STORAGE));
    let params = wgpu::BindGroupEntry { binding: 0, resource: params.as_entire_binding() };
    let storage = storage_bindings(kernel, defines, *writable_reads).map(|(binding, read_only)| {
        let buffer = if read_only { &read } else { &written };
        wgpu::BindGroupEntry { binding, resource: buffer.as_entire_binding() }
    });
    let entries: Vec<_> = std::iter::once(params).chain(storage).collect();
    let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
        label: Some(kernel.name),
        layout: &compiled.layout,
        entries: &entries,
    });
    let step = Step {
        pipeline: compiled.pipeline.clone(),
        bind_group,
        groups: (0, 0),
        flops: 0,
        immediates: kernel.uses_immediates(defines),
        prepares: false,
    };
    step.run_alone(gpu).await
}
