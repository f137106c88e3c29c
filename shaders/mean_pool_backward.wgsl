// dx[n, i, c] = scale * dy[n, offset + c]. An invocation owns four channels of
// `pixels` consecutive rows.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}

struct Params {
    n: u32, rows: u32, c: u32, quads: u32, pixels: u32, runs: u32, wide: u32, offset: u32,
    scale: f32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<{{ T }}>;             // [n, wide]
@group(0) @binding(2) var<storage, read_write> dx: array<{{ T }}>;       // [n, rows, c]

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
    let end = min(p.rows, begin + p.pixels);
    let v = p.scale * load_dy(image * p.wide + p.offset, c);
    for (var i = begin; i < end; i += 1u) {
        store_dx((image * p.rows + i) * p.c, c, v);
    }
}
