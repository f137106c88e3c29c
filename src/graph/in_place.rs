//! Results that overwrite an operand.
//!
//! Where a launch is the last use of an operand and makes a result of the same size
//! element by element, the result may take the operand's place. WebGPU does not let
//! one launch bind a buffer for reading and for writing, so this is a variant of the
//! kernel that binds once ([`Binding::overwritten_by`](crate::kernel::Binding)). For
//! memory, both are one tensor from then on.

use super::dispatch::Dispatch;
use super::tensor::{Storage, TensorId, TensorInfo};
use crate::kernel::Access;
use std::collections::HashMap;

/// First and last dispatch that bind a tensor.
type Lives = HashMap<TensorId, (usize, usize)>;

/// Switches dispatches to their in-place variant where that is possible; the result's
/// name disappears from the plan.
pub(super) fn work_in_place(tensors: &[TensorInfo], dispatches: &mut [Dispatch]) {
    let mut lives = Lives::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id, _) in &d.bindings {
            lives.entry(*id).or_insert((at, at)).1 = at;
        }
    }
    let mut renamed: HashMap<TensorId, TensorId> = HashMap::new();
    for (at, d) in dispatches.iter_mut().enumerate() {
        for binding in &mut d.bindings {
            binding.1 = renamed.get(&binding.1).copied().unwrap_or(binding.1);
        }
        let Some((operand, result)) = candidate(d, at, tensors, &lives) else { continue };
        overwrite(d, operand, result);
        renamed.insert(result, operand);
        // The operand now lives as long as the result would have.
        let last = lives[&result].1;
        lives.entry(operand).and_modify(|life| life.1 = last);
    }
}

/// An operand that dies in dispatch `at`, and the result that may overwrite it.
fn candidate(
    d: &Dispatch,
    at: usize,
    tensors: &[TensorInfo],
    lives: &Lives,
) -> Option<(TensorId, TensorId)> {
    let variant = in_place_defines(d);
    if variant == d.defines || !(d.kernel.allows)(&variant) {
        return None;
    }
    let bound = |name: &str| {
        let number = d.kernel.bindings.iter().position(|b| b.name == name)? as u32 + 1;
        d.bindings.iter().find(|b| b.0 == number)
    };
    let fits = |operand: TensorId, result: TensorId| {
        let [o, r] = [operand, result].map(|id| &tensors[id.index()]);
        let alone = |id| d.bindings.iter().filter(|b| b.1 == id).count() == 1;
        (o.storage, r.storage) == (Storage::Slot, Storage::Slot)
            && (o.dtype, o.bytes()) == (r.dtype, r.bytes())
            && lives.get(&operand).is_some_and(|life| life.1 == at)
            && lives.get(&result).is_some_and(|life| life.0 == at)
            && alone(operand)
            && alone(result)
    };
    d.kernel.bindings.iter().find_map(|b| {
        let operand = bound(b.name)?.1;
        let (_, result, access) = *bound(b.overwritten_by?)?;
        (access == Access::Write && fits(operand, result)).then_some((operand, result))
    })
}

/// The defines of the variant of `d` that works in place; those of `d` where it does so
/// already, or the kernel knows no such variant.
fn in_place_defines(d: &Dispatch) -> Vec<i64> {
    let named = d.kernel.defines.iter().zip(&d.defines);
    named.map(|(name, value)| if *name == "INPLACE" { 1 } else { *value }).collect()
}

/// Makes `d` compute `result` in the place of `operand`.
fn overwrite(d: &mut Dispatch, operand: TensorId, result: TensorId) {
    d.defines = in_place_defines(d);
    d.bindings.retain(|b| b.1 != operand);
    for b in &mut d.bindings {
        if b.1 == result {
            (b.1, b.2) = (operand, Access::ReadWrite);
        }
    }
}
