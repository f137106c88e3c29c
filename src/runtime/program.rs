//! A plan compiled for a device: run, written to, read from.

use super::context::Context;
use super::guards::Guards;
use super::memory::{Location, Memory, PinnedTensor, UNIFORM_ALIGN, locate, upload_uniforms};
use super::state::{FlatBuffers, widen};
use super::step::{FLOPS_PER_SUBMIT, Step};
use crate::gpu::{Gpu, Ticket};
use crate::graph::{DType, FlatKind, Plan, TensorId};
use crate::{Error, Result};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How to compile a plan.
pub struct CompileOptions<'a> {
    /// Which flat buffer plays the part of the weights (EMA for sampling).
    pub weights: FlatKind,
    /// Reuse the slots and pinned tensors of a program whose plan has the
    /// same tensors.
    pub share: Option<&'a Program>,
    /// Pinned tensors that are another program's, of the same size.
    pub bound: &'a [(TensorId, PinnedTensor)],
    /// Fill slots and pinned tensors with NaN first (for tests).
    pub poison: bool,
}

impl Default for CompileOptions<'_> {
    fn default() -> Self {
        CompileOptions { weights: FlatKind::Weights, share: None, bound: &[], poison: false }
    }
}

/// A plan compiled for a device.
pub struct Program {
    plan: Plan,
    memory: Arc<Memory>,
    pub(super) steps: Vec<Step>,
    /// Checked after each run where the run may wait.
    #[cfg_attr(target_arch = "wasm32", allow(dead_code))]
    guards: Guards,
    /// Changes of the weights so far, and up to which of them steps that prepare ran.
    version: Arc<AtomicU64>,
    prepared: AtomicU64,
    changes_weights: bool,
}

