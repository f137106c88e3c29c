//! One launch of a kernel, as a plan holds it.

use super::tensor::TensorId;
use crate::kernel::{Access, Kernel};

/// Work of a dispatch: arithmetic, and bytes if everything bound were touched once.
#[derive(Debug, Clone, Copy, Default)]
pub struct Cost {
    /// Floating-point operations (a multiply-add counts two).
    pub flops: u64,
    /// Bytes bound.
    pub bytes: u64,
}

/// One kernel launch.
#[derive(Debug, Clone)]
pub struct Dispatch {
    /// The kernel.
    pub kernel: &'static Kernel,
    /// Its variant.
    pub defines: Vec<i64>,
    /// Its uniform block.
    pub params: Vec<u8>,
    /// Binding number, tensor, use.
    pub bindings: Vec<(u32, TensorId, Access)>,
    /// Bit n set: binding n, which is only read, is bound as writable, since this launch
    /// or another of the same variant writes elsewhere in its buffer.
    pub writable_reads: u32,
    /// Workgroups in all.
    pub groups: u64,
    /// Which node it belongs to.
    pub label: String,
    /// Its work.
    pub cost: Cost,
}
