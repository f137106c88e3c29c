// Adds the splits of conv2d_dw.wgsl in order and writes (or accumulates) the
// weight's and the bias's gradient.
{% include "common.wgsl" %}

struct Params {
    weights: u32, biases: u32, splits: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partial: array<f32>;            // [splits, weights + biases]
@group(0) @binding(2) var<storage, read_write> dweight: array<f32>;      // [weights]
@group(0) @binding(3) var<storage, read_write> dbias: array<f32>;        // [biases]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    let len = p.weights + p.biases;
    if i >= len {
        return;
    }
    var sum = 0.0;
    for (var s = 0u; s < p.splits; s += 1u) {
        sum += partial[s * len + i];
    }
    if i < p.weights {
        dweight[i] = sum{% if ACC %} + dweight[i]{% endif %};
    } else {
        let b = i - p.weights;
        dbias[b] = sum{% if ACC %} + dbias[b]{% endif %};
    }
}
