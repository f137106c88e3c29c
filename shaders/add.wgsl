// y = a + b, or with ACC and without B: y += a.
{% include "common.wgsl" %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    len: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<{{ element(0, HALF) }}>;              // [len]
{% if B %}
@group(0) @binding(2) var<storage, read> b: array<{{ element(0, HALF) }}>;              // [len]
{% endif %}
@group(0) @binding(3) var<storage, read_write> y: array<{{ element(0, HALF) }}>;        // [len]

{{ half_functions(HALF) }}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
{% if HALF %}
    let i = flat_group(group, groups) * 64u + local;
    if i < p.len / 4u {
        y[i] = pack4(unpack4(a[i]){% if B %} + unpack4(b[i]){% endif %}{% if ACC %} + unpack4(y[i]){% endif %});
    }
{% else %}
    let start = (flat_group(group, groups) * 64u + local) * 4u;
    for (var i = start; i < min(start + 4u, p.len); i += 1u) {
        y[i] = a[i]{% if B %} + b[i]{% endif %}{% if ACC %} + y[i]{% endif %};
    }
{% endif %}
}
