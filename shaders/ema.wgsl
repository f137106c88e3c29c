// ema += rate * (weights - ema) over one flat chunk; nothing where the
// gradient norm is infinite. An invocation owns four elements.
{% include "common.wgsl" %}

struct Params {
    quads: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weights: array<vec4<f32>>;          // [quads]
@group(0) @binding(2) var<storage, read_write> ema: array<vec4<f32>>;        // [quads]
@group(0) @binding(3) var<storage, read> rate: array<f32>;                   // [1]
@group(0) @binding(4) var<storage, read> norm: array<u32>;                   // [1], bits of a float

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.quads || (norm[0] & 0x7f800000u) == 0x7f800000u {
        return;
    }
    ema[i] += rate[0] * (weights[i] - ema[i]);
}
