// y[n, 0] = mean of x[n, i] over the positions i + positional[0],
// y[n, 1 + i] = x[n, i] + positional[1 + i]. A workgroup owns 32 channels of an
// image: eight invocations side by side, eight walking the positions.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "lane_sum.wgsl" import lane_sum %}

struct Params {
    n: u32, positions: u32, c: u32, windows: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ T }}>;              // [n, positions, c]
@group(0) @binding(2) var<storage, read> positional: array<{{ T }}>;     // [1 + positions, c]
@group(0) @binding(3) var<storage, read_write> y: array<{{ T }}>;        // [n, 1 + positions, c]

{{ load("x", VEC) }}
{{ load("positional", VEC) }}
{{ store("y", VEC) }}
{{ lane_sum() }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let id = flat_group(group, groups);
    let c = (id % p.windows * 8u + local % 8u) * 4u;
    let image = id / p.windows;
    let inside = image < p.n && c < p.c;
    let first = image * (1u + p.positions);
    let end = select(0u, p.positions, inside);
    var sum = vec4<f32>(0.0);
    for (var i = local / 8u; i < end; i += 8u) {
        let v = load_x((image * p.positions + i) * p.c, c);
        sum += v;
        store_y((first + 1u + i) * p.c, c, v + load_positional((1u + i) * p.c, c));
    }
    let total = lane_sum(local, sum);
    if inside && local < 8u {
        store_y(first * p.c, c, total / f32(p.positions) + load_positional(0u, c));
    }
}
