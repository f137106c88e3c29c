//! The flat buffers: weights, gradients, moments and EMA of all parameters,
//! packed copies of some, and the loss scale.

use super::guard_words::fill_ends;
use crate::gpu::Gpu;
use crate::graph::{FlatKind, GUARD, ParamInfo, ParamLayout};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Flat, chunked device copies of all parameters.
pub struct FlatBuffers {
    layout: ParamLayout,
    /// Bytes of guard words before and after each buffer; 0 but in tests.
    guard: u64,
    buffers: HashMap<(FlatKind, usize), wgpu::Buffer>,
    /// Counts changes of the weights, for programs that keep what follows from them.
    pub(super) version: Arc<AtomicU64>,
}

impl FlatBuffers {
    /// Allocates zeroed buffers of the given kinds; of packed kinds those chunks
    /// that are read as half.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub async fn new_async(gpu: &Gpu, layout: &ParamLayout, kinds: &[FlatKind]) -> Result<Self> {
        let (layout, version) = (layout.clone(), Arc::new(AtomicU64::new(1)));
        let guard = if gpu.caps.guarded { GUARD } else { 0 };
        let mut flat = FlatBuffers { layout, guard, buffers: HashMap::new(), version };
        for kind in kinds {
            match kind {
                FlatKind::LossScale => flat.allocate(gpu, *kind, 0, SCALE_BYTES).await?,
                _ => {
                    let l = &flat.layout;
                    let chunks = if kind.is_half() { l.packed } else { l.chunks.len() };
                    for i in 0..chunks {
                        flat.allocate_chunk(gpu, *kind, i).await?;
                    }
                }
            }
        }
        Ok(flat)
    }

    /// Allocates what inference reads: the packed chunks of the weights as half
    /// only, the others as they are.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub async fn inference_async(gpu: &Gpu, layout: &ParamLayout) -> Result<Self> {
        let mut flat = Self::new_async(gpu, layout, &[FlatKind::Half]).await?;
        for i in layout.packed..layout.chunks.len() {
            flat.allocate_chunk(gpu, FlatKind::Weights, i).await?;
        }
        Ok(flat)
    }

    async fn allocate_chunk(&mut self, gpu: &Gpu, kind: FlatKind, i: usize) -> Result<()> {
        let bytes = self.layout.chunks[i] as u64 * kind.element_bytes();
        self.allocate(gpu, kind, i, bytes).await
    }

    async fn allocate(&mut self, gpu: &Gpu, kind: FlatKind, i: usize, bytes: u64) -> Result<()> {
        let size = bytes + 2 * self.guard;
        let buffer = gpu.storage_buffer(&format!("{kind:?} chunk {i}"), size).await?;
        fill_ends(gpu, &buffer, self.guard);
        self.buffers.insert((kind, i), buffer);
        Ok(())
    }

    /// Where the parameters lie.
    pub fn layout(&self) -> &ParamLayout {
        &self.layout
    }

    /// Where a chunk begins in its buffer.
    pub(super) fn guard(&self) -> u64 {
        self.guard
    }

    /// A chunk's buffer, if this kind was allocated.
    pub(super) fn chunk(&self, kind: FlatKind, chunk: usize) -> Option<&wgpu::Buffer> {
        self.buffers.get(&(kind, chunk))
    }

    /// Uploads one value per parameter element, in device layout, to the
    /// buffers of `kind` and to its packed copy, as far as they are allocated.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values or their lengths differ,
    /// [`Error::Device`] if some have no place.
    pub fn write(
        &self,
        gpu: &Gpu,
        kind: FlatKind,
        params: &[ParamInfo],
        values: &[Vec<f32>],
    ) -> Result<()> {
        if params.len() != values.len() {
            let detail = format!("{} parameters, {} given", params.len(), values.len());
            return Err(Error::shape("parameters", detail));
        }
        let mut chunks: Vec<Vec<f32>> = self.layout.chunks.iter().map(|n| vec![0.0; *n]).collect();
        for ((p, v), (chunk, at)) in params.iter().zip(values).zip(&self.layout.places) {
            if p.len() != v.len() {
                let detail = format!("{} has {} elements, {} given", p.name, p.len(), v.len());
                return Err(Error::shape("parameters", detail));
            }
            chunks[*chunk][*at..at + v.len()].copy_from_slice(v);
        }
        for (i, data) in chunks.iter().enumerate() {
            let (whole, packed) = (self.chunk(kind, i), kind.half().and_then(|k| self.chunk(k, i)));
            if whole.is_none() && packed.is_none() {
                return Err(missing(kind));
            }
            if let Some(buffer) = whole {
                gpu.queue.write_buffer(buffer, self.guard, bytemuck::cast_slice(data));
            }
            if let Some(buffer) = packed {
                let halves: Vec<half::f16> = data.iter().map(|v| half::f16::from_f32(*v)).collect();
                gpu.queue.write_buffer(buffer, self.guard, bytemuck::cast_slice(&halves));
            }
        }
        self.version.fetch_add(1, Ordering::Relaxed);
        // Lets the driver free its staging memory before the next upload.
        gpu.queue.submit([]);
        Ok(())
    }

    /// Downloads all parameters of a kind, in device layout; from a packed kind
    /// those that it holds, the others are empty.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost or the kind is not allocated.
    pub async fn read_async(
        &self,
        gpu: &Gpu,
        kind: FlatKind,
        params: &[ParamInfo],
    ) -> Result<Vec<Vec<f32>>> {
        let mut chunks: Vec<Vec<f32>> = Vec::new();
        for (i, len) in self.layout.chunks.iter().enumerate() {
            if kind.is_half() && i >= self.layout.packed {
                break;
            }
            let buffer = self.chunk(kind, i).ok_or_else(|| missing(kind))?;
            let bytes = *len as u64 * kind.element_bytes();
            let raw = &gpu.read_async(&[(buffer, self.guard, bytes)]).await?[0];
            chunks.push(if kind.is_half() {
                widen(raw)
            } else {
                bytemuck::pod_collect_to_vec(raw)
            });
        }
        let place = |(p, (chunk, at)): (&ParamInfo, &(usize, usize))| {
            chunks.get(*chunk).map_or(Vec::new(), |c| c[*at..at + p.len()].to_vec())
        };
        Ok(params.iter().zip(&self.layout.places).map(place).collect())
    }

    /// Uploads the state of the loss scale (`ops::LossScale`).
    ///
    /// # Errors
    /// [`Error::Device`] if it is not allocated.
    pub fn write_loss_scale(&self, gpu: &Gpu, state: [f32; 4]) -> Result<()> {
        let kind = FlatKind::LossScale;
        let buffer = self.chunk(kind, 0).ok_or_else(|| missing(kind))?;
        gpu.queue.write_buffer(buffer, self.guard, bytemuck::cast_slice(&state));
        Ok(())
    }

    /// Downloads the state of the loss scale, waiting for submitted work.
    ///
    /// # Errors
    /// [`Error::Device`] if it is not allocated or the device is lost.
    pub async fn read_loss_scale_async(&self, gpu: &Gpu) -> Result<[f32; 4]> {
        let kind = FlatKind::LossScale;
        let buffer = self.chunk(kind, 0).ok_or_else(|| missing(kind))?;
        let raw = gpu.read_async(&[(buffer, self.guard, SCALE_BYTES)]).await?;
        Ok(bytemuck::pod_read_unaligned(&raw[0]))
    }
}

/// Floats from the bytes of halves.
pub(super) fn widen(halves: &[u8]) -> Vec<f32> {
    let halves: Vec<half::f16> = bytemuck::pod_collect_to_vec(halves);
    halves.into_iter().map(half::f16::to_f32).collect()
}

/// Bytes of the loss scale's state.
const SCALE_BYTES: u64 = 16;

fn missing(kind: FlatKind) -> Error {
    Error::Device(format!("{kind:?} is not allocated"))
}
