//! The runtime: turns a [`Plan`] into pipelines, buffers and bind groups once
//! and replays it for every step.

mod pipeline_file;
mod pipelines;
mod state;
mod timing;
mod warm_up;

pub use pipelines::{Compiling, Pipelines};
pub use state::FlatBuffers;
pub use timing::{Clock, Span};

use crate::gpu::{Gpu, Ticket};
use crate::graph::{DType, FlatKind, Plan, Storage, TensorId};
use crate::kernel::DIGITS;
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Uniform blocks start at multiples of this (WebGPU's default alignment).
const UNIFORM_ALIGN: usize = 256;

/// Arithmetic per submit, so that no watchdog takes a long one for a hang.
const FLOPS_PER_SUBMIT: u64 = 400_000_000_000;

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

/// A pinned tensor's memory, to be shared with another program.
#[derive(Debug, Clone)]
pub struct PinnedTensor(wgpu::Buffer);

impl Default for CompileOptions<'_> {
    fn default() -> Self {
        CompileOptions { weights: FlatKind::Weights, share: None, bound: &[], poison: false }
    }
}

/// An open device with its pipelines: what everything that runs needs.
#[derive(Clone, Copy)]
pub struct Context<'a> {
    /// The device.
    pub gpu: &'a Gpu,
    /// Its compiled kernels.
    pub pipelines: &'a Pipelines,
}

/// Slots and pinned tensors of a program.
struct Memory {
    slots: Vec<wgpu::Buffer>,
    pinned: HashMap<TensorId, wgpu::Buffer>,
}

struct Step {
    pipeline: Arc<wgpu::ComputePipeline>,
    bind_group: wgpu::BindGroup,
    groups: (u32, u32),
    flops: u64,
    /// Takes [`DIGITS`].
    immediates: bool,
    /// Runs only when weights have changed.
    prepares: bool,
}

impl Step {
    fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline);
        pass.set_bind_group(0, &self.bind_group, &[]);
        if self.immediates {
            pass.set_immediates(0, bytemuck::cast_slice(&DIGITS));
        }
        pass.dispatch_workgroups(self.groups.0, self.groups.1, 1);
    }

    /// Submits it alone and waits.
    fn run_alone(&self, gpu: &Gpu) -> Result<()> {
        let mut encoder = gpu.device.create_command_encoder(&Default::default());
        self.encode(&mut encoder.begin_compute_pass(&Default::default()));
        gpu.queue.submit([encoder.finish()]);
        gpu.wait()
    }
}

/// A plan compiled for a device.
pub struct Program {
    plan: Plan,
    memory: Arc<Memory>,
    steps: Vec<Step>,
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
    pub fn compile(
        Context { gpu, pipelines }: Context,
        plan: Plan,
        flat: &FlatBuffers,
        options: CompileOptions,
    ) -> Result<Program> {
        let memory = match options.share {
            Some(other) => other.memory.clone(),
            None => Arc::new(Memory::allocate(gpu, &plan, &options)?),
        };
        let made = pipelines.prepare(gpu, &plan.dispatches)?;
        let uniforms = upload_uniforms(gpu, &plan)?;
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
                let (buffer, offset, bytes) = locate(&plan, &memory, flat, options.weights, *id)?;
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
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(Error::Device(format!("binding the plan: {e}")));
        }
        let (version, changes_weights) = (flat.version.clone(), plan.changes_weights());
        let prepared = AtomicU64::new(0);
        Ok(Program { plan, memory, steps, version, prepared, changes_weights })
    }

    /// The plan it was made from.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Submits the whole plan; returns without waiting for it.
    ///
    /// # Errors
    /// [`Error::Device`] if the device reported a fault.
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
        Ok(Ticket(last))
    }

    /// The steps of the run that begins: all of them if weights have changed since
    /// the last one, else without those that prepare them.
    fn due(&self) -> Vec<&Step> {
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
            gpu.queue.write_buffer(buffer, 0, bytes);
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
    pub fn read(&self, gpu: &Gpu, ids: &[TensorId]) -> Result<Vec<Vec<f32>>> {
        let ranges: Vec<_> = ids
            .iter()
            .map(|id| {
                let info = &self.plan.tensors[id.index()];
                let buffer = self.memory.pinned.get(id).ok_or_else(|| {
                    Error::shape("read", format!("{} is not kept by this plan", info.name))
                })?;
                Ok((buffer, 0, info.bytes()))
            })
            .collect::<Result<_>>()?;
        let raw = gpu.read(&ranges)?;
        let float = |(id, bytes): (&TensorId, &Vec<u8>)| -> Vec<f32> {
            match self.plan.tensors[id.index()].dtype {
                DType::F16 => state::widen(bytes),
                _ => bytemuck::pod_collect_to_vec(bytes),
            }
        };
        Ok(ids.iter().zip(&raw).map(float).collect())
    }
}

