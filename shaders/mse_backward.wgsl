// d[n, e, ch] = factor * dy[n] * (pred - goal)[n, e, ch] for the channels that
// both have, zero for the others; d is the gradient of pred, or of goal with a
// negative factor. An invocation owns four consecutive elements of one image.
{% include "common.wgsl" %}

struct Params {
    n: u32, len: u32, quads: u32, c: u32, wide: u32, channels: u32, factor: f32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> pred: array<{{ T }}>;           // [n, h, w, wide]
@group(0) @binding(2) var<storage, read> goal: array<{{ T }}>;           // [n, h, w, c]
@group(0) @binding(3) var<storage, read> dy: array<f32>;                 // [n]
@group(0) @binding(4) var<storage, read_write> d: array<{{ T }}>;        // [n, h, w, channels] = [n, len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.quads {
        return;
    }
    let image = index / p.quads;
    let slope = p.factor * dy[image];
{% if VEC %}
    d[index] = slope * (pred[index] - goal[index]){% if ACC %} + d[index]{% endif %};
{% else %}
    let start = image * p.len + index % p.quads * 4u;
    for (var i = start; i < min(start + 4u, image * p.len + p.len); i += 1u) {
        let pixel = i / p.channels;
        let channel = i % p.channels;
        var v = 0.0;
        if channel < p.c {
            v = slope * (pred[pixel * p.wide + channel] - goal[pixel * p.c + channel]);
        }
        d[i] = v{% if ACC %} + d[i]{% endif %};
    }
{% endif %}
}
