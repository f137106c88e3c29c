// Products of cooperative matrices of COOP x COOP halves, added up in 32 bits, and
// nothing else: CHAINS independent sums a subgroup, each of which waits for itself
// alone.
enable f16;
enable wgpu_cooperative_matrix;
{% include "common.wgsl" %}
{% set size = COOP * COOP %}
{% set mat = "coop_mat" ~ COOP ~ "x" ~ COOP %}

struct Params {
    turns: u32, value: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;        // [workgroups, COOP, COOP]

var<workgroup> operand: array<f16, {{ size }}>;
var<workgroup> results: array<f32, {{ 4 * size }}>;   // of four subgroups

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32) {
    for (var i = local; i < {{ size }}u; i += {{ WG }}u) {
        operand[i] = f16(p.value * f32(i & 7u));
    }
    workgroupBarrier();
    let a = coopLoadT<{{ mat }}<f16, A>>(&operand[0], {{ COOP }}u);
    let b = coopLoadT<{{ mat }}<f16, B>>(&operand[0], {{ COOP }}u);
{% for c in range(CHAINS) %}
    var c{{ c }} = {{ mat }}<f32, C>();
{% endfor %}
    for (var turn = 0u; turn < p.turns; turn += 1u) {
{% for u in range(UNROLL) %}{% for c in range(CHAINS) %}
        c{{ c }} = coopMultiplyAdd(a, b, c{{ c }});
{% endfor %}{% endfor %}
    }
    // Every sum is used, one after the other.
    let own = (subgroup & 3u) * {{ size }}u;
    var total = 0.0;
{% for c in range(CHAINS) %}
    coopStoreT(c{{ c }}, &results[own], {{ COOP }}u);
    workgroupBarrier();
    total += results[local % {{ 4 * size }}u];
    workgroupBarrier();
{% endfor %}
    if local < {{ size }}u {
        y[flat_group(group, groups) * {{ size }}u + local] = total;
    }
}
