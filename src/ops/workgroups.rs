//! What all kernels keep to: the size of workgroups, and the length of loops.

/// Invocations per workgroup of the one-dimensional kernels.
pub(crate) const GROUP: u64 = 64;

/// Loop turns that an invocation may take, nested loops included: llvmpipe of
/// Mesa 22.3 silently leaves all loops after 65,535 turns.
pub(crate) const LOOP_TURNS: u64 = 32_768;

/// Workgroups for `invocations`.
pub(crate) fn groups(invocations: u64) -> u64 {
    invocations.div_ceil(GROUP)
}
