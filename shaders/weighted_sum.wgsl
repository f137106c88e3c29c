// y = sum of v[i] * w[i], by one workgroup.
{% include "common.wgsl" %}
{% from "group_sum.wgsl" import group_sum %}

struct Params {
    len: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> v: array<f32>;              // [len]
@group(0) @binding(2) var<storage, read> w: array<f32>;              // [len]
@group(0) @binding(3) var<storage, read_write> y: array<f32>;        // [1]

{{ group_sum("f32") }}

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) local: u32) {
    var sum = 0.0;
    for (var i = local; i < p.len; i += 64u) {
        sum += v[i] * w[i];
    }
    let total = group_sum(local, sum);
    if local == 0u {
        y[0] = total;
    }
}
