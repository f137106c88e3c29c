// y = 0.5 x (1 + tanh(u)) with u = sqrt(2 / pi) (x + 0.044715 x^3), or with BACKWARD
// y = dy times its slope, which ACC adds to y. An invocation owns one element.
{% include "common.wgsl" %}

struct Params {
    len: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;          // [len]
{% if BACKWARD %}
@group(0) @binding(2) var<storage, read> dy: array<f32>;         // [len]
{% endif %}
@group(0) @binding(3) var<storage, read_write> y: array<f32>;    // [len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i >= p.len {
        return;
    }
    let v = x[i];
    let t = tanh(0.7978846 * (v + 0.044715 * v * v * v));
{% if BACKWARD %}
    let slope = 0.5 * (1.0 + t) + 0.3989423 * v * (1.0 - t * t) * (1.0 + 0.134145 * v * v);
    y[i] {{ "+=" if ACC else "=" }} dy[i] * slope;
{% else %}
    y[i] = 0.5 * v * (1.0 + t);
{% endif %}
}
