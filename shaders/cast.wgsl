// y = x in the other precision, or with ACC y += x. An invocation owns four
// elements; both precisions hold them in one array element.
{% include "common.wgsl" %}
{% from "storage.wgsl" import element, half_functions %}
{% from "quad.wgsl" import load, store %}

struct Params {
    len: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(1, HALF_X) }}>;          // [len]
@group(0) @binding(2) var<storage, read_write> y: array<{{ element(1, HALF_Y) }}>;    // [len]

{{ half_functions(1) }}
{{ load("x", 1, half=HALF_X) }}
{{ store("y", 1, ACC, half=HALF_Y) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = (flat_group(group, groups) * 64u + local) * 4u;
    if i < p.len {
        store_y(0u, i, load_x(0u, i));
    }
}
