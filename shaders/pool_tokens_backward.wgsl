// dx[n, i] = dy[n, 1 + i] + dy[n, 0] / positions. An invocation owns four
// channels of `pixels` consecutive positions.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}

struct Params {
    n: u32, positions: u32, c: u32, quads: u32, pixels: u32, runs: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<{{ T }}>;             // [n, 1 + positions, c]
@group(0) @binding(2) var<storage, read_write> dx: array<{{ T }}>;       // [n, positions, c]

{{ load("dy", VEC) }}
{{ store("dx", VEC, ACC) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.runs * p.quads {
        return;
    }
    let c = (index % p.quads) * 4u;
    let run = index / p.quads;
    let image = run / p.runs;
    let begin = run % p.runs * p.pixels;
    let end = min(p.positions, begin + p.pixels);
    let first = image * (1u + p.positions);
    let mean = load_dy(first * p.c, c) / f32(p.positions);
    for (var i = begin; i < end; i += 1u) {
        store_dx((image * p.positions + i) * p.c, c, load_dy((first + 1u + i) * p.c, c) + mean);
    }
}
