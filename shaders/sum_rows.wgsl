// y[b, c] = sum over r of x[b, r, c], in order.
{% include "common.wgsl" %}
{% from "quad.wgsl" import one %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    batch: u32, rows: u32, channels: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(0, HALF_X) }}>;              // [batch, rows, channels]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;        // [batch, channels]

{{ half_functions(HALF_X) }}
{{ one("x", 0, HALF_X) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.batch * p.channels {
        return;
    }
    let first = (i / p.channels) * p.rows * p.channels + i % p.channels;
    var sum = 0.0;
    for (var r = 0u; r < p.rows; r += 1u) {
        sum += one_x(first + r * p.channels);
    }
    y[i] = sum{% if ACC %} + y[i]{% endif %};
}