impl Memory {
    fn allocate(gpu: &Gpu, plan: &Plan, options: &CompileOptions) -> Result<Memory> {
        let mut memory = Memory { slots: Vec::new(), pinned: HashMap::new() };
        for (id, PinnedTensor(buffer)) in options.bound {
            let info = &plan.tensors[id.index()];
            if buffer.size() != info.bytes() {
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
            memory.slots.push(gpu.storage_buffer(&format!("slot {i}"), *bytes)?);
        }
        for d in &plan.dispatches {
            for (_, id, _) in &d.bindings {
                let info = &plan.tensors[id.index()];
                let own = matches!(info.storage, Storage::Pinned | Storage::Prepared);
                if own && !memory.pinned.contains_key(id) {
                    memory.pinned.insert(*id, gpu.storage_buffer(&info.name, info.bytes())?);
                }
            }
        }
        if options.poison {
            let float = |id: &TensorId| plan.tensors[id.index()].dtype != DType::U32;
            let pinned = memory.pinned.iter().filter(|(id, _)| float(id)).map(|(_, b)| b);
            for buffer in memory.slots.iter().chain(pinned) {
                let nan = vec![0xff; buffer.size() as usize];
                gpu.queue.write_buffer(buffer, 0, &nan);
            }
        }
        Ok(memory)
    }
}

/// Buffer, offset and bytes of a tensor. Parameters lie where `flat`'s layout
/// has them: a plan of 32 bits may run on weights that also have a packed copy.
fn locate<'a>(
    plan: &Plan,
    memory: &'a Memory,
    flat: &'a FlatBuffers,
    weights: FlatKind,
    id: TensorId,
) -> Result<(&'a wgpu::Buffer, u64, u64)> {
    let info = &plan.tensors[id.index()];
    let missing = || Error::Device(format!("{} has no buffer", info.name));
    let parameter = |kind, p: usize| {
        let (chunk, offset) = *flat.layout().places.get(p).ok_or_else(missing)?;
        let buffer = flat.chunk(kind, chunk).ok_or_else(missing)?;
        Ok((buffer, offset as u64 * info.dtype.bytes(), info.bytes()))
    };
    match info.storage {
        Storage::Slot => {
            let place = plan.slots.of.get(&id).ok_or_else(missing)?;
            Ok((&memory.slots[place.slot], place.offset, info.bytes()))
        }
        Storage::Pinned | Storage::Prepared => {
            Ok((memory.pinned.get(&id).ok_or_else(missing)?, 0, info.bytes()))
        }
        Storage::Param(p) if info.dtype == DType::F16 => {
            parameter(weights.half().ok_or_else(missing)?, p)
        }
        Storage::Param(p) => parameter(weights, p),
        Storage::ParamGrad(p) => parameter(FlatKind::Grads, p),
        Storage::Flat(kind, chunk) => {
            Ok((flat.chunk(kind, chunk).ok_or_else(missing)?, 0, info.bytes()))
        }
    }
}

fn upload_uniforms(gpu: &Gpu, plan: &Plan) -> Result<wgpu::Buffer> {
    let mut bytes = vec![0u8; plan.dispatches.len().max(1) * UNIFORM_ALIGN];
    for (i, d) in plan.dispatches.iter().enumerate() {
        bytes[i * UNIFORM_ALIGN..][..d.params.len()].copy_from_slice(&d.params);
    }
    let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
    let buffer = gpu.guarded_buffer("parameters of all dispatches", bytes.len() as u64, usage)?;
    gpu.queue.write_buffer(&buffer, 0, &bytes);
    Ok(buffer)
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
