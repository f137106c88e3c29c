//! Memory: tensors share buffers.
//!
//! Tensors alive at different times may lie in the same bytes, and tensors alive at
//! the same time side by side in one buffer. What speaks against more is that wgpu
//! tracks usage per buffer: a dispatch may not read one range of a buffer and write
//! another, unless what it reads is bound as writable, too ([`Dispatch::writable_reads`]),
//! which takes a pipeline of its own. So this is done where memory asks for it only.
//! One tensor a buffer would need up to 1.47 times the live set on the published
//! networks, since a buffer made for a large image holds one small one just as well.

use super::dispatch::Dispatch;
use super::packing::{Block, live_peak, pack};
use super::tensor::{Storage, TensorId, TensorInfo};
use crate::caps::Caps;
use crate::kernel::Access;
use std::collections::{BTreeMap, BTreeSet, HashMap};

/// Alignment of tensors in a buffer: the largest that a device may ask for.
const ALIGN: u64 = 256;

/// Bytes of guard words before and after each tensor on a device that asks for them
/// ([`Caps::guarded`]); a multiple of every element's size.
pub(crate) const GUARD: u64 = ALIGN;

/// What slots may waste before reads are bound as writable: a tenth of the live set, or little.
const WASTE: u64 = 10;
const LITTLE: u64 = 1 << 19;

/// Options of planning.
#[derive(Debug, Clone, Copy, Default)]
pub struct PlanOptions {
    /// Give every tensor its own slot and overwrite none (to find aliasing faults).
    pub no_reuse: bool,
    /// Bind what is read as writable wherever that saves memory, however little, instead
    /// of where more than a tenth is wasted (to find faults in this).
    pub writable_reads: bool,
}

/// A tensor's place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which buffer.
    pub slot: usize,
    /// Its first byte there.
    pub offset: u64,
}

/// Assignment of tensors to slots: buffers that they share.
#[derive(Debug, Clone, Default)]
pub struct Slots {
    /// Bytes of each slot.
    pub sizes: Vec<u64>,
    /// The place of each tensor that lives in one.
    pub of: HashMap<TensorId, Place>,
    /// Largest sum of bytes alive at once.
    pub lower_bound: u64,
    /// Bytes of guard words before and after each tensor; 0 but in tests.
    pub guard: u64,
}

impl Slots {
    /// Where a dispatch reads and writes one slot, binds as writable all that it reads in
    /// slots ([`Dispatch::writable_reads`]). The other dispatches of its variant do the
    /// same, so that few pipelines are made twice.
    pub(super) fn bind_writable(&self, dispatches: &mut [Dispatch]) {
        let slot = |id: &TensorId| self.of.get(id).map(|place| place.slot);
        let variant = |d: &Dispatch| (d.kernel.name, d.defines.clone());
        let mixes = |d: &&Dispatch| {
            let slots = |written: bool| {
                let of = d.bindings.iter().filter(move |b| (b.2 != Access::Read) == written);
                of.filter_map(|b| slot(&b.1)).collect::<BTreeSet<_>>()
            };
            !slots(true).is_disjoint(&slots(false))
        };
        let mixing: BTreeSet<_> = dispatches.iter().filter(mixes).map(variant).collect();
        let all = |d: &Dispatch| !binds_twice(d) && mixing.contains(&variant(d));
        for d in dispatches.iter_mut().filter(|d| all(d)) {
            let read = d.bindings.iter().filter(|b| b.2 == Access::Read && slot(&b.1).is_some());
            d.writable_reads = read.fold(0, |bits, b| bits | 1 << b.0);
        }
    }
}

/// Whether two bindings of `d` are one tensor; writable ranges must not overlap.
fn binds_twice(d: &Dispatch) -> bool {
    let mut seen = BTreeSet::new();
    d.bindings.iter().any(|b| !seen.insert(b.1))
}

/// The tensors that live in slots, with first and last use, and their true sizes.
/// What a dispatch writes is a foe of what it reads; with `writable_reads` only where it
/// binds a tensor twice.
fn blocks(
    tensors: &[TensorInfo],
    dispatches: &[Dispatch],
    writable_reads: bool,
) -> BTreeMap<TensorId, Block> {
    let mut found: BTreeMap<TensorId, Block> = BTreeMap::new();
    for (at, d) in dispatches.iter().enumerate() {
        for (_, id, _) in &d.bindings {
            let info = &tensors[id.index()];
            if info.storage == Storage::Slot {
                let foes = Vec::new();
                let fresh = Block { first: at, last: at, bytes: info.bytes(), foes };
                found.entry(*id).or_insert(fresh).last = at;
            }
        }
    }
    let index: HashMap<TensorId, u32> = found.keys().copied().zip(0..).collect();
    for d in dispatches.iter().filter(|d| !writable_reads || binds_twice(d)) {
        let of = |written: bool| {
            let wanted = d.bindings.iter().filter(move |b| (b.2 != Access::Read) == written);
            wanted.map(|b| b.1).filter(|id| index.contains_key(id)).collect::<BTreeSet<_>>()
        };
        let (read, written) = (of(false), of(true));
        for (r, w) in read.iter().flat_map(|r| written.iter().map(move |w| (r, w))) {
            for (one, other) in [(r, w), (w, r)] {
                if let Some(block) = found.get_mut(one) {
                    block.foes.push(index[other]);
                }
            }
        }
    }
    found
}

