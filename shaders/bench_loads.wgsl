// Loads of single floats from a small array that stays in a cache, or with SHARED
// in workgroup memory; neighbours load neighbours.
{% include "common.wgsl" %}

struct Params {
    len: u32, turns: u32, mask: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;              // [1024]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;        // [len]
{% if SHARED %}

var<workgroup> held: array<f32, 1024>;
{% endif %}
{% set from = "held" if SHARED else "x" %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
{% if SHARED %}
    for (var k = local; k < 1024u; k += 64u) { held[k] = x[k]; }
    workgroupBarrier();
{% endif %}
    if i >= p.len {
        return;
    }
    var sum = vec4<f32>(0.0);
    var at = local;
    for (var turn = 0u; turn < p.turns; turn += 1u) {
{% for u in range(UNROLL // 4) %}
        sum += vec4<f32>({{ from }}[at & p.mask], {{ from }}[(at + 64u) & p.mask], {{ from }}[(at + 128u) & p.mask], {{ from }}[(at + 192u) & p.mask]);
        at += 257u;
{% endfor %}
    }
    y[i] = sum.x + sum.y + sum.z + sum.w;
}
