// partial[n, s] = scale * sum of (pred - goal)^2 over split s of image n. A
// workgroup owns one split and walks it in quads.
{% include "common.wgsl" %}
{% from "image_quads.wgsl" import load %}
{% from "group_sum.wgsl" import group_sum, group_place %}
{% from "subgroup.wgsl" import subgroup_inputs %}

struct Params {
    n: u32, len: u32, quads: u32, splits: u32, quads_per_split: u32, c: u32, wide: u32, scale: f32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> pred: array<{{ "f32" if WIDE else T }}>;    // [n, h, w, wide]
@group(0) @binding(2) var<storage, read> goal: array<{{ T }}>;                       // [n, h, w, c]
@group(0) @binding(3) var<storage, read_write> partial: array<f32>;                  // [n, splits]

{{ load("pred", VEC, WIDE) }}
{{ load("goal", VEC) }}
{{ group_sum("f32", SUBGROUP) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32{{ subgroup_inputs(SUBGROUP) }}) {
    let id = flat_group(group, groups);
    let inside = id < p.n * p.splits;
    let first = id / p.splits * p.len;
    let last = first + p.len - 1u;
    let begin = id % p.splits * p.quads_per_split;
    let end = select(0u, min(p.quads, begin + p.quads_per_split), inside);
    var squares = vec4<f32>(0.0);
    for (var quad = begin + local; quad < end; quad += 64u) {
        let start = first + quad * 4u;
        var d = load_pred(start, last) - load_goal(start, last);
{% if not VEC %}
        d = select(vec4<f32>(0.0), d, start + vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last));
{% endif %}
        squares += d * d;
    }
    let total = group_sum({{ group_place(SUBGROUP) }}, squares.x + squares.y + squares.z + squares.w);
    if inside && local == 0u {
        partial[id] = p.scale * total;
    }
}
