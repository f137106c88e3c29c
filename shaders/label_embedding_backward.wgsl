// dtable[k, d] = sum of dy[n, d] over the images n of class k, in order: a
// gather per element instead of a scatter, so no atomics and the same bits on
// every run. Classes that do not occur get zero.
{% include "common.wgsl" %}

struct Params {
    n: u32, classes: u32, dim: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> labels: array<u32>;             // [n]
@group(0) @binding(2) var<storage, read> dy: array<f32>;                 // [n, dim]
@group(0) @binding(3) var<storage, read_write> dtable: array<f32>;       // [classes, dim]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.classes * p.dim {
        return;
    }
    let row = i / p.dim;
    var sum = 0.0;
    for (var n = 0u; n < p.n; n += 1u) {
        if min(labels[n], p.classes - 1u) == row {
            sum += dy[n * p.dim + i % p.dim];
        }
    }
    dtable[i] = sum{% if ACC %} + dtable[i]{% endif %};
}
