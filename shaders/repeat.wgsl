// y = times copies of x one after the other. An invocation owns four
// consecutive elements of x.
{% include "common.wgsl" %}

struct Params {
    len: u32, times: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;              // [len]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;        // [times, len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let start = (flat_group(group, groups) * 64u + local) * 4u;
    for (var i = start; i < min(start + 4u, p.len); i += 1u) {
        let v = x[i];
        for (var copy = 0u; copy < p.times; copy += 1u) {
            y[copy * p.len + i] = v;
        }
    }
}