impl Program {
    /// Allocates memory, compiles missing pipelines and binds everything.
    ///
    /// # Errors
    /// [`Error::Memory`] without room, [`Error::Kernel`] or
    /// [`Error::Device`] if a pipeline cannot be made.
    pub async fn compile_async(
        Context { gpu, pipelines }: Context<'_>,
        plan: Plan,
        flat: &FlatBuffers,
        options: CompileOptions<'_>,
    ) -> Result<Program> {
        if (plan.slots.guard > 0) != gpu.caps.guarded {
            return Err(Error::Device("plan and device differ in whether they are guarded".into()));
        }
        let memory = match options.share {
            Some(other) => other.memory.clone(),
            None => {
                let memory = Memory::allocate(gpu, &plan, options.bound, options.poison);
                Arc::new(memory.await?)
            }
        };
        let made = pipelines.prepare(gpu, &plan.dispatches).await?;
        let uniforms = upload_uniforms(gpu, &plan).await?;
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let mut steps = Vec::with_capacity(plan.dispatches.len());
        for (i, (d, p)) in plan.dispatches.iter().zip(made).enumerate() {
            let mut entries = vec![wgpu::BindGroupEntry {
                binding: 0,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &uniforms,
                    offset: (i * UNIFORM_ALIGN) as u64,
                    size: std::num::NonZeroU64::new(d.params.len() as u64),
                }),
            }];
            for (number, id, _) in &d.bindings {
                let Location { buffer, offset, bytes } =
                    locate(&plan, &memory, flat, options.weights, *id)?;
                // Guard words around it are bound with it.
                let guard = plan.slots.guard;
                let (offset, bytes) = (offset - guard, bytes + 2 * guard);
                entries.push(wgpu::BindGroupEntry {
                    binding: *number,
                    resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                        buffer,
                        offset,
                        size: std::num::NonZeroU64::new(bytes),
                    }),
                });
            }
            let bind_group = gpu.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(&d.label),
                layout: &p.layout,
                entries: &entries,
            });
            let groups = fold(d.groups, gpu.caps.max_groups)?;
            steps.push(Step {
                pipeline: p.pipeline.clone(),
                bind_group,
                groups,
                flops: d.cost.flops,
                immediates: d.kernel.uses_immediates(&d.defines),
                prepares: plan.prepares(d),
            });
        }
        if let Some(e) = scope.pop().await {
            return Err(Error::Device(format!("binding the plan: {e}")));
        }
        let guards = Guards::of(&plan, |id| locate(&plan, &memory, flat, options.weights, id))?;
        let (version, changes_weights) = (flat.version.clone(), plan.changes_weights());
        let prepared = AtomicU64::new(0);
        Ok(Program { plan, memory, steps, guards, version, prepared, changes_weights })
    }

    /// The plan it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Submits the whole plan; returns without waiting for it, unless there are guard
    /// words to check.
    ///
    /// # Errors
    /// [`Error::Device`] if the device reported a fault, [`Error::Kernel`] if a kernel
    /// changed guard words.
    pub fn run(&self, gpu: &Gpu) -> Result<Ticket> {
        let steps = self.due();
        let mut at = 0;
        let mut last = None;
        while at < steps.len() {
            let mut flops = 0;
            let mut end = at;
            while end < steps.len() && (end == at || flops < FLOPS_PER_SUBMIT) {
                flops += steps[end].flops;
                end += 1;
            }
            let mut encoder = gpu.device.create_command_encoder(&Default::default());
            {
                let mut pass = encoder.begin_compute_pass(&Default::default());
                for s in &steps[at..end] {
                    s.encode(&mut pass);
                }
            }
            last = Some(gpu.queue.submit([encoder.finish()]));
            at = end;
        }
        gpu.check()?;
        #[cfg(not(target_arch = "wasm32"))]
        if !self.guards.is_empty() {
            pollster::block_on(self.guards.check(gpu, &self.plan))?;
        }
        Ok(Ticket::new(gpu, last))
    }

    /// The steps of the run that begins: all of them if weights have changed since
    /// the last one, else without those that prepare them.
    pub(super) fn due(&self) -> Vec<&Step> {
        let now = self.version.load(Ordering::Relaxed);
        let changed = self.prepared.swap(now, Ordering::Relaxed) != now;
        if self.changes_weights {
            self.version.fetch_add(1, Ordering::Relaxed);
        }
        self.steps.iter().filter(|s| changed || !s.prepares).collect()
    }

    /// Writes a pinned tensor before the next run.
    ///
    /// # Errors
    /// [`Error::Shape`] if the length or the element type differ;
    /// tensors that the plan does not use are ignored.
    pub fn write<T: bytemuck::Pod>(&self, gpu: &Gpu, id: TensorId, data: &[T]) -> Result<()> {
        let info = &self.plan.tensors[id.index()];
        let bytes: &[u8] = bytemuck::cast_slice(data);
        if bytes.len() as u64 != info.bytes() {
            let detail = format!(
                "{} {:?} holds {} bytes, {} given",
                info.name,
                info.shape,
                info.bytes(),
                bytes.len()
            );
            return Err(Error::shape("write", detail));
        }
        if let Some(buffer) = self.memory.pinned.get(&id) {
            gpu.queue.write_buffer(buffer, self.plan.slots.guard, bytes);
        }
        Ok(())
    }

    /// The memory of a pinned tensor, to be bound by another program too.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor without a buffer of its own.
    pub fn pinned(&self, id: TensorId) -> Result<PinnedTensor> {
        let buffer = self.memory.pinned.get(&id).cloned().ok_or_else(|| {
            let name = &self.plan.tensors[id.index()].name;
            Error::shape("bind", format!("{name} is not kept by this plan"))
        })?;
        Ok(PinnedTensor(buffer))
    }

    /// Reads pinned tensors (kept or inputs), waiting for submitted work.
    /// Halves are widened.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor without a buffer of its own.
    pub async fn read_async(&self, gpu: &Gpu, ids: &[TensorId]) -> Result<Vec<Vec<f32>>> {
        let ranges: Vec<_> = ids
            .iter()
            .map(|id| {
                let info = &self.plan.tensors[id.index()];
                let buffer = self.memory.pinned.get(id).ok_or_else(|| {
                    Error::shape("read", format!("{} is not kept by this plan", info.name))
                })?;
                Ok((buffer, self.plan.slots.guard, info.bytes()))
            })
            .collect::<Result<_>>()?;
        let raw = gpu.read_async(&ranges).await?;
        let float = |(id, bytes): (&TensorId, &Vec<u8>)| -> Vec<f32> {
            match self.plan.tensors[id.index()].dtype {
                DType::F16 => widen(bytes),
                _ => bytemuck::pod_collect_to_vec(bytes),
            }
        };
        Ok(ids.iter().zip(&raw).map(float).collect())
    }
}

/// Spreads `groups` over two dimensions of at most `limit`.
fn fold(groups: u64, limit: u32) -> Result<(u32, u32)> {
    let x = groups.clamp(1, u64::from(limit));
    let y = groups.max(1).div_ceil(x);
    if y > u64::from(limit) {
        return Err(Error::Memory(format!(
            "{groups} workgroups are more than the device can launch"
        )));
    }
    Ok((x as u32, y as u32))
}
