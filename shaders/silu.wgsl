// y = silu(x), or with BACKWARD y = dy * silu'(x), which ACC adds to y.
// A workgroup owns `turns` runs of 64 quads; without VEC the last quad of all
// may be short.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    len: u32, turns: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF) }}>;              // [len]
{% if BACKWARD %}
@group(0) @binding(2) var<storage, read> dy: array<{{ element(VEC, HALF) }}>;             // [len]
{% endif %}
@group(0) @binding(3) var<storage, read_write> y: array<{{ element(VEC, HALF) }}>;        // [len]

{{ half_functions(HALF) }}
{{ load("x", VEC, "p.len", HALF) }}
{% if BACKWARD %}
{{ load("dy", VEC, "p.len", HALF) }}
{% endif %}
{{ store("y", VEC, ACC, "p.len", HALF) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = (flat_group(group, groups) * 64u * p.turns + local) * 4u;
    let end = min(p.len, first + 256u * p.turns);
    for (var i = first; i < end; i += 256u) {
        let v = load_x(0u, i);
{% if BACKWARD %}
        store_y(0u, i, load_dy(0u, i) * silu_slope4(v));
{% else %}
        store_y(0u, i, v * sigmoid4(v));
{% endif %}
    }
}
