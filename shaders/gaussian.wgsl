// y = standard normal noise. An invocation makes one quad: four consecutive
// elements of one image.
{% include "common.wgsl" %}
{% include "philox.wgsl" %}
{% from "image_quads.wgsl" import store %}

struct Params {
    n: u32, len: u32, quads: u32, stream: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> rng: array<vec4<u32>>;          // seed low, seed high, step, first image
@group(0) @binding(2) var<storage, read_write> y: array<{{ T }}>;        // [n, len]

{{ store("y", VEC) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.quads {
        return;
    }
    let image = index / p.quads;
    let quad = index % p.quads;
    let first = image * p.len;
    store_y(first + quad * 4u, first + p.len - 1u, image_normal4(rng[0], p.stream, image, quad));
}
