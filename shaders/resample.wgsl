// Between images of which one has twice the height and width of the other:
// with SPREAD each small pixel times `factor` goes to its four large ones,
// otherwise four large pixels are added and multiplied by `factor`.
// An invocation owns four channels of `pixels` consecutive small pixels of a row.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    rows: u32, w: u32, c: u32, quads: u32, pixels: u32, runs: u32,   // rows, w of the small images
    factor: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF) }}>;              // SPREAD: [rows, w, c], else [2*rows, 2*w, c]
@group(0) @binding(2) var<storage, read_write> y: array<{{ element(VEC, HALF) }}>;        // the other

{{ half_functions(HALF) }}
{{ load("x", VEC, half=HALF) }}
{{ store("y", VEC, ACC, half=HALF) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.rows * p.runs * p.quads {
        return;
    }
    let c = (index % p.quads) * 4u;
    let run = index / p.quads;
    let row = run / p.runs;
    let begin = (run % p.runs) * p.pixels;
    let end = min(p.w, begin + p.pixels);
    // Large rows 2*row and 2*row + 1 follow each other, `line` elements apart.
    let line = 2u * p.w * p.c;
    for (var i = begin; i < end; i += 1u) {
        let small = (row * p.w + i) * p.c;
        let large = row * 2u * line + 2u * i * p.c;
{% if SPREAD %}
        let v = p.factor * load_x(small, c);
        store_y(large, c, v);
        store_y(large + p.c, c, v);
        store_y(large + line, c, v);
        store_y(large + line + p.c, c, v);
{% else %}
        let upper = load_x(large, c) + load_x(large + p.c, c);
        let lower = load_x(large + line, c) + load_x(large + line + p.c, c);
        store_y(small, c, p.factor * (upper + lower));
{% endif %}
    }
}
