//! The state of a lowering: what ops ask, and what they add to it.

use super::choice::Chooser;
use super::dispatch::{Cost, Dispatch};
use super::launch::{Launch, place};
use super::notes::Notes;
use super::tensor::{DType, FlatKind, Storage, TensorId, TensorInfo};
use crate::caps::Caps;
use crate::kernel::{Access, Binding, Defines, Kernel, Params};
use crate::tuning::Tuning;
use crate::{Error, Result};
use std::any::Any;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// Where a launch puts its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The tensor that receives it.
    pub tensor: TensorId,
    /// The result is added to what the tensor holds; otherwise it is assigned.
    pub add: bool,
}

impl Target {
    /// A tensor that the result is assigned to.
    pub fn assign(tensor: TensorId) -> Self {
        Target { tensor, add: false }
    }
}

/// The lowering of one graph in progress.
pub struct Lower {
    /// Device properties that decide variants.
    pub caps: Caps,
    pub(super) tensors: Vec<TensorInfo>,
    pub(super) dispatches: Vec<Dispatch>,
    pub(super) chooser: Chooser,
    pub(super) grads: HashMap<TensorId, TensorId>,
    /// Values recomputed in the backward walk replace the first ones.
    pub(super) recomputed: HashMap<TensorId, TensorId>,
    pub(super) requires_grad: HashSet<TensorId>,
    pub(super) accumulate_params: bool,
    pub(super) freeze_params: bool,
    /// What ops tell each other about tensors.
    pub(super) notes: Notes,
    /// Bytes that [`Lower::prepared`] may still keep.
    pub(super) prepared_room: u64,
    pub(super) label: String,
    pub(super) node_index: u32,
}

/// What [`Lower::keep_prepared`] lets a plan keep.
const PREPARED_BYTES: u64 = 256 << 20;

impl Lower {
    /// Makes parameter gradients add to what is there (micro-batches after
    /// the first).
    pub fn accumulate_params(&mut self, on: bool) {
        self.accumulate_params = on;
    }

    /// Forms no parameter gradients in the backward walk.
    pub fn freeze_params(&mut self) {
        self.freeze_params = true;
    }

    /// For plans that run many times between changes of the weights: keeps what ops
    /// compute from the weights alone, up to a quarter of a GiB.
    pub fn keep_prepared(&mut self) {
        self.prepared_room = PREPARED_BYTES;
    }

    /// Takes `candidate` wherever `op` can choose it. A name that no shape has is
    /// an error of [`super::Plan::new`].
    pub fn force(&mut self, op: &str, candidate: &str) {
        self.chooser.force(op, candidate);
    }

    /// Prefers what `tuning` says to the rules of the ops, instead of what the
    /// capabilities hold.
    pub fn tune(&mut self, tuning: Arc<Tuning>) {
        self.chooser.tune(tuning);
    }

    /// Records the choices of `alternative`, a way that was not taken, so that its
    /// variants can be listed and forced. It must not launch anything.
    pub fn consider<T>(&mut self, alternative: impl FnOnce(&mut Self) -> T) {
        self.chooser.considering = true;
        alternative(self);
        self.chooser.considering = false;
    }

    /// Whether a variant of `op` is forced.
    pub fn is_forced(&self, op: &str) -> bool {
        self.chooser.is_forced(op)
    }

