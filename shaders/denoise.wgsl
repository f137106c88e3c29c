// One sampling step from x_t to x_{t-1}, in place. An invocation owns one
// block: four consecutive elements of one image. coefs holds, in order: kind
// (0 DDPM, 1 DDIM), predicts_x0, clip, sqrt(1/abar) | sqrt(1/abar - 1), coef1,
// coef2, sqrt(abar') | dir, sigma.
{% include "common.wgsl" %}
{% include "philox.wgsl" %}
{% from "blocks.wgsl" import load, store %}

struct Params {
    n: u32, len: u32, blocks: u32, c: u32, wide: u32, stream: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<{{ T }}>;            // [n, h, w, c]
@group(0) @binding(2) var<storage, read> prediction: array<{{ "f32" if WIDE else T }}>;  // [n, h, w, wide]
@group(0) @binding(3) var<storage, read> coefs: array<vec4<f32>>;            // [4]
{% if GIVEN %}
@group(0) @binding(5) var<storage, read> given: array<{{ T }}>;              // [n, h, w, c]
{% else %}
@group(0) @binding(4) var<storage, read> rng: array<vec4<u32>>;              // seed low, seed high, step, first image
{% endif %}
{% if KEEP_X0 %}
@group(0) @binding(6) var<storage, read_write> x0: array<{{ T }}>;           // [n, h, w, c]
{% endif %}

{{ load("x", VEC) }}
{{ load("prediction", VEC, WIDE) }}
{{ store("x", VEC) }}
{% if GIVEN %}
{{ load("given", VEC) }}
{% endif %}
{% if KEEP_X0 %}
{{ store("x0", VEC) }}
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.blocks {
        return;
    }
    let image = index / p.blocks;
    let block = index % p.blocks;
    let start = image * p.len + block * 4u;
    let last = image * p.len + p.len - 1u;

    let a = coefs[0];
    let b = coefs[1];
    let sigma = coefs[2].y;
    let now = load_x(start, last);
    var clean = load_prediction(start, last);
    if a.y == 0.0 {
        clean = a.w * now - b.x * clean;
    }
    if a.z != 0.0 {
        clean = clamp(clean, vec4<f32>(-1.0), vec4<f32>(1.0));
    }
    var next = b.y * clean + b.z * now;
    if a.x != 0.0 {
        let eps = (a.w * now - clean) / b.x;
        next = b.w * clean + coefs[2].x * eps;
    }
    if sigma != 0.0 {
{% if GIVEN %}
        next += sigma * load_given(start, last);
{% else %}
        next += sigma * image_normal4(rng[0], p.stream, image, block);
{% endif %}
    }
    store_x(start, last, next);
{% if KEEP_X0 %}
    store_x0(start, last, clean);
{% endif %}
}
