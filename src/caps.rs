//! What a device offers, as plain data: kernels are chosen and memory is planned by
//! this alone, so both work without a device.

use crate::tuning::{Forced, Tuning};
use std::sync::Arc;

/// What a device offers to kernel selection and planning.
#[derive(Debug, Clone)]
pub struct Caps {
    /// A software implementation (lavapipe, SwiftShader, WARP).
    pub software: bool,
    /// The driver loads once for all lanes where an index comes from immediates
    /// (`shaders/uniform.wgsl`), and offers them.
    pub uniform_loads: bool,
    /// Kernels access storage by 64 bits ([`crate::kernel::widen`]): a software driver
    /// that offers such integers.
    pub wide_accesses: bool,
    /// The driver compiles a kernel when it is first launched, one at a time, not when
    /// the pipeline is made: llvmpipe.
    pub compiles_at_launch: bool,
    /// Cooperative matrices of halves, where the device has what their kernels need.
    pub coop: Option<Coop>,
    /// Reductions begin within subgroups (`shaders/subgroup.wgsl`): a GPU that offers
    /// them. To software drivers they are nothing but loops.
    pub subgroups: bool,
    /// Largest bytes of one storage binding.
    pub max_binding: u64,
    /// Largest bytes of one buffer.
    pub max_buffer: u64,
    /// Required alignment of storage binding offsets in bytes.
    pub storage_alignment: u64,
    /// Workgroups per dispatch dimension.
    pub max_groups: u32,
    /// Variants that were measured to be the fastest. Nobody but who opened the
    /// device puts them here, see [`crate::tuning`].
    pub tuning: Option<Arc<Tuning>>,
    /// Variants that whoever opened the device asks for, before any tuning or rule.
    pub forced: Forced,
    /// For tests: guard words lie before and after every tensor, and a program fails if
    /// a run changes one. Tensors then share no memory.
    pub guarded: bool,
}

impl Default for Caps {
    /// The limits that every WebGPU device has.
    fn default() -> Self {
        Caps {
            software: false,
            uniform_loads: false,
            wide_accesses: false,
            compiles_at_launch: false,
            coop: None,
            subgroups: false,
            max_binding: 128 << 20,
            max_buffer: 256 << 20,
            storage_alignment: 256,
            max_groups: 65_535,
            tuning: None,
            forced: Forced::default(),
            guarded: false,
        }
    }
}

/// Cooperative matrices of halves with sums in 32 bits (VK_KHR_cooperative_matrix,
/// Metal's simdgroup matrices).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Coop {
    /// Matrices of 8 x 8.
    pub size8: bool,
    /// Matrices of 16 x 16.
    pub size16: bool,
    /// Invocations of the largest subgroup, 8 to 64.
    pub subgroup: u32,
}

impl Coop {
    /// Workgroup sizes of cooperative kernels: four subgroups of 8 to 64.
    pub const INVOCATIONS: [u32; 4] = [32, 64, 128, 256];

    /// Whether there are matrices of `size` x `size`.
    pub fn has(self, size: u32) -> bool {
        match size {
            8 => self.size8,
            16 => self.size16,
            _ => false,
        }
    }

    /// Invocations of a workgroup that has four subgroups or more.
    pub fn invocations(self) -> u32 {
        4 * self.subgroup
    }
}

/// "1.50 GiB", for messages.
pub fn human_bytes(bytes: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", units[unit]) }
}
