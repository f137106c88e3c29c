//! The plan: dispatches in order, with a place in memory for every tensor.

use super::choice::Choice;
use super::dispatch::Dispatch;
use super::in_place::work_in_place;
use super::lower::Lower;
use super::memory::{PlanOptions, Slots, assign_slots};
use super::nodes::Graph;
use super::params::ParamLayout;
use super::tensor::{Storage, TensorId, TensorInfo};
use crate::caps::{Caps, human_bytes};
use crate::kernel::Access;
use crate::{Error, Result};
use std::collections::HashSet;

/// A static program: built once, replayed for every step.
#[derive(Debug, Clone)]
pub struct Plan {
    /// All tensors, temporaries and gradients included.
    pub tensors: Vec<TensorInfo>,
    /// Launches in order.
    pub dispatches: Vec<Dispatch>,
    /// Slot sizes and who lives where.
    pub slots: Slots,
    /// Places of the parameters in the flat buffers.
    pub params: ParamLayout,
    /// Which variants were taken, and why.
    pub choices: Vec<Choice>,
}

/// Memory and work of a plan.
#[derive(Debug, Clone, Copy)]
pub struct PlanReport {
    /// Bytes of all slots.
    pub slots: u64,
    /// Number of slots: buffers that tensors share.
    pub buffers: usize,
    /// Bytes of inputs, outputs, state, and what is kept of the weights in other
    /// form.
    pub pinned: u64,
    /// Bytes of one 32-bit copy of the parameters.
    pub params: u64,
    /// Bytes of a packed copy of those that are read as half; training keeps it
    /// beside the 32-bit ones.
    pub params_half: u64,
    /// Bytes of the parameters that inference keeps: those that are read as
    /// half in that form only.
    pub params_inference: u64,
    /// Largest sum of tensors alive at once: no assignment to slots can need less.
    pub lower_bound: u64,
    /// Largest single binding.
    pub largest_binding: u64,
    /// Launches of a run, without those that only prepare weights.
    pub dispatches: usize,
    /// Floating-point operations.
    pub flops: u64,
}

impl Plan {
    /// Plans a finished lowering. `keep` names the tensors that the host
    /// reads afterwards; launches that lead to none of them (nor to
    /// parameters, pinned state or flat buffers) are removed.
    ///
    /// # Errors
    /// [`Error::Memory`] if a tensor exceeds what the device can bind,
    /// [`Error::Config`] if a variant was forced that does not exist.
    pub fn new(
        graph: &Graph,
        lower: Lower,
        keep: &[TensorId],
        options: PlanOptions,
    ) -> Result<Plan> {
        let caps = lower.caps.clone();
        let Lower { mut tensors, dispatches, chooser, .. } = lower;
        let choices = chooser.finish().map_err(Error::Config)?;
        for id in keep {
            if tensors[id.index()].storage == Storage::Slot {
                tensors[id.index()].storage = Storage::Pinned;
            }
        }
        let mut dispatches = live_dispatches(&tensors, dispatches, keep);
        if !options.no_reuse {
            work_in_place(&tensors, &mut dispatches);
        }
        let params = graph.param_layout(caps.max_binding.min(caps.max_buffer));
        let slots = assign_slots(&tensors, &dispatches, &caps, options);
        slots.bind_writable(&mut dispatches);
        let plan = Plan { tensors, dispatches, slots, params, choices };
        plan.check_limits(&caps)?;
        Ok(plan)
    }

    fn check_limits(&self, caps: &Caps) -> Result<()> {
        for d in &self.dispatches {
            for (_, id, _) in &d.bindings {
                let t = &self.tensors[id.index()];
                if t.bytes() > caps.max_binding {
                    return Err(Error::Memory(format!(
                        "{} {:?} needs a binding of {}, the device allows {}; use a smaller batch",
                        t.name,
                        t.shape,
                        human_bytes(t.bytes()),
                        human_bytes(caps.max_binding)
                    )));
                }
            }
        }
        Ok(())
    }

    /// Whether a launch only computes what follows from the weights, and is left out
    /// until they change.
    pub fn prepares(&self, d: &Dispatch) -> bool {
        let prepared = |id: TensorId| self.tensors[id.index()].storage == Storage::Prepared;
        d.bindings.iter().any(|(_, id, access)| *access != Access::Read && prepared(*id))
    }

    /// Whether running it changes weights.
    pub fn changes_weights(&self) -> bool {
        let flat = |id: TensorId| matches!(self.tensors[id.index()].storage, Storage::Flat(..));
        let changes = |d: &Dispatch| {
            d.bindings.iter().any(|(_, id, access)| *access != Access::Read && flat(*id))
        };
        self.dispatches.iter().any(changes)
    }

    /// Memory and work, known before anything is allocated.
    pub fn report(&self) -> PlanReport {
        let used: HashSet<TensorId> =
            self.dispatches.iter().flat_map(|d| d.bindings.iter().map(|b| b.1)).collect();
        let pinned = used.iter().map(|id| &self.tensors[id.index()]);
        PlanReport {
            slots: self.slots.sizes.iter().sum(),
            buffers: self.slots.sizes.len(),
            pinned: pinned
                .filter(|t| matches!(t.storage, Storage::Pinned | Storage::Prepared))
                .map(TensorInfo::bytes)
                .sum(),
            params: self.params.bytes(),
            params_half: self.params.packed_bytes(),
            params_inference: self.params.inference_bytes(),
            lower_bound: self.slots.lower_bound,
            largest_binding: used
                .iter()
                .map(|id| self.tensors[id.index()].bytes())
                .max()
                .unwrap_or(0),
            dispatches: self.dispatches.iter().filter(|d| !self.prepares(d)).count(),
            flops: self.dispatches.iter().map(|d| d.cost.flops).sum(),
        }
    }
}

/// Drops launches whose results nobody needs.
fn live_dispatches(
    tensors: &[TensorInfo],
    dispatches: Vec<Dispatch>,
    keep: &[TensorId],
) -> Vec<Dispatch> {
    let mut needed: HashSet<TensorId> = keep.iter().copied().collect();
    let mut live: Vec<Dispatch> = Vec::with_capacity(dispatches.len());
    for d in dispatches.into_iter().rev() {
        let wanted = d.bindings.iter().any(|(_, id, access)| {
            *access != Access::Read
                && (needed.contains(id) || tensors[id.index()].storage != Storage::Slot)
        });
        if wanted {
            needed.extend(d.bindings.iter().filter(|b| b.2 != Access::Write).map(|b| b.1));
            live.push(d);
        }
    }
    live.reverse();
    live
}
