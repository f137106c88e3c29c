// partial[n, s] = scale * sum over split s of image n of the elements' terms of
// the variational bound, in bits; with LIKELIHOOD followed by the squared
// errors of the predicted image and of the noise. A workgroup owns one split
// and walks it in quads.
{% include "common.wgsl" %}
{% from "image_quads.wgsl" import load %}
{% from "group_sum.wgsl" import group_sum, group_place %}
{% from "subgroup.wgsl" import subgroup_inputs %}

struct Params {
    n: u32, len: u32, quads: u32, splits: u32, quads_per_split: u32, c: u32, wide: u32,
    predicts_x0: u32, clip: u32, scale: f32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> out: array<{{ "f32" if LEARNED else T }}>;  // [n, h, w, wide]
@group(0) @binding(2) var<storage, read> x0: array<{{ T }}>;                         // [n, h, w, c]
@group(0) @binding(3) var<storage, read> x_t: array<{{ T }}>;                        // [n, h, w, c]
@group(0) @binding(4) var<storage, read> coefs: array<vec4<f32>>;                    // [n, 2]
{% if LIKELIHOOD %}
@group(0) @binding(5) var<storage, read> noise: array<{{ T }}>;                      // [n, h, w, c]
{% endif %}
@group(0) @binding(6) var<storage, read_write> partial: array<f32>;                  // [n, splits], [n, splits, 3] with LIKELIHOOD

{% include "vlb_terms.wgsl" %}

{{ load("out", VEC, LEARNED) }}
{% if LEARNED %}
{{ load("out", VEC, LEARNED, "variance", "p.c") }}
{% endif %}
{{ load("x0", VEC) }}
{{ load("x_t", VEC) }}
{% if LIKELIHOOD %}
{{ load("noise", VEC) }}
{% endif %}
{% set SUM = "vec3<f32>" if LIKELIHOOD else "f32" %}
{{ group_sum(SUM, SUBGROUP) }}

fn sum4(v: vec4<f32>) -> f32 {
    return v.x + v.y + v.z + v.w;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32{{ subgroup_inputs(SUBGROUP) }}) {
    let id = flat_group(group, groups);
    let inside = id < p.n * p.splits;
    let image = min(id / p.splits, p.n - 1u);
    let a = coefs[2u * image];
    let b = coefs[2u * image + 1u];
    let first = image * p.len;
    let last = first + p.len - 1u;
    let begin = id % p.splits * p.quads_per_split;
    let end = select(0u, min(p.quads, begin + p.quads_per_split), inside);
    var sum = {{ SUM }}(0.0);
    for (var quad = begin + local; quad < end; quad += 64u) {
        let start = first + quad * 4u;
{% if VEC %}
        let used = vec4<f32>(1.0);
{% else %}
        let used = select(vec4<f32>(0.0), vec4<f32>(1.0), start + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last));
{% endif %}
        let clean = load_x0(start, last);
        let noisy = load_x_t(start, last);
        let px0 = clamped(predict(a, noisy, load_out(start, last)));
{% if LEARNED %}
        let v = load_variance(start, last);
{% else %}
        let v = vec4<f32>(0.0);
{% endif %}
        let bits = 1.4426950408889634 * sum4(used * term(a, b, clean, noisy, px0, v).value);
{% if LIKELIHOOD %}
        let off = used * (px0 - clean);
        let eps = (a.y * noisy - px0) / a.z;
        let off_noise = used * (eps - load_noise(start, last));
        sum += vec3<f32>(bits, sum4(off * off), sum4(off_noise * off_noise));
{% else %}
        sum += bits;
{% endif %}
    }
    let total = group_sum({{ group_place(SUBGROUP) }}, sum);
    if inside && local == 0u {
{% if LIKELIHOOD %}
        partial[3u * id] = p.scale * total.x;
        partial[3u * id + 1u] = p.scale * total.y;
        partial[3u * id + 2u] = p.scale * total.z;
{% else %}
        partial[id] = p.scale * total;
{% endif %}
    }
}
