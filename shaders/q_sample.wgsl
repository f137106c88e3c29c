// x_t = coefs[n, 0] * x0 + coefs[n, 1] * noise, the noise drawn here (and
// written out) or, with GIVEN, read. An invocation owns one quad: four
// consecutive elements of one image.
{% include "common.wgsl" %}
{% include "philox.wgsl" %}
{% from "image_quads.wgsl" import load, store %}

struct Params {
    n: u32, len: u32, quads: u32, stream: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x0: array<{{ T }}>;             // [n, len]
@group(0) @binding(2) var<storage, read> coefs: array<vec2<f32>>;        // [n]: sqrt(abar), sqrt(1 - abar)
{% if GIVEN %}
@group(0) @binding(4) var<storage, read> given: array<{{ T }}>;          // [n, len]
{% else %}
@group(0) @binding(3) var<storage, read> rng: array<vec4<u32>>;          // seed low, seed high, step, first image
@group(0) @binding(5) var<storage, read_write> noise: array<{{ T }}>;    // [n, len]
{% endif %}
@group(0) @binding(6) var<storage, read_write> x_t: array<{{ T }}>;      // [n, len]

{{ load("x0", VEC) }}
{% if GIVEN %}
{{ load("given", VEC) }}
{% else %}
{{ store("noise", VEC) }}
{% endif %}
{{ store("x_t", VEC) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.quads {
        return;
    }
    let image = index / p.quads;
    let quad = index % p.quads;
    let start = image * p.len + quad * 4u;
    let last = image * p.len + p.len - 1u;
{% if GIVEN %}
    let z = load_given(start, last);
{% else %}
    let z = image_normal4(rng[0], p.stream, image, quad);
    store_noise(start, last, z);
{% endif %}
    let c = coefs[image];
    store_x_t(start, last, c.x * load_x0(start, last) + c.y * z);
}
