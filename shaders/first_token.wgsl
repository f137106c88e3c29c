// y[n] = x[n, 0], or with BACKWARD the transpose: y[n, 0] = x[n] and zero for
// all other tokens, which ACC leaves as they are. An invocation owns four
// channels of one token that is written.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}

struct Params {
    n: u32, tokens: u32, c: u32, quads: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ T }}>;              // [n, tokens, c], BACKWARD [n, c]
@group(0) @binding(2) var<storage, read_write> y: array<{{ T }}>;        // the other

{{ load("x", VEC) }}
{{ store("y", VEC, ACC) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    let c = (index % p.quads) * 4u;
    let row = index / p.quads;
{% if BACKWARD and not ACC %}
    if row >= p.n * p.tokens {
        return;
    }
    var v = vec4<f32>(0.0);
    if row % p.tokens == 0u {
        v = load_x(row / p.tokens * p.c, c);
    }
    store_y(row * p.c, c, v);
{% else %}
    if row >= p.n {
        return;
    }
{% if BACKWARD %}
    store_y(row * p.tokens * p.c, c, load_x(row * p.c, c));
{% else %}
    store_y(row * p.c, c, load_x(row * p.tokens * p.c, c));
{% endif %}
{% endif %}
}