/// Places all tensors; no slot has more than [`Caps::max_buffer`] bytes unless a tensor
/// has. With [`Caps::guarded`] every tensor has its own slot, with guard words around it.
pub fn assign_slots(
    tensors: &[TensorInfo],
    dispatches: &[Dispatch],
    caps: &Caps,
    options: PlanOptions,
) -> Slots {
    let of = |writable_reads| -> (Vec<TensorId>, Vec<Block>) {
        blocks(tensors, dispatches, writable_reads).into_iter().unzip()
    };
    let aligned = |mut blocks: Vec<Block>| {
        for b in &mut blocks {
            b.bytes = b.bytes.max(1).next_multiple_of(ALIGN);
        }
        blocks
    };
    let (ids, strict) = of(false);
    let lower_bound = live_peak(&strict);
    let guard = if caps.guarded { GUARD } else { 0 };
    let (sizes, places): (Vec<u64>, Vec<(usize, u64)>) = if options.no_reuse || caps.guarded {
        // Guard words follow the last byte, so nothing is rounded up.
        let sizes = strict.iter().map(|b| b.bytes.max(4).next_multiple_of(4) + 2 * guard);
        (sizes.collect(), (0..strict.len()).map(|i| (i, guard)).collect())
    } else {
        let strict = aligned(strict);
        let mut packing = pack(&strict, caps.max_buffer);
        let bearable = if options.writable_reads { 0 } else { (lower_bound / WASTE).max(LITTLE) };
        if packing.total() > lower_bound + bearable {
            let open = pack(&aligned(of(true).1), caps.max_buffer);
            if open.total() < packing.total() {
                packing = open;
            }
        }
        (packing.buffers, packing.places)
    };
    let places = places.into_iter().map(|(slot, offset)| Place { slot, offset });
    Slots { sizes, of: ids.into_iter().zip(places).collect(), lower_bound, guard }
}

/// Independent check of an assignment: replays the dispatches and reports the first
/// read of a tensor that was overwritten or never written, writable bindings of one
/// dispatch that overlap, and a slot that a dispatch binds both for reading and as writable.
pub fn verify_slots(
    tensors: &[TensorInfo],
    dispatches: &[Dispatch],
    slots: &Slots,
) -> Result<(), String> {
    // What each slot holds: offset, end and tensor.
    let mut holds: Vec<Vec<(u64, u64, TensorId)>> = vec![Vec::new(); slots.sizes.len()];
    for d in dispatches {
        // Place, end, whether it is bound as writable, and the tensor if it is written.
        let mut bound: Vec<(Place, u64, bool, Option<TensorId>)> = Vec::new();
        for (number, id, access) in &d.bindings {
            let info = &tensors[id.index()];
            let Some(place) = slots.of.get(id).copied() else { continue };
            let (slot, end) = (place.slot, place.offset + info.bytes());
            let fault = |what: String| Err(format!("{}: {} {what}", d.label, info.name));
            if slots.sizes.get(slot).is_none_or(|size| *size < end) {
                return fault(format!("lies beyond the end of slot {slot}"));
            }
            if !place.offset.is_multiple_of(ALIGN) {
                return fault(format!("lies at {}, which no binding can begin at", place.offset));
            }
            let written = *access != Access::Read;
            let writable = written || d.writable_reads >> number & 1 == 1;
            for (p, e, w, _) in bound.iter().filter(|b| b.0.slot == slot) {
                let apart = *e <= place.offset || end <= p.offset;
                if *w != writable {
                    return fault(format!("shares slot {slot}, which is read and written"));
                }
                // What is only read may be bound twice.
                if !apart && (writable || (*p, *e) != (place, end)) {
                    return fault(format!("shares bytes of slot {slot} with another binding"));
                }
            }
            if *access != Access::Write && !holds[slot].contains(&(place.offset, end, *id)) {
                return fault(format!("is read, but slot {slot} does not hold it"));
            }
            bound.push((place, end, writable, written.then_some(*id)));
        }
        for (place, end, _, id) in bound {
            if let Some(id) = id {
                let held = &mut holds[place.slot];
                held.retain(|h| h.1 <= place.offset || end <= h.0);
                held.push((place.offset, end, id));
            }
        }
    }
    Ok(())
}
