// dout = dy[n] * derivative of image n's term of the variational bound by the
// network's output; the image channels get zero without p.mean_gradient. An
// invocation owns four consecutive elements of one image and, with LEARNED,
// their variance channels.
{% include "common.wgsl" %}
{% from "image_quads.wgsl" import load %}

struct Params {
    n: u32, len: u32, quads: u32, c: u32, wide: u32,
    predicts_x0: u32, clip: u32, mean_gradient: u32, scale: f32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
{% set OUT = "f32" if LEARNED else T %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> out: array<{{ OUT }}>;              // [n, h, w, wide]
@group(0) @binding(2) var<storage, read> x0: array<{{ T }}>;                 // [n, h, w, c]
@group(0) @binding(3) var<storage, read> x_t: array<{{ T }}>;                // [n, h, w, c]
@group(0) @binding(4) var<storage, read> coefs: array<vec4<f32>>;            // [n, 2]
@group(0) @binding(5) var<storage, read> dy: array<f32>;                     // [n]
@group(0) @binding(6) var<storage, read_write> dout: array<{{ OUT }}>;       // [n, h, w, wide]

{% include "vlb_terms.wgsl" %}

{{ load("out", VEC, LEARNED) }}
{% if LEARNED %}
{{ load("out", VEC, LEARNED, "variance", "p.c") }}
{% endif %}
{{ load("x0", VEC) }}
{{ load("x_t", VEC) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.quads {
        return;
    }
    let image = index / p.quads;
    let a = coefs[2u * image];
    let b = coefs[2u * image + 1u];
    let start = image * p.len + index % p.quads * 4u;
    let last = image * p.len + p.len - 1u;
    let noisy = load_x_t(start, last);
    let predicted = predict(a, noisy, load_out(start, last));
    let px0 = clamped(predicted);
{% if LEARNED %}
    let v = load_variance(start, last);
{% else %}
    let v = vec4<f32>(0.0);
{% endif %}
    let slopes = term(a, b, load_x0(start, last), noisy, px0, v);
    let factor = p.scale * dy[image];
    var dmean = vec4<f32>(0.0);
    if p.mean_gradient != 0u {
        dmean = factor * select(-a.z, 1.0, p.predicts_x0 != 0u) * slopes.by_px0;
        // Where the clamp took hold, px0 is not the prediction.
        dmean = select(vec4<f32>(0.0), dmean, px0 == predicted);
    }
{% if LEARNED %}
    let dvariance = factor * b.w * slopes.by_d;
{% for i in range(4) %}
    if start + {{ i }}u <= last {
        let i = start + {{ i }}u;
        let at = i / p.c * p.wide + i % p.c;
        dout[at] = dmean[{{ i }}]{% if ACC %} + dout[at]{% endif %};
        dout[at + p.c] = dvariance[{{ i }}]{% if ACC %} + dout[at + p.c]{% endif %};
    }
{% endfor %}
{% elif VEC %}
    dout[index] = dmean{% if ACC %} + dout[index]{% endif %};
{% else %}
{% for i in range(4) %}
    if start + {{ i }}u <= last {
        dout[start + {{ i }}u] = dmean[{{ i }}]{% if ACC %} + dout[start + {{ i }}u]{% endif %};
    }
{% endfor %}
{% endif %}
}
