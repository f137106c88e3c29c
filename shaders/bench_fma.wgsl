// Multiply-adds and nothing else: CHAINS independent vec4 chains an invocation,
// each of which waits for itself alone. F16: in half precision.
{% if F16 %}
enable f16;
{% endif %}
{% include "common.wgsl" %}
{% set V = "vec4<f16>" if F16 else "vec4<f32>" %}
{% set S = "f16" if F16 else "f32" %}

struct Params {
    len: u32, turns: u32, factor: f32, step: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;        // [len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.len {
        return;
    }
    let factor = {{ S }}(p.factor);
    let step = {{ S }}(p.step);
    let start = {{ S }}(f32(local) * 0.01);
{% for c in range(CHAINS) %}
    var a{{ c }} = {{ V }}(start) + {{ V }}({{ c }}.0, {{ c }}.1, {{ c }}.2, {{ c }}.3);
{% endfor %}
    for (var turn = 0u; turn < p.turns; turn += 1u) {
{% for u in range(UNROLL) %}{% for c in range(CHAINS) %}
        a{{ c }} = a{{ c }} * factor + step;
{% endfor %}{% endfor %}
    }
    var sum = a0;
{% for c in range(1, CHAINS) %}
    sum += a{{ c }};
{% endfor %}
    y[i] = f32(sum.x + sum.y + sum.z + sum.w);
}
