// y[n, offset + c] = scale * sum of x[n, i, c] over the rows i of a split; with
// several splits y is [n * splits, wide]. A workgroup owns one split of an image
// and 32 channels: eight invocations side by side, eight walking the rows.
// ACC only says that the other columns of y are kept.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "lane_sum.wgsl" import lane_sum %}

struct Params {
    n: u32, rows: u32, c: u32, windows: u32, splits: u32, rows_per_split: u32, wide: u32, offset: u32,
    scale: f32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ T }}>;              // [n, rows, c]
@group(0) @binding(2) var<storage, read_write> y: array<{{ T }}>;        // [n * splits, wide]

{{ load("x", VEC) }}
{{ store("y", VEC) }}
{{ lane_sum() }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let id = flat_group(group, groups);
    let c = (id % p.windows * 8u + local % 8u) * 4u;
    let part = id / p.windows;
    let inside = part < p.n * p.splits && c < p.c;
    let image = part / p.splits * p.rows;
    let begin = part % p.splits * p.rows_per_split;
    let end = select(0u, min(p.rows, begin + p.rows_per_split), inside);
    var sum = vec4<f32>(0.0);
    for (var i = begin + local / 8u; i < end; i += 8u) {
        sum += load_x((image + i) * p.c, c);
    }
    let total = lane_sum(local, sum);
    if inside && local < 8u {
        store_y(part * p.wide + p.offset, c, p.scale * total);
    }
}
