// Group norm backward, sums over pixels. With t = x - pivot, z = a*t + b and
// dz = dy * silu'(z) (or dy), per image and channel:
//   S1 = sum dz,   S2 = sum dz * xhat = rstd * (sum dz * t - offset * S1),
// from which the gradient of emb (dscale = gamma*S2 + beta*S1, dshift = S1),
// what dgamma and dbeta sum over images, and the constants of
//   dx = a * dz + k1 + k2 * t.
// The division of work, MERGE, PARTIAL and SUBGROUP are those of group_norm_stats.wgsl.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load %}
{% from "storage.wgsl" import element, half_functions %}
{% from "subgroup.wgsl" import subgroup_inputs %}

struct Params {
    n: u32, hw: u32, c: u32, width: u32,
    window: u32, windows: u32, pixels: u32, splits: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
{% if not MERGE %}
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF_X) }}>;                  // [n, hw, c]
@group(0) @binding(2) var<storage, read> dy: array<{{ element(VEC, HALF_Y) }}>;                 // [n, hw, c]
{% endif %}
@group(0) @binding(3) var<storage, read> coefs: array<f32>;                  // [n, 4, c]: a, b, offset, rstd
{% if EMB %}
@group(0) @binding(4) var<storage, read> weight: array<f32>;                 // [c]
@group(0) @binding(5) var<storage, read> bias: array<f32>;                   // [c]
@group(0) @binding(6) var<storage, read> emb: array<f32>;                    // [n, 2, c]: scale, shift
@group(0) @binding(7) var<storage, read_write> demb: array<f32>;             // [n, 2, c]
{% endif %}
{% if not PARTIAL %}
@group(0) @binding(8) var<storage, read_write> sums: array<f32>;             // [n, 4, c]: dgamma, dbeta of the image, k1, k2
{% endif %}
{% if MERGE %}
@group(0) @binding(9) var<storage, read> partials: array<f32>;                // [n, splits, 2, c]
{% endif %}
{% if PARTIAL %}
@group(0) @binding(10) var<storage, read_write> partials_out: array<f32>;     // [n, splits, 2, c]
{% endif %}

