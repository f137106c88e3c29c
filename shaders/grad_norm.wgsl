// partial[g] = sum of squares of the quads of workgroup g, or -1 if one of its
// elements is not finite or larger than 2^46 (see grad_norm.rs).
{% include "common.wgsl" %}
{% from "group_sum.wgsl" import group_sum, group_place %}
{% from "subgroup.wgsl" import subgroup_inputs %}

struct Params {
    quads: u32, parts: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> grads: array<vec4<u32>>;            // [quads], bits of floats
@group(0) @binding(2) var<storage, read_write> partial: array<f32>;          // [parts]

{{ group_sum("vec2<f32>", SUBGROUP) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32{{ subgroup_inputs(SUBGROUP) }}) {
    let id = flat_group(group, groups);
    let begin = id * {{ QUADS }}u;
    let end = min(p.quads, begin + {{ QUADS }}u);
    var squares = vec4<f32>(0.0);
    var bad = 0.0;
    for (var i = begin + local; i < end; i += 64u) {
        let bits = grads[i];
        // Magnitudes order like their bits; 0x56800000 is 2^46, and infinity
        // and NaN lie above it. Comparing floats would prove nothing where
        // the driver assumes that there are no NaNs.
        if any((bits & vec4<u32>(0x7fffffffu)) > vec4<u32>(0x56800000u)) {
            bad = 1.0;
        } else {
            let g = bitcast<vec4<f32>>(bits);
            squares += g * g;
        }
    }
    let total = group_sum({{ group_place(SUBGROUP) }}, vec2<f32>(squares.x + squares.y + squares.z + squares.w, bad));
    if local == 0u && id < p.parts {
        partial[id] = select(total.x, -1.0, total.y > 0.0);
    }
}
