// The weight's gradient from those of Winograd's points, and the bias's:
//   dweight[r, s, ci, co] = GT du G,   du = the sum of the splits of gemm_dw.wgsl.
// An invocation owns four output channels of an input channel, the last ones of the
// bias, whose gradient is a sum that the transformed tiles still hold. ACC adds to
// what is there.
{% include "common.wgsl" %}
{% from "winograd.wgsl" import sum_weights, weight_row_grad %}

struct Params {
    rows: u32,    // cin
    quads: u32,   // cout / 4
    splits: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partial: array<vec4<f32>>;            // [splits, (M + 2)^2 * (cin + 1) * cout]
@group(0) @binding(2) var<storage, read_write> dweight: array<vec4<f32>>;      // [3, 3, cin, cout]
@group(0) @binding(3) var<storage, read_write> dbias: array<vec4<f32>>;        // [cout]

{% set points = (M + 2) * (M + 2) %}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    let size = p.rows * p.quads;
    if index >= size + p.quads {
        return;
    }
    // The bias's part is one more row behind all points' matrices.
    let is_bias = index >= size;
    let step = select(size, p.quads, is_bias);
    let first = index + select(0u, {{ points - 1 }}u * size, is_bias);
    let stride = {{ points }}u * (size + p.quads);
    let end = first + p.splits * stride;
    var bias = vec4<f32>(0.0);
{% for a in range(M + 2) %}
{% for b in range(M + 2) %}
    var u{{ a }}_{{ b }} = vec4<f32>(0.0);
{% endfor %}
    for (var at = first; at < end; at += stride) {
{% for b in range(M + 2) %}
        u{{ a }}_{{ b }} += partial[at + {{ a * (M + 2) + b }}u * step];
{% endfor %}
    }
{{ weight_row_grad(M, "u" ~ a ~ "_", "", "t", "_" ~ a) }}
{% for b in range(M + 2) %}
{% set w = sum_weights[M][a] * sum_weights[M][b] %}
{% if w != 0 %}
    bias += {{ w }} * u{{ a }}_{{ b }};
{% endif %}
{% endfor %}
{% endfor %}
    if is_bias {
        let co = index - size;
        dbias[co] = bias{% if ACC %} + dbias[co]{% endif %};
        return;
    }
{% for s in range(3) %}
{{ weight_row_grad(M, "t" ~ s ~ "_", "", "g", "_" ~ s) }}
{% for r in range(3) %}
    dweight[{{ 3 * r + s }}u * size + index] = g{{ r }}_{{ s }}{% if ACC %} + dweight[{{ 3 * r + s }}u * size + index]{% endif %};
{% endfor %}
{% endfor %}
}
