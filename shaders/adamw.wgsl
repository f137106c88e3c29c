// AdamW and the moving average over one flat chunk; nothing at all where the
// gradient norm is infinite. hyper holds, in order: 1 - lr * weight_decay,
// lr / correction1, 1 - beta1, 1 - beta2 | 1 / sqrt(correction2), eps,
// 1 - ema_rate, max_norm. An invocation owns {{ QUADS }} quads.
// HALF keeps a packed copy of the weights; SCALED divides the gradients by the
// loss scale.
{% include "common.wgsl" %}
{% from "storage.wgsl" import half_functions %}

struct Params {
    quads: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> weights: array<vec4<f32>>;        // [quads]
@group(0) @binding(2) var<storage, read> grads: array<vec4<f32>>;                // [quads]
@group(0) @binding(3) var<storage, read_write> exp_avg: array<vec4<f32>>;        // [quads]
@group(0) @binding(4) var<storage, read_write> exp_avg_sq: array<vec4<f32>>;     // [quads]
@group(0) @binding(5) var<storage, read_write> ema: array<vec4<f32>>;            // [quads]
@group(0) @binding(6) var<storage, read> hyper: array<vec4<f32>>;                // [2]
@group(0) @binding(7) var<storage, read> norm: array<u32>;                       // [1], bits of a float; SCALED: and 1 / scale
{% if HALF %}
@group(0) @binding(8) var<storage, read_write> weights_half: array<vec2<u32>>;   // [quads]
{% endif %}

{{ half_functions(HALF) }}

// x moved towards `goal` by the share `by`: exact at the fixed point, which
// x * (1 - by) + goal * by with a rounded 1 - by is not.
fn approach(x: vec4<f32>, goal: vec4<f32>, by: f32) -> vec4<f32> {
    return x + by * (goal - x);
}

fn update(i: u32, a: vec4<f32>, b: vec4<f32>, clip: f32) {
    let g = clip * grads[i];
    let m = approach(exp_avg[i], g, a.z);
    let v = approach(exp_avg_sq[i], g * g, a.w);
    let w = a.x * weights[i] - a.y * (m / (sqrt(v) * b.x + b.y));
    exp_avg[i] = m;
    exp_avg_sq[i] = v;
    weights[i] = w;
{% if HALF %}
    weights_half[i] = pack4(w);
{% endif %}
    ema[i] = approach(ema[i], w, b.z);
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let bits = norm[0];
    if (bits & 0x7f800000u) == 0x7f800000u {
        return;
    }
    let a = hyper[0];
    let b = hyper[1];
    var clip = 1.0;
    if b.w > 0.0 {
        clip = min(1.0, b.w / (bitcast<f32>(bits) + 1e-6));
    }
{% if SCALED %}
    clip *= bitcast<f32>(norm[1]);
{% endif %}
    let first = flat_group(group, groups) * {{ QUADS * 64 }}u + local;
{% for i in range(QUADS) %}
    if first + {{ i * 64 }}u < p.quads {
        update(first + {{ i * 64 }}u, a, b, clip);
    }
{% endfor %}
}
