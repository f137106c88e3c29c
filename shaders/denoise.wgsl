// One sampling step from x_t to its neighbour, in place. An invocation owns
// one quad: four consecutive elements of one image. coefs holds, in order:
// kind (0 DDPM, 1 DDIM), predicts_x0, clip, sqrt(1/abar) | sqrt(1/abar - 1),
// coef1, coef2, sqrt(abar') | dir, sigma, guidance, offset and | slope of the
// log variance, scale of classifier-free guidance.
{% include "common.wgsl" %}
{% include "philox.wgsl" %}
{% from "image_quads.wgsl" import load, store %}

struct Params {
    n: u32, len: u32, quads: u32, c: u32, wide: u32, stream: u32, learned: u32, unconditional: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> x: array<{{ T }}>;            // [n, h, w, c]
@group(0) @binding(2) var<storage, read> prediction: array<{{ "f32" if WIDE else T }}>;  // [n, h, w, wide], [2n, h, w, wide] if p.unconditional
@group(0) @binding(3) var<storage, read> coefs: array<vec4<f32>>;            // [4]
{% if GIVEN %}
@group(0) @binding(5) var<storage, read> given: array<{{ T }}>;              // [n, h, w, c]
{% else %}
@group(0) @binding(4) var<storage, read> rng: array<vec4<u32>>;              // seed low, seed high, step, first image
{% endif %}
{% if GUIDED %}
@group(0) @binding(6) var<storage, read> gradient: array<{{ T }}>;           // [n, h, w, c]
{% endif %}
{% if KEEP_X0 %}
@group(0) @binding(7) var<storage, read_write> x0: array<{{ T }}>;           // [n, h, w, c]
{% endif %}

{{ load("x", VEC) }}
{{ load("prediction", VEC, WIDE) }}
{% if WIDE %}
{{ load("prediction", VEC, WIDE, "variance", "p.c") }}
{{ load("prediction", VEC, WIDE, "unconditional", "p.n * (p.len / p.c) * p.wide") }}
{% endif %}
{{ store("x", VEC) }}
{% if GIVEN %}
{{ load("given", VEC) }}
{% endif %}
{% if GUIDED %}
{{ load("gradient", VEC) }}
{% endif %}
{% if KEEP_X0 %}
{{ store("x0", VEC) }}
{% endif %}

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

    let a = coefs[0];
    let b = coefs[1];
    let c = coefs[2];
    let d = coefs[3];
    let now = load_x(start, last);
    var clean = load_prediction(start, last);
    // Logarithm of the variance above the one the coefficients are made for.
    var log_variance = vec4<f32>(0.0);
{% if WIDE %}
    if p.unconditional != 0u {
        let without = load_unconditional(start, last);
        clean = without + d.y * (clean - without);
    }
    if p.learned != 0u && d.x != 0.0 {
        log_variance = c.w + d.x * load_variance(start, last);
    }
{% endif %}
    if a.y == 0.0 {
        clean = a.w * now - b.x * clean;
    }
    if a.z != 0.0 {
        clean = clamp(clean, vec4<f32>(-1.0), vec4<f32>(1.0));
    }
    var next = b.y * clean + b.z * now;
{% if GUIDED %}
    let slope = c.z * load_gradient(start, last);
    next += exp(log_variance) * slope;
{% endif %}
    if a.x != 0.0 {
        var eps = (a.w * now - clean) / b.x;
{% if GUIDED %}
        eps -= slope;
        clean += b.x * slope;
{% endif %}
        next = b.w * clean + c.x * eps;
    }
    if c.y != 0.0 {
        let sigma = c.y * exp(0.5 * log_variance);
{% if GIVEN %}
        next += sigma * load_given(start, last);
{% else %}
        next += sigma * image_normal4(rng[0], p.stream, image, quad);
{% endif %}
    }
    store_x(start, last, next);
{% if KEEP_X0 %}
    store_x0(start, last, clean);
{% endif %}
}
