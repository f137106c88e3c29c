// y[n, i] = cos(t[n] f_i), y[n, half + i] = sin(t[n] f_i), f_i = 10000^(-i / half);
// a last odd column is zero. Angles reach thousands of radians, where float32
// and most devices' sines are poor, so the phase is a fixed-point fraction of
// a turn: f_i is the product of the host's powers q^(2^k), q = 10000^(-1/half).
{% include "common.wgsl" %}
{% include "philox.wgsl" %}

struct Params {
    n: u32, dim: u32,
{% for k in range(12) %}
    q{{ k }}: u32,
{% endfor %}
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> t: array<f32>;              // [n]
@group(0) @binding(2) var<storage, read_write> y: array<f32>;        // [n, dim]

// f_i / (2 pi) in units of 2^-32.
fn turns_per_step(i: u32) -> u32 {
    // 1 / (2 pi)
    var f = 683565276u;
{% for k in range(12) %}
    if (i & {{ 2 ** k }}u) != 0u { f = mul_wide(f, p.q{{ k }}).x; }
{% endfor %}
    return f;
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.n * p.dim {
        return;
    }
    let half = p.dim / 2u;
    let column = index % p.dim;
    if column >= 2u * half {
        y[index] = 0.0;
        return;
    }
    // Steps in units of 2^-19: exact for any float32 from 16 to 8192.
    let steps = u32(t[index / p.dim] * 524288.0);
    let product = mul_wide(steps, turns_per_step(column % half));
    let phase = (product.x << 13u) | (product.y >> 19u);
    // As a signed fraction of a turn, the angle lies in [-pi, pi).
    let angle = f32(bitcast<i32>(phase)) * 1.4629180792671596e-9;
    y[index] = select(sin(angle), cos(angle), column < half);
}
