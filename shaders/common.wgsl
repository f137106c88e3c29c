// Helpers that most kernels include. Dispatches are folded to two dimensions
// because a device guarantees only 65,535 workgroups per dimension.

// Flat workgroup number of a folded dispatch.
fn flat_group(group: vec3<u32>, groups: vec3<u32>) -> u32 {
    return group.y * groups.x + group.x;
}

fn sigmoid(v: f32) -> f32 {
    return 1.0 / (1.0 + exp(-v));
}

fn sigmoid4(v: vec4<f32>) -> vec4<f32> {
    return 1.0 / (1.0 + exp(-v));
}

// Derivative of SiLU(v) = v * sigmoid(v).
fn silu_slope4(v: vec4<f32>) -> vec4<f32> {
    let s = sigmoid4(v);
    return s * (1.0 + v * (1.0 - s));
}