    /// Which of `candidates` (at least one, all of them correct) to run. `op` is one
    /// of [`super::CHOICES`], `shape` what a tuning is looked up by, and `rule` the
    /// index of what is taken when neither the caller nor a tuning says otherwise.
    pub fn choose(
        &mut self,
        op: &'static str,
        shape: &[usize],
        candidates: &[&'static str],
        rule: usize,
    ) -> usize {
        self.chooser.choose(self.node_index as usize, op, shape, candidates, rule)
    }

    /// The tensor that holds `id`'s value at this point of the plan.
    fn value(&self, id: TensorId) -> TensorId {
        self.recomputed.get(&id).copied().unwrap_or(id)
    }

    /// Extents of `id`.
    pub fn shape(&self, id: TensorId) -> &[usize] {
        &self.tensors[id.index()].shape
    }

    /// A number that names the current node, the same in recomputation:
    /// dropout derives its stream from it.
    pub fn node_index(&self) -> u32 {
        self.node_index
    }

    /// Element type of `id`.
    pub fn dtype(&self, id: TensorId) -> DType {
        self.tensors[id.index()].dtype
    }

    /// Whether `id` is stored as half.
    pub fn is_half(&self, id: TensorId) -> bool {
        self.dtype(id) == DType::F16
    }

    /// A scratch tensor of 32-bit floats.
    pub fn temp(&mut self, name: &str, shape: &[usize]) -> TensorId {
        self.temp_as(name, shape, DType::F32)
    }

    /// A tensor of 32-bit floats that the next launch computes from weights alone:
    /// kept between runs where there is room ([`Lower::keep_prepared`]), else scratch.
    pub fn prepared(&mut self, name: &str, shape: &[usize]) -> TensorId {
        let id = self.temp(name, shape);
        let info = &mut self.tensors[id.index()];
        if let Some(room) = self.prepared_room.checked_sub(info.bytes()) {
            self.prepared_room = room;
            info.storage = Storage::Prepared;
        }
        id
    }

    /// A scratch tensor of the shape and type of `like`.
    pub fn temp_like(&mut self, name: &str, like: TensorId) -> TensorId {
        let shape = self.shape(like).to_vec();
        self.temp_as(name, &shape, self.dtype(like))
    }

    fn temp_as(&mut self, name: &str, shape: &[usize], dtype: DType) -> TensorId {
        let name = format!("{}.{name}", self.label);
        self.push_tensor(TensorInfo { name, shape: shape.to_vec(), dtype, storage: Storage::Slot })
    }

    /// Tells those who read or write `id` something about it, see [`Graph::note`](super::Graph::note).
    pub fn note<T: Any + Send + Sync>(&mut self, id: TensorId, note: T) {
        self.notes.set(id, note);
    }

    /// The note of this type on `id`.
    pub fn noted<T: Any + Copy>(&self, id: TensorId) -> Option<T> {
        self.notes.get(id)
    }

    /// A buffer of its own that the host writes or reads: settings, results
    /// that belong to no node.
    pub fn pinned(&mut self, name: &str, shape: &[usize], dtype: DType) -> TensorId {
        let shape = shape.to_vec();
        self.push_tensor(TensorInfo { name: name.into(), shape, dtype, storage: Storage::Pinned })
    }

    /// A whole chunk of a flat buffer, `len` elements long.
    pub fn flat(&mut self, kind: FlatKind, chunk: usize, len: usize) -> TensorId {
        self.push_tensor(TensorInfo {
            name: format!("{kind:?} chunk {chunk}"),
            shape: vec![len],
            dtype: if kind.is_half() { DType::F16 } else { DType::F32 },
            storage: Storage::Flat(kind, chunk),
        })
    }

    /// Names the dispatches that belong to no node.
    pub fn set_label(&mut self, label: &str) {
        self.label = label.into();
    }

    pub(super) fn push_tensor(&mut self, info: TensorInfo) -> TensorId {
        self.tensors.push(info);
        TensorId(self.tensors.len() as u32 - 1)
    }

    /// The gradient that later nodes left for `id`; `None` if none did.
    pub fn grad(&self, id: TensorId) -> Option<TensorId> {
        self.grads.get(&id).copied()
    }

    /// Where to put the gradient of `id`; `None` if nobody wants it. The caller
    /// must write every element.
    pub fn grad_target(&mut self, id: TensorId) -> Option<Target> {
        if !self.requires_grad.contains(&id) {
            return None;
        }
        if let Some(g) = self.grads.get(&id) {
            return Some(Target { tensor: *g, add: true });
        }
        let mut info = self.tensors[id.index()].clone();
        info.name = format!("d {}", info.name);
        let mut add = false;
        info.storage = match info.storage {
            Storage::Param(p) => {
                add = self.accumulate_params;
                info.dtype = DType::F32;
                Storage::ParamGrad(p)
            }
            Storage::Pinned => Storage::Pinned,
            _ => Storage::Slot,
        };
        let g = self.push_tensor(info);
        self.grads.insert(id, g);
        Some(Target { tensor: g, add })
    }

    /// Hands the finished gradient `dy` of a node's output over to input
    /// `id` without a copy, if `id` has none yet; returns whether it did.
    /// Must be the node's last use of `dy`.
    pub fn donate_grad(&mut self, id: TensorId, dy: TensorId) -> bool {
        let free = self.requires_grad.contains(&id)
            && !self.grads.contains_key(&id)
            && self.dtype(id) == self.dtype(dy)
            && self.tensors[id.index()].storage == Storage::Slot
            && self.tensors[dy.index()].storage == Storage::Slot;
        if free {
            self.grads.insert(id, dy);
        }
        free
    }

    /// A tensor stored as half must meet a kernel that reads it as such.
    fn check_type(
        &self,
        kernel: &Kernel,
        defines: &[i64],
        binding: &Binding,
        id: TensorId,
    ) -> std::result::Result<(), String> {
        let t = &self.tensors[id.index()];
        let half = binding.half.is_some_and(|h| kernel.define(defines, h) != 0);
        if half != (t.dtype == DType::F16) {
            let takes = if half { "half" } else { "32-bit" };
            return Err(format!(
                "`{}` takes {takes} elements, but {} is {:?}; cast it",
                binding.name, t.name, t.dtype
            ));
        }
        if half && !t.shape.last().is_some_and(|c| c.is_multiple_of(4)) {
            return Err(format!("{} {:?} cannot be stored as half", t.name, t.shape));
        }
        Ok(())
    }

    /// Emits a dispatch.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the kernel has no such variant, or if the bindings do not
    /// match its description, their element types included.
    pub fn launch<P: Params, D: Defines>(&mut self, launch: Launch<P, D>) -> Result<()> {
        let Launch { kernel, defines, params, bindings, groups, flops } = launch;
        let fail = |detail: String| Error::Kernel { kernel: kernel.name.into(), detail };
        let declared = kernel.has(defines);
        let defines = defines.numbers();
        if !declared {
            let variant = kernel.variant_name(&defines);
            return Err(fail(format!("its defines do not allow the variant `{variant}`")));
        }
        let tensors = place(kernel, &defines, bindings).map_err(fail)?;
        let mut bindings = Vec::new();
        let mut bytes = 0;
        for (number, binding) in kernel.active_bindings(&defines) {
            let id = tensors[number as usize - 1].ok_or_else(|| {
                let variant = kernel.variant_name(&defines);
                fail(format!("`{}` is not given, but variant `{variant}` needs it", binding.name))
            })?;
            let id = self.value(id);
            self.check_type(kernel, &defines, &binding, id).map_err(fail)?;
            let passes = if binding.access == Access::ReadWrite { 2 } else { 1 };
            bytes += passes * self.tensors[id.index()].bytes();
            bindings.push((number, id, binding.access));
        }
        self.dispatches.push(Dispatch {
            kernel,
            defines,
            params: bytemuck::bytes_of(&params).to_vec(),
            bindings,
            writable_reads: 0,
            groups,
            label: self.label.clone(),
            cost: Cost { flops, bytes },
        });
        Ok(())
    }
}
