//! Cooperative matrices: which of them an adapter has that kernels can use.

use crate::caps::Coop;

/// What the kernels need, all of it.
pub(super) const FEATURES: wgpu::Features = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
    .union(wgpu::Features::SHADER_F16)
    .union(wgpu::Features::SUBGROUP);

/// Whether experimental features may be used: where [`FEATURES`] are.
pub(super) fn permission(coop: Option<Coop>) -> wgpu::ExperimentalFeatures {
    match coop {
        // SAFETY: wgpu calls cooperative matrices experimental because they may have faults
        // that safe code can reach. Only this crate's own kernels use them; these
        // stay within their workgroup memory by construction, run all cooperative
        // operations in uniform control flow, and only in shapes that the adapter lists.
        Some(_) => unsafe { wgpu::ExperimentalFeatures::enabled() },
        None => wgpu::ExperimentalFeatures::disabled(),
    }
}

/// What `adapter` offers, if it offers everything that is needed.
pub(super) fn offered(adapter: &wgpu::Adapter) -> Option<Coop> {
    use wgpu::CooperativeScalarType::{F16, F32};
    if !adapter.features().contains(FEATURES) {
        return None;
    }
    let shapes = adapter.cooperative_matrix_properties();
    let has = |size: u32| {
        shapes.iter().any(|s| {
            [s.m_size, s.n_size, s.k_size] == [size; 3] && (s.ab_type, s.cr_type) == (F16, F32)
        })
    };
    let subgroup = adapter.get_info().subgroup_max_size;
    let coop = Coop { size8: has(8), size16: has(16), subgroup };
    ((coop.size8 || coop.size16) && matches!(subgroup, 8 | 16 | 32 | 64)).then_some(coop)
}
