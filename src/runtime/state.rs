//! The flat buffers: weights, gradients, moments and EMA of all parameters.

use crate::gpu::Gpu;
use crate::graph::{FlatKind, ParamInfo, ParamLayout};
use crate::{Error, Result};
use std::collections::HashMap;

/// Flat, chunked device copies of all parameters.
pub struct FlatBuffers {
    layout: ParamLayout,
    buffers: HashMap<(FlatKind, usize), wgpu::Buffer>,
}

impl FlatBuffers {
    /// Allocates zeroed buffers of the given kinds.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room.
    pub fn new(gpu: &Gpu, layout: &ParamLayout, kinds: &[FlatKind]) -> Result<Self> {
        let mut buffers = HashMap::new();
        for kind in kinds {
            for (i, len) in layout.chunks.iter().enumerate() {
                let label = format!("{kind:?} chunk {i}");
                buffers.insert((*kind, i), gpu.storage_buffer(&label, *len as u64 * 4)?);
            }
        }
        Ok(FlatBuffers { layout: layout.clone(), buffers })
    }

    /// A chunk's buffer, if this kind was allocated.
    pub(super) fn chunk(&self, kind: FlatKind, chunk: usize) -> Option<&wgpu::Buffer> {
        self.buffers.get(&(kind, chunk))
    }

    /// Uploads one value per parameter element, in device layout.
    ///
    /// # Errors
    /// [`Error::Shape`] if the number of values or their lengths differ.
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
            let buffer = self
                .chunk(kind, i)
                .ok_or_else(|| Error::Device(format!("{kind:?} is not allocated")))?;
            gpu.queue.write_buffer(buffer, 0, bytemuck::cast_slice(data));
        }
        // Lets the driver free its staging memory before the next upload.
        gpu.queue.submit([]);
        Ok(())
    }

    /// Downloads all parameters of a kind, in device layout.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost.
    pub fn read(&self, gpu: &Gpu, kind: FlatKind, params: &[ParamInfo]) -> Result<Vec<Vec<f32>>> {
        let mut chunks: Vec<Vec<f32>> = Vec::new();
        for (i, len) in self.layout.chunks.iter().enumerate() {
            let buffer = self
                .chunk(kind, i)
                .ok_or_else(|| Error::Device(format!("{kind:?} is not allocated")))?;
            let raw = gpu.read(&[(buffer, 0, *len as u64 * 4)])?;
            chunks.extend(raw.iter().map(|b| bytemuck::pod_collect_to_vec::<u8, f32>(b)));
        }
        Ok(params
            .iter()
            .zip(&self.layout.places)
            .map(|(p, (chunk, at))| chunks[*chunk][*at..at + p.len()].to_vec())
            .collect())
    }
}
