// Winograd's transform of the weight of a 3x3 convolution, one matrix for each of
// the (M + 2)^2 points:
//   u[a, b, ci, co] = G g GT   of the window g of (ci, co),
// with FLIP of the window turned by half a circle, which is the weight of the
// convolution that the input's gradient is. An invocation owns four output
// channels. HALF: the weight holds halves.
{% include "common.wgsl" %}
{% from "storage.wgsl" import element, half_functions %}
{% from "winograd.wgsl" import weight_row %}

struct Params {
    rows: u32,    // cin
    quads: u32,   // cout / 4
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weight: array<{{ element(1, HALF) }}>;  // [3, 3, cin, cout]
@group(0) @binding(2) var<storage, read_write> u: array<vec4<f32>>;   // [(M + 2)^2, cin, cout]

{{ half_functions(HALF) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    let size = p.rows * p.quads;
    if index >= size {
        return;
    }
{% for r in range(3) %}
{% for s in range(3) %}
{% set tap = (8 - r * 3 - s) if FLIP else r * 3 + s %}
    let g{{ r }}_{{ s }} = {% if HALF %}unpack4(weight[{{ tap }}u * size + index]){% else %}weight[{{ tap }}u * size + index]{% endif %};
{% endfor %}
{{ weight_row(M, "g" ~ r ~ "_", "", "t", "_" ~ r) }}
{% endfor %}
{% for b in range(M + 2) %}
{{ weight_row(M, "t" ~ b ~ "_", "", "u", "_" ~ b) }}
{% for a in range(M + 2) %}
    u[{{ a * (M + 2) + b }}u * size + index] = u{{ a }}_{{ b }};
{% endfor %}
{% endfor %}
}
