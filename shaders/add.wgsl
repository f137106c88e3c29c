// y = a + b, or with ACC and without B: y += a.
{% include "common.wgsl" %}

struct Params {
    len: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<f32>;              // [len]
{% if B %}
@group(0) @binding(2) var<storage, read> b: array<f32>;              // [len]
{% endif %}
@group(0) @binding(3) var<storage, read_write> y: array<f32>;        // [len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let start = (flat_group(group, groups) * 64u + local) * 4u;
    for (var i = start; i < min(start + 4u, p.len); i += 1u) {
        y[i] = a[i]{% if B %} + b[i]{% endif %}{% if ACC %} + y[i]{% endif %};
    }
}
