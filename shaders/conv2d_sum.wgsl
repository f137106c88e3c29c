// Adds up what the workgroups of a convolution's split product left
// (conv2d_staged.wgsl, conv2d_coop.wgsl), in order:
//   y = sum over the splits of partial + bias[co] + emb[n, co] + residual,
// or with DX the input's gradient, which is assigned or, with ACC, added. An
// invocation owns four channels of a pixel. HALF: y and residual (dx) hold halves.
{% include "common.wgsl" %}
{% from "conv2d_store.wgsl" import store_y, store_dx %}
{% from "quad.wgsl" import load %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    quads: u32,      // of y or dx
    splits: u32,
    cin: u32, oh: u32, ow: u32, cout: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partial: array<vec4<f32>>;                // [splits, pixels, channels]
{% if DX %}
@group(0) @binding(2) var<storage, read_write> dx: array<{{ element(1, HALF) }}>;  // [n, h, w, cin]
{% else %}
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;                   // [cout]
{% if EMB %}
@group(0) @binding(3) var<storage, read> emb: array<vec4<f32>>;                    // [n, cout]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(4) var<storage, read> residual: array<{{ element(1, HALF) }}>;  // [n, oh, ow, cout]
{% endif %}
@group(0) @binding(5) var<storage, read_write> y: array<{{ element(1, HALF) }}>;   // [n, oh, ow, cout]
{% endif %}

{{ half_functions(HALF) }}
{% if DX %}
{{ store_dx(1, HALF, ACC) }}
{% else %}
{{ load("bias", 1, "p.cout") }}
{% if EMB %}
{{ load("emb", 1, "p.cout") }}
{% endif %}
{{ store_y(1, HALF, EMB, RESIDUAL) }}
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.quads {
        return;
    }
    var sum = partial[i];
    for (var split = 1u; split < p.splits; split += 1u) {
        sum += partial[split * p.quads + i];
    }
    let channels = {{ "p.cin" if DX else "p.cout" }} >> 2u;
    store(i / channels, i % channels * 4u, sum);
}
