//! Memory: tensors alive at different times share a slot.
//!
//! A slot is a whole buffer, since wgpu tracks usage per buffer: two tensors
//! of one dispatch may never lie in the same one.

use super::{Dispatch, Storage, TensorId, TensorInfo};
use std::collections::HashMap;

/// Assignment of tensors to slots.
#[derive(Debug, Clone, Default)]
pub struct Slots {
    /// Bytes of each slot.
    pub sizes: Vec<u64>,
    /// The slot of each tensor that lives in one.
    pub of: HashMap<TensorId, usize>,
    /// Largest sum of bytes alive at once.
    pub lower_bound: u64,
}

/// First and last dispatch that touch a tensor.
#[derive(Debug, Clone, Copy)]
struct Interval {
    id: TensorId,
    first: usize,
    last: usize,
    bytes: u64,
}

fn intervals(tensors: &[TensorInfo], dispatches: &[Dispatch]) -> Vec<Interval> {
    let mut found: HashMap<TensorId, Interval> = HashMap::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id, _) in &d.bindings {
            let info = &tensors[id.index()];
            if info.storage == Storage::Slot {
                let fresh = Interval { id: *id, first: at, last: at, bytes: info.bytes() };
                found.entry(*id).or_insert(fresh).last = at;
            }
        }
    }
    let mut list: Vec<_> = found.into_values().collect();
    list.sort_by_key(|i| i.id);
    list
}

/// Largest sum of tensors alive at one dispatch.
fn lower_bound(list: &[Interval], dispatches: usize) -> u64 {
    let mut change = vec![0i64; dispatches + 1];
    for i in list {
        change[i.first] += i.bytes as i64;
        change[i.last + 1] -= i.bytes as i64;
    }
    let mut alive = 0;
    change
        .iter()
        .map(|c| {
            alive += c;
            alive
        })
        .max()
        .unwrap_or(0) as u64
}

/// Greedy by size: the largest tensors choose first, and each goes into the
/// slot that is free during its whole life and wastes or grows the least.
pub fn assign_slots(tensors: &[TensorInfo], dispatches: &[Dispatch], no_reuse: bool) -> Slots {
    let mut list = intervals(tensors, dispatches);
    let bound = lower_bound(&list, dispatches.len());
    list.sort_by_key(|i| (std::cmp::Reverse(i.bytes), i.first, i.id));
    let mut slots = Slots { lower_bound: bound, ..Default::default() };
    let mut tenants: Vec<Vec<Interval>> = Vec::new();
    for i in list {
        // Sizes fall, so every existing slot is large enough: the tightest
        // one is the last that is free.
        let free = |t: &Vec<Interval>| t.iter().all(|o| o.last < i.first || i.last < o.first);
        let slot = if no_reuse { None } else { tenants.iter().rposition(free) };
        let slot = slot.unwrap_or_else(|| {
            tenants.push(Vec::new());
            slots.sizes.push(i.bytes.max(4));
            tenants.len() - 1
        });
        tenants[slot].push(i);
        slots.of.insert(i.id, slot);
    }
    slots
}

/// Independent check of an assignment: replays the dispatches and reports
/// the first read of a tensor whose slot was overwritten or never written,
/// and any dispatch that binds one slot twice.
pub fn verify_slots(
    tensors: &[TensorInfo],
    dispatches: &[Dispatch],
    slots: &Slots,
) -> Result<(), String> {
    use crate::kernel::Access;
    let mut holds: HashMap<usize, TensorId> = HashMap::new();
    for d in dispatches {
        let mut bound: HashMap<usize, TensorId> = HashMap::new();
        for (_, id, access) in &d.bindings {
            let info = &tensors[id.index()];
            let Some(slot) = slots.of.get(id).copied() else { continue };
            if slots.sizes[slot] < info.bytes() {
                return Err(format!("{}: slot {slot} is too small for {}", d.label, info.name));
            }
            if bound.insert(slot, *id).is_some_and(|other| other != *id) {
                return Err(format!("{}: two tensors in slot {slot}", d.label));
            }
            if *access != Access::Write && holds.get(&slot) != Some(id) {
                return Err(format!(
                    "{}: {} is read but its slot {slot} holds something else",
                    d.label, info.name
                ));
            }
        }
        for (_, id, access) in &d.bindings {
            if let (Some(slot), true) = (slots.of.get(id), *access != Access::Read) {
                holds.insert(*slot, *id);
            }
        }
    }
    Ok(())
}
