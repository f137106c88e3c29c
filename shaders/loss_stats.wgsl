// sums[0] += sum over images of weights[n] * term[n], and sums[1 + q] of those
// in quartile q. One invocation per sum, so that each adds up in order.
{% include "common.wgsl" %}

struct Params {
    n: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> term: array<f32>;               // [n]
{% if WEIGHTED %}
@group(0) @binding(2) var<storage, read> weights: array<f32>;            // [n]
{% endif %}
@group(0) @binding(3) var<storage, read> quartile: array<u32>;           // [n]
@group(0) @binding(4) var<storage, read_write> sums: array<f32>;         // [5]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let slot = flat_group(group, groups) * 64u + local;
    if slot >= 5u {
        return;
    }
    var sum = 0.0;
    for (var i = 0u; i < p.n; i += 1u) {
        if slot == 0u || quartile[i] + 1u == slot {
            sum += term[i]{% if WEIGHTED %} * weights[i]{% endif %};
        }
    }
    sums[slot] += sum;
}
