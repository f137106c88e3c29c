// y = x at another size: bilinear between the four pixels around a position,
// or with AREA the mean of all pixels that an output pixel touches.
// An invocation owns four channels of one output pixel.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}

struct Params {
    n: u32, h: u32, w: u32, oh: u32, ow: u32, c: u32, quads: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ T }}>;              // [n, h, w, c]
@group(0) @binding(2) var<storage, read_write> y: array<{{ T }}>;        // [n, oh, ow, c]

{{ load("x", VEC) }}
{{ store("y", VEC) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.oh * p.ow * p.quads {
        return;
    }
    let c = (index % p.quads) * 4u;
    let pixel = index / p.quads;
    let row = pixel / p.ow;
    let ox = pixel % p.ow;
    let oy = row % p.oh;
    let image = row / p.oh * p.h;
{% if AREA %}
    let y0 = oy * p.h / p.oh;
    let y1 = ((oy + 1u) * p.h + p.oh - 1u) / p.oh;
    let x0 = ox * p.w / p.ow;
    let x1 = ((ox + 1u) * p.w + p.ow - 1u) / p.ow;
    var sum = vec4<f32>(0.0);
    for (var iy = y0; iy < y1; iy += 1u) {
        for (var ix = x0; ix < x1; ix += 1u) {
            sum += load_x(((image + iy) * p.w + ix) * p.c, c);
        }
    }
    store_y(pixel * p.c, c, sum / f32((y1 - y0) * (x1 - x0)));
{% else %}
    // Positions in units of 1 / (2 oh) and 1 / (2 ow): whole numbers.
    let at_y = max((2u * oy + 1u) * p.h, p.oh) - p.oh;
    let at_x = max((2u * ox + 1u) * p.w, p.ow) - p.ow;
    let y0 = at_y / (2u * p.oh);
    let x0 = at_x / (2u * p.ow);
    let y1 = min(y0 + 1u, p.h - 1u);
    let x1 = min(x0 + 1u, p.w - 1u);
    let fy = f32(at_y % (2u * p.oh)) / f32(2u * p.oh);
    let fx = f32(at_x % (2u * p.ow)) / f32(2u * p.ow);
    let upper = (image + y0) * p.w;
    let lower = (image + y1) * p.w;
    let above = mix(load_x((upper + x0) * p.c, c), load_x((upper + x1) * p.c, c), fx);
    let below = mix(load_x((lower + x0) * p.c, c), load_x((lower + x1) * p.c, c), fx);
    store_y(pixel * p.c, c, mix(above, below, fy));
{% endif %}
}
