// y = max(x, 0), or with BACKWARD y = dy where x > 0 and zero elsewhere, which
// ACC adds to y. An invocation owns four elements; without VEC the last may be
// fewer.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}

struct Params {
    len: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ T }}>;              // [len]
{% if BACKWARD %}
@group(0) @binding(2) var<storage, read> dy: array<{{ T }}>;             // [len]
{% endif %}
@group(0) @binding(3) var<storage, read_write> y: array<{{ T }}>;        // [len]

{{ load("x", VEC, "p.len") }}
{% if BACKWARD %}
{{ load("dy", VEC, "p.len") }}
{% endif %}
{{ store("y", VEC, ACC, "p.len") }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (flat_group(group, groups) * 64u + local) * 4u;
    if i >= p.len {
        return;
    }
{% if BACKWARD %}
    store_y(0u, i, select(load_dy(0u, i), vec4<f32>(0.0), load_x(0u, i) <= vec4<f32>(0.0)));
{% else %}
    // Not max, which would hide a NaN.
    let v = load_x(0u, i);
    store_y(0u, i, select(v, vec4<f32>(0.0), v < vec4<f32>(0.0)));
{% endif %}
}
