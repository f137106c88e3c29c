// The transpose of concat.wgsl: da[pixel, :] and db[pixel, :] from dy[pixel, :].
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    len: u32, ca: u32, cb: u32, quads: u32, quads_a: u32, pixels: u32, runs: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<{{ element(VEC, HALF) }}>;             // [len, ca + cb]
{% if A %}
@group(0) @binding(2) var<storage, read_write> da: array<{{ element(VEC, HALF) }}>;       // [len, ca]
{% endif %}
{% if B %}
@group(0) @binding(3) var<storage, read_write> db: array<{{ element(VEC, HALF) }}>;       // [len, cb]
{% endif %}

{{ half_functions(HALF) }}
{{ load("dy", VEC, "(p.ca + p.cb)", HALF) }}
{% if A %}
{{ store("da", VEC, ACC, "p.ca", HALF) }}
{% endif %}
{% if B %}
{{ store("db", VEC, ACC, "p.cb", HALF) }}
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.runs * p.quads {
        return;
    }
    let quad = index % p.quads;
    let begin = (index / p.quads) * p.pixels;
    let end = min(p.len, begin + p.pixels);
    if quad < p.quads_a {
{% if A %}
        let c = quad * 4u;
        for (var i = begin; i < end; i += 1u) {
            store_da(i * p.ca, c, load_dy(i * (p.ca + p.cb), c));
        }
{% endif %}
    } else {
{% if B %}
        let c = (quad - p.quads_a) * 4u;
        for (var i = begin; i < end; i += 1u) {
            store_db(i * p.cb, c, load_dy(i * (p.ca + p.cb), p.ca + c));
        }
{% endif %}
    }
}
