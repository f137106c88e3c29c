// y[pixel, :] = [a[pixel, :], b[pixel, :]]. An invocation owns one quad of
// channels of a or of b and copies `pixels` consecutive pixels of it.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    len: u32, ca: u32, cb: u32, quads: u32, quads_a: u32, pixels: u32, runs: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<{{ element(VEC, HALF) }}>;              // [len, ca]
@group(0) @binding(2) var<storage, read> b: array<{{ element(VEC, HALF) }}>;              // [len, cb]
@group(0) @binding(3) var<storage, read_write> y: array<{{ element(VEC, HALF) }}>;        // [len, ca + cb]

{{ half_functions(HALF) }}
{{ load("a", VEC, "p.ca", HALF) }}
{{ load("b", VEC, "p.cb", HALF) }}
{% if HALF %}
fn store_y(base: u32, c: u32, count: u32, v: vec4<f32>) {
    y[(base + c) >> 2u] = pack4(v);
}
{% elif VEC %}
fn store_y(base: u32, c: u32, count: u32, v: vec4<f32>) {
    y[(base + c) >> 2u] = v;
}
{% else %}
fn store_y(base: u32, c: u32, count: u32, v: vec4<f32>) {
    for (var k = 0u; k < min(4u, count); k += 1u) {
        y[base + c + k] = v[k];
    }
}
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.runs * p.quads {
        return;
    }
    let quad = index % p.quads;
    let begin = (index / p.quads) * p.pixels;
    let end = min(p.len, begin + p.pixels);
    if quad < p.quads_a {
        let c = quad * 4u;
        for (var i = begin; i < end; i += 1u) {
            store_y(i * (p.ca + p.cb), c, p.ca - c, load_a(i * p.ca, c));
        }
    } else {
        let c = (quad - p.quads_a) * 4u;
        for (var i = begin; i < end; i += 1u) {
            store_y(i * (p.ca + p.cb), p.ca + c, p.cb - c, load_b(i * p.cb, c));
        }
    }
}
