// y[n, d] = table[labels[n], d]; labels past the last class read the last one.
{% include "common.wgsl" %}

struct Params {
    n: u32, classes: u32, dim: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> labels: array<u32>;         // [n]
@group(0) @binding(2) var<storage, read> table: array<f32>;          // [classes, dim]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;        // [n, dim]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.n * p.dim {
        return;
    }
    let label = min(labels[i / p.dim], p.classes - 1u);
    y[i] = table[label * p.dim + i % p.dim];
}
