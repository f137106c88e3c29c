//! The memory of a program: slots, pinned tensors, parameter blocks.

use super::guard_words::fill_ends;
use super::state::FlatBuffers;
use crate::gpu::Gpu;
use crate::graph::{DType, FlatKind, Plan, Storage, TensorId};
use crate::{Error, Result};
use std::collections::HashMap;

/// Uniform blocks start at multiples of this (WebGPU's default alignment).
pub(super) const UNIFORM_ALIGN: usize = 256;

/// A pinned tensor's memory, to be shared with another program.
#[derive(Debug, Clone)]
pub struct PinnedTensor(pub(super) wgpu::Buffer);

/// Slots and pinned tensors of a program.
pub(super) struct Memory {
    slots: Vec<wgpu::Buffer>,
    pub pinned: HashMap<TensorId, wgpu::Buffer>,
}

impl Memory {
    /// Allocates what `plan` needs, but for the pinned tensors in `bound`, which are
    /// another program's; filled with NaN if `poison` says so.
    pub async fn allocate(
        gpu: &Gpu,
        plan: &Plan,
        bound: &[(TensorId, PinnedTensor)],
        poison: bool,
    ) -> Result<Memory> {
        let guard = plan.slots.guard;
        let mut memory = Memory { slots: Vec::new(), pinned: HashMap::new() };
        for (id, PinnedTensor(buffer)) in bound {
            let info = &plan.tensors[id.index()];
            if buffer.size() != info.bytes() + 2 * guard {
                let detail = format!(
                    "{} takes {} bytes, {} are shared with it",
                    info.name,
                    info.bytes(),
                    buffer.size()
                );
                return Err(Error::shape("bind", detail));
            }
            memory.pinned.insert(*id, buffer.clone());
        }
        for (i, bytes) in plan.slots.sizes.iter().enumerate() {
            memory.slots.push(gpu.storage_buffer(&format!("slot {i}"), *bytes).await?);
        }
        for d in &plan.dispatches {
            for (_, id, _) in &d.bindings {
                let info = &plan.tensors[id.index()];
                let own = matches!(info.storage, Storage::Pinned | Storage::Prepared);
                if own && !memory.pinned.contains_key(id) {
                    let buffer = gpu.storage_buffer(&info.name, info.bytes() + 2 * guard).await?;
                    memory.pinned.insert(*id, buffer);
                }
            }
        }
        if poison {
            let float = |id: &TensorId| plan.tensors[id.index()].dtype != DType::U32;
            let pinned = memory.pinned.iter().filter(|(id, _)| float(id)).map(|(_, b)| b);
            for buffer in memory.slots.iter().chain(pinned) {
                let nan = vec![0xff; buffer.size() as usize];
                gpu.queue.write_buffer(buffer, 0, &nan);
            }
        }
        memory.slots.iter().chain(memory.pinned.values()).for_each(|b| fill_ends(gpu, b, guard));
        Ok(memory)
    }
}

/// Where a tensor lies.
pub(super) struct Location<'a> {
    pub buffer: &'a wgpu::Buffer,
    /// Its first byte there.
    pub offset: u64,
    pub bytes: u64,
}

/// Finds a tensor. Parameters lie where `flat`'s layout
/// has them: a plan of 32 bits may run on weights that also have a packed copy.
pub(super) fn locate<'a>(
    plan: &Plan,
    memory: &'a Memory,
    flat: &'a FlatBuffers,
    weights: FlatKind,
    id: TensorId,
) -> Result<Location<'a>> {
    let info = &plan.tensors[id.index()];
    let missing = || Error::Device(format!("{} has no buffer", info.name));
    let at = |buffer, offset| Location { buffer, offset, bytes: info.bytes() };
    let parameter = |kind, p: usize| {
        let (chunk, offset) = *flat.layout().places.get(p).ok_or_else(missing)?;
        let buffer = flat.chunk(kind, chunk).ok_or_else(missing)?;
        Ok(at(buffer, flat.guard() + offset as u64 * info.dtype.bytes()))
    };
    match info.storage {
        Storage::Slot => {
            let place = plan.slots.of.get(&id).ok_or_else(missing)?;
            Ok(at(&memory.slots[place.slot], place.offset))
        }
        Storage::Pinned | Storage::Prepared => {
            Ok(at(memory.pinned.get(&id).ok_or_else(missing)?, plan.slots.guard))
        }
        Storage::Param(p) if info.dtype == DType::F16 => {
            parameter(weights.half().ok_or_else(missing)?, p)
        }
        Storage::Param(p) => parameter(weights, p),
        Storage::ParamGrad(p) => parameter(FlatKind::Grads, p),
        Storage::Flat(kind, chunk) => {
            Ok(at(flat.chunk(kind, chunk).ok_or_else(missing)?, flat.guard()))
        }
    }
}

/// The parameters of all dispatches in one buffer, [`UNIFORM_ALIGN`] bytes apart.
pub(super) async fn upload_uniforms(gpu: &Gpu, plan: &Plan) -> Result<wgpu::Buffer> {
    let mut bytes = vec![0u8; plan.dispatches.len().max(1) * UNIFORM_ALIGN];
    for (i, d) in plan.dispatches.iter().enumerate() {
        bytes[i * UNIFORM_ALIGN..][..d.params.len()].copy_from_slice(&d.params);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let size = bytes.len() as u64;
    let buffer = gpu.guarded_buffer("parameters of all dispatches", size, usage).await?;
    gpu.queue.write_buffer(&buffer, 0, &bytes);
    Ok(buffer)
}
