// dlogits[n, i] = dy[n] * (softmax(logits[n, ..])[i] - [i is the label]), the
// softmax being exp(logits[n, i] - logits[n, label] - loss[n]).
{% include "common.wgsl" %}

struct Params {
    n: u32, k: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;             // [n, k]
@group(0) @binding(2) var<storage, read> labels: array<u32>;             // [n]
@group(0) @binding(3) var<storage, read> loss: array<f32>;               // [n]
@group(0) @binding(4) var<storage, read> dy: array<f32>;                 // [n]
@group(0) @binding(5) var<storage, read_write> dlogits: array<f32>;      // [n, k]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.k {
        return;
    }
    let row = index / p.k;
    let label = min(labels[row], p.k - 1u);
    let share = exp((logits[index] - logits[row * p.k + label]) - loss[row]);
    let d = dy[row] * (share - select(0.0, 1.0, index % p.k == label));
    dlogits[index] = d{% if ACC %} + dlogits[index]{% endif %};
}
