// Group norm's second pass: y = a * (x - pivot) + b, or its SiLU, with the
// coefficients of group_norm_stats.wgsl. An invocation owns four channels of
// `pixels` consecutive pixels.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    n: u32, hw: u32, c: u32, quads: u32, pixels: u32, runs: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF_X) }}>;              // [n, hw, c]
@group(0) @binding(2) var<storage, read> coefs: array<{{ T }}>;          // [n, 4, c]
@group(0) @binding(3) var<storage, read_write> y: array<{{ element(VEC, HALF_Y) }}>;        // [n, hw, c]

{{ half_functions(HALF_X or HALF_Y) }}
{{ load("x", VEC, half=HALF_X) }}
{{ load("coefs", VEC) }}
{{ store("y", VEC, half=HALF_Y) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.runs * p.quads {
        return;
    }
    let c = (index % p.quads) * 4u;
    let run = index / p.quads;
    let n = run / p.runs;
    let image = n * p.hw * p.c;
    let begin = (run % p.runs) * p.pixels;
    let end = min(p.hw, begin + p.pixels);
    let pivot = load_x(image, c);
    let a = load_coefs(n * 4u * p.c, c);
    let b = load_coefs((n * 4u + 1u) * p.c, c);
    for (var at = image + begin * p.c; at < image + end * p.c; at += p.c) {
        let z = a * (load_x(at, c) - pivot) + b;
        store_y(at, c, z{% if SILU %} * sigmoid4(z){% endif %});
    }
}
