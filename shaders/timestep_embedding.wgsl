// y[n, i] = cos(t[n] f_i), y[n, half + i] = sin(t[n] f_i), f_i = 10000^(-i / half);
// a last odd column is zero. Networks were trained with f_i and the angle
// rounded to float32, so both are rounded here as well. Angles reach thousands
// of radians, where most devices' sines are poor: the exact value of the
// rounded angle is reduced to a turn in fixed point. f_i is the product of the
// host's powers q^(2^k), q = 10000^(-1/half).
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

// a * b / 2^32, rounded.
fn scale(a: u32, b: u32) -> u32 {
    let product = mul_wide(a, b);
    return product.x + (product.y >> 31u);
}

fn frequency(i: u32) -> f32 {
    if i == 0u {
        return 1.0;
    }
    // In units of 2^-32; zero stands for one until the first factor.
    var f = 0u;
{% for k in range(12) %}
    if (i & {{ 2 ** k }}u) != 0u { f = select(scale(f, p.q{{ k }}), p.q{{ k }}, f == 0u); }
{% endfor %}
    return f32(f) * 2.3283064365386963e-10;
}

// An angle in [0, 8192) modulo a turn, in [-pi, pi).
fn reduce(angle: f32) -> f32 {
    // As a 32-bit fixed-point number that holds every bit of the float.
    let small = angle < 32.0;
    let fixed = u32(angle * select(524288.0, 134217728.0, small));
    // Times 1 / (2 pi) in units of 2^-32: turns, of which the fraction counts.
    let turns = mul_wide(fixed, 683565276u);
    let phase = select((turns.x << 13u) | (turns.y >> 19u), (turns.x << 5u) | (turns.y >> 27u), small);
    return f32(bitcast<i32>(phase)) * 1.4629180792671596e-9;
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
    let angle = reduce(t[index / p.dim] * frequency(column % half));
    y[index] = select(sin(angle), cos(angle), column < half);
}
