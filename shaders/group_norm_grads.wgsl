// Group norm backward, the gradients: dx = a * dz + k1 + k2 * (x - pivot) with
// the constants of group_norm_sums.wgsl, laid out like group_norm_apply.wgsl;
// the workgroups after those add dgamma and dbeta over the images.
// INPLACE: dx holds dy before.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, one, store %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    n: u32, hw: u32, c: u32, quads: u32, pixels: u32, runs: u32, apply_groups: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF_X) }}>;                  // [n, hw, c]
{% if not INPLACE %}
@group(0) @binding(2) var<storage, read> dy: array<{{ element(VEC, HALF_Y) }}>;                 // [n, hw, c]
{% endif %}
@group(0) @binding(3) var<storage, read> coefs: array<{{ T }}>;              // [n, 4, c]: a, b, offset, rstd
@group(0) @binding(4) var<storage, read> sums: array<{{ T }}>;               // [n, 4, c]: dgamma, dbeta of the image, k1, k2
@group(0) @binding(5) var<storage, read_write> dx: array<{{ element(VEC, HALF_X) }}>;           // [n, hw, c]
@group(0) @binding(6) var<storage, read_write> dweight: array<f32>;          // [c]
@group(0) @binding(7) var<storage, read_write> dbias: array<f32>;            // [c]

{{ half_functions(HALF_X or HALF_Y) }}
{{ load("x", VEC, half=HALF_X) }}
{{ load("dx" if INPLACE else "dy", VEC, half=HALF_Y) }}
{{ load("coefs", VEC) }}
{{ load("sums", VEC) }}
{{ one("sums", VEC) }}
{{ store("dx", VEC, ACC, half=HALF_X) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let id = flat_group(group, groups);
    let index = id * 64u + local;
    // A branch around this loop made llvmpipe of Mesa 22.3 ten times slower,
    // hence a loop of no turns.
    let channel = index - p.apply_groups * 64u;
    let images = select(0u, p.n, id >= p.apply_groups && channel < p.c);
    var dgamma = 0.0;
    var dbeta = 0.0;
    for (var n = 0u; n < images; n += 1u) {
        dgamma += one_sums(n * 4u * p.c + channel);
        dbeta += one_sums((n * 4u + 1u) * p.c + channel);
    }
    if images > 0u {
        dweight[channel] = dgamma{% if ACC_PARAMS %} + dweight[channel]{% endif %};
        dbias[channel] = dbeta{% if ACC_PARAMS %} + dbias[channel]{% endif %};
    }
    if id >= p.apply_groups || index >= p.n * p.runs * p.quads {
        return;
    }
    let c = (index % p.quads) * 4u;
    let run = index / p.quads;
    let n = run / p.runs;
    let image = n * p.hw * p.c;
    let begin = (run % p.runs) * p.pixels;
    let end = min(p.hw, begin + p.pixels);
    let pivot = load_x(image, c);
    let base = n * 4u * p.c;
    let a = load_coefs(base, c);
{% if SILU %}
    let b = load_coefs(base + p.c, c);
{% endif %}
    let k1 = load_sums(base + 2u * p.c, c);
    let k2 = load_sums(base + 3u * p.c, c);
    for (var at = image + begin * p.c; at < image + end * p.c; at += p.c) {
        let t = load_x(at, c) - pivot;
        let dz = load_{{ "dx" if INPLACE else "dy" }}(at, c){% if SILU %} * silu_slope4(a * t + b){% endif %};
        store_dx(at, c, a * dz + k1 + k2 * t);
    }
}
