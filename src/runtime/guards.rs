//! Guard words: what lies before and after every tensor in tests, and the check that no
//! run has changed it. Native programs alone check them. See [`Caps::guarded`](crate::caps::Caps).
#![cfg_attr(target_arch = "wasm32", allow(dead_code))]

use super::guard_words::WORD;
use super::memory::Location;
use crate::gpu::Gpu;
use crate::graph::{GUARD, Plan, Storage, TensorId};
use crate::kernel::Access;
use crate::{Error, Result};
use std::collections::BTreeMap;

/// Words that no kernel may change.
struct Guard {
    tensor: TensorId,
    /// Where they lie, as in "after".
    side: &'static str,
    buffer: wgpu::Buffer,
    offset: u64,
    bytes: u64,
    /// What each of them is.
    word: u32,
}

/// All guard words around the tensors of one program.
pub(super) struct Guards(Vec<Guard>);

impl Guards {
    /// Those around everything that `plan` binds, as `locate` finds it.
    pub fn of<'a>(
        plan: &Plan,
        locate: impl Fn(TensorId) -> Result<Location<'a>>,
    ) -> Result<Guards> {
        let mut guards = BTreeMap::new();
        if plan.slots.guard > 0 {
            for (_, id, _) in plan.dispatches.iter().flat_map(|d| &d.bindings) {
                for guard in around(*id, plan.tensors[id.index()].storage, locate(*id)?) {
                    if guard.bytes > 0 {
                        guards.insert((*id, guard.side), guard);
                    }
                }
            }
        }
        Ok(Guards(guards.into_values().collect()))
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Waits for submitted work and looks whether all of them are as they were.
    ///
    /// # Errors
    /// [`Error::Kernel`] with the kernels that write the tensor whose guard words were
    /// changed.
    pub async fn check(&self, gpu: &Gpu, plan: &Plan) -> Result<()> {
        let ranges: Vec<_> = self.0.iter().map(|g| (&g.buffer, g.offset, g.bytes)).collect();
        for (guard, bytes) in self.0.iter().zip(gpu.read_async(&ranges).await?) {
            let words: Vec<u32> = bytemuck::pod_collect_to_vec(&bytes);
            let changed = words.iter().filter(|word| **word != guard.word).count();
            if changed > 0 {
                let info = &plan.tensors[guard.tensor.index()];
                return Err(Error::Kernel {
                    kernel: writers(plan, guard.tensor),
                    detail: format!(
                        "{changed} guard words {} {} {:?} were changed",
                        guard.side, info.name, info.shape
                    ),
                });
            }
        }
        Ok(())
    }
}

/// The guard words around one tensor. A parameter lies in a larger buffer: what follows
/// it up to the next one stays zero, and only the buffer's ends are guard words.
fn around(tensor: TensorId, storage: Storage, place: Location) -> Vec<Guard> {
    let Location { buffer, offset, bytes } = place;
    let guard = |side, offset, bytes, word| Guard {
        tensor,
        side,
        buffer: buffer.clone(),
        offset,
        bytes,
        word,
    };
    let last = buffer.size() - GUARD;
    match storage {
        Storage::Param(_) | Storage::ParamGrad(_) => {
            let end = offset + bytes;
            vec![
                guard("at the start of the buffer of", 0, GUARD, WORD),
                guard("right after", end, end.next_multiple_of(GUARD).min(last) - end, 0),
                guard("at the end of the buffer of", last, GUARD, WORD),
            ]
        }
        _ => vec![guard("before", 0, GUARD, WORD), guard("after", last, GUARD, WORD)],
    }
}

/// Names of the kernels that write `tensor`.
fn writers(plan: &Plan, tensor: TensorId) -> String {
    let writes = |b: &(u32, TensorId, Access)| b.1 == tensor && b.2 != Access::Read;
    let mut names: Vec<&str> = (plan.dispatches.iter())
        .filter(|d| d.bindings.iter().any(writes))
        .map(|d| d.kernel.name)
        .collect();
    names.sort_unstable();
    names.dedup();
    names.join(" or ")
}