{% if not MERGE %}
{{ half_functions(HALF_X or HALF_Y) }}
{{ load("x", VEC, half=HALF_X) }}
{{ load("dy", VEC, half=HALF_Y) }}
fn four_coefs(base: u32, c: u32) -> vec4<f32> {
    let last = p.c - 1u;
    return vec4<f32>(coefs[base + min(c, last)], coefs[base + min(c + 1u, last)], coefs[base + min(c + 2u, last)], coefs[base + min(c + 3u, last)]);
}
var<workgroup> row_sum: array<f32, 256>;
var<workgroup> row_dot: array<f32, 256>;
{% endif %}
{% if not PARTIAL %}
var<workgroup> sum_dz: array<f32, 256>;      // of a channel, later of a group
var<workgroup> sum_dz_xhat: array<f32, 256>;
{% endif %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32{{ subgroup_inputs(SUBGROUP) }}{% if SUBGROUP %}, @builtin(subgroup_invocation_id) lane: u32{% endif %}) {
    let id = flat_group(group, groups);
    let splits = {% if PARTIAL %}p.splits{% else %}1u{% endif %};
    if id >= p.n * splits * p.windows {
        return;
    }
    let first = (id % p.windows) * p.window;
    let channels = min(p.window, p.c - first);
    let n = id / (p.windows * splits);
{% if not MERGE %}
    let image = n * p.hw * p.c;
    let split = (id / p.windows) % splits;
    let begin = split * p.pixels;
    let end = min(p.hw, begin + p.pixels);
    let quads = (channels + 3u) / 4u;
    let rows = 64u / quads;
{% if SUBGROUP %}
    // Places follow the lanes, whichever invocations the driver puts there: lanes
    // that many apart stand as many places apart.
    let lanes = 64u / subgroups;
    let place = subgroup * lanes + lane;
    // Rows that a subgroup brings together; the first of them stands for all.
    let merged = max(lanes / quads, 1u);
{% else %}
    let place = local;
    let merged = 1u;
{% endif %}
    let row = place / quads;
{% if SUBGROUP %}
    {
{% else %}
    if row < rows {
{% endif %}
        let c = first + (place % quads) * 4u;
        let pivot = load_x(image, c);
{% if SILU %}
        let a = four_coefs(n * 4u * p.c, c);
        let b = four_coefs((n * 4u + 1u) * p.c, c);
{% endif %}
        var sum = vec4<f32>(0.0);
        var weighted = vec4<f32>(0.0);
        let step = rows * p.c;
        for (var at = image + (begin + row) * p.c; at < image + end * p.c; at += step) {
            let t = load_x(at, c) - pivot;
            let dz = load_dy(at, c){% if SILU %} * silu_slope4(a * t + b){% endif %};
            sum += dz;
            weighted += dz * t;
        }
{% if SUBGROUP %}
        for (var apart = quads; apart < lanes; apart *= 2u) {
            sum += subgroupShuffleXor(sum, apart);
            weighted += subgroupShuffleXor(weighted, apart);
        }
{% endif %}
        if row % merged == 0u {
            let slot = ((row / merged) * quads + place % quads) * 4u;
{% for k in range(4) %}
            row_sum[slot + {{ k }}u] = sum[{{ k }}];
            row_dot[slot + {{ k }}u] = weighted[{{ k }}];
{% endfor %}
        }
    }
    workgroupBarrier();
    let parts = (min(rows, end - begin) + merged - 1u) / merged;
{% else %}
    let parts = p.splits;
{% endif %}
    // Add the parts (rows or splits) of each channel.
    for (var j = local; j < channels; j += 64u) {
        let c = first + j;
        var s1 = 0.0;
        var st = 0.0;
        for (var part = 0u; part < parts; part += 1u) {
{% if MERGE %}
            let at = ((n * p.splits + part) * 2u) * p.c + c;
            s1 += partials[at];
            st += partials[at + p.c];
{% else %}
            s1 += row_sum[part * quads * 4u + j];
            st += row_dot[part * quads * 4u + j];
{% endif %}
        }
{% if PARTIAL %}
        let at = ((n * splits + split) * 2u) * p.c + c;
        partials_out[at] = s1;
        partials_out[at + p.c] = st;
{% else %}
        let at = n * 4u * p.c + c;
        let rstd = coefs[at + 3u * p.c];
        let s2 = rstd * (st - coefs[at + 2u * p.c] * s1);
        let gamma = coefs[at] / rstd;
        sum_dz[j] = gamma * s1;
        sum_dz_xhat[j] = gamma * s2;
{% if EMB %}
        let e = n * 2u * p.c + c;
        let scale = 1.0 + emb[e];
        demb[e] = weight[c] * s2 + bias[c] * s1{% if ACC %} + demb[e]{% endif %};
        demb[e + p.c] = s1{% if ACC %} + demb[e + p.c]{% endif %};
        sums[at] = scale * s2;
        sums[at + p.c] = scale * s1;
{% else %}
        sums[at] = s2;
        sums[at + p.c] = s1;
{% endif %}
{% endif %}
    }
{% if not PARTIAL %}
    workgroupBarrier();
    for (var g = local; g * p.width < channels; g += 64u) {
        let start = g * p.width;
        var c1 = 0.0;
        var c2 = 0.0;
        for (var j = start; j < start + p.width; j += 1u) {
            c1 += sum_dz[j];
            c2 += sum_dz_xhat[j];
        }
        let count = f32(p.hw) * f32(p.width);
        sum_dz[start] = c1 / count;
        sum_dz_xhat[start] = c2 / count;
    }
    workgroupBarrier();
    for (var j = local; j < channels; j += 64u) {
        let start = j - j % p.width;
        let at = n * 4u * p.c + first + j;
        let rstd = coefs[at + 3u * p.c];
        let k2 = -rstd * rstd * sum_dz_xhat[start];
        sums[at + 2u * p.c] = -rstd * sum_dz[start] - k2 * coefs[at + 2u * p.c];
        sums[at + 3u * p.c] = k2;
    }
{% endif %}
}
