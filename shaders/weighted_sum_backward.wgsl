// d = dy * other: the gradient of one factor of a weighted sum.
{% include "common.wgsl" %}

struct Params {
    len: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<f32>;             // [1]
@group(0) @binding(2) var<storage, read> other: array<f32>;          // [len]
@group(0) @binding(3) var<storage, read_write> d: array<f32>;        // [len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i < p.len {
        d[i] = dy[0] * other[i]{% if ACC %} + d[i]{% endif %};
    }
}
