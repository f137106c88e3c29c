// Inverted dropout: y = x / (1 - p) where the element's random bits, read as a
// fraction of one, are at least p, and 0 elsewhere. The bits are a function of
// seed, step, image and node, so the backward pass computes the same mask
// again from the same kernel. An invocation owns four elements of one image.
{% include "common.wgsl" %}
{% include "philox.wgsl" %}
{% from "image_quads.wgsl" import load, store %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    n: u32, len: u32, quads: u32, stream: u32,
    probability: f32, scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF) }}>;              // [n, len]
@group(0) @binding(2) var<storage, read> rng: array<vec4<u32>>;          // seed low, seed high, step, first image
@group(0) @binding(3) var<storage, read_write> y: array<{{ element(VEC, HALF) }}>;        // [n, len]

{{ half_functions(HALF) }}
{{ load("x", VEC, half=HALF) }}
{% if ACC %}
{{ load("y", VEC, half=HALF) }}
{% endif %}
{{ store("y", VEC, HALF) }}

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
    let state = rng[0];
    let bits = philox(vec4<u32>(quad, state.w + image, state.z, p.stream), state.xy);
    let fraction = vec4<f32>(bits >> vec4<u32>(8u)) * 5.9604644775390625e-8;
    let kept = select(vec4<f32>(0.0), vec4<f32>(p.scale), fraction >= vec4<f32>(p.probability));
    let v = load_x(start, last) * kept;
    store_y(start, last, v{% if ACC %} + load_y(start, last){% endif %});
}
