// y = x, EACH vec4 an invocation: what memory gives in and out.
{% include "common.wgsl" %}

struct Params {
    quads: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;         // [4 quads]
@group(0) @binding(2) var<storage, read_write> y: array<vec4<f32>>;   // [4 quads]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let first = flat_group(group, groups) * {{ 64 * EACH }}u + local;
{% for i in range(EACH) %}
    if first + {{ 64 * i }}u < p.quads { y[first + {{ 64 * i }}u] = x[first + {{ 64 * i }}u]; }
{% endfor %}
}
