// Winograd's inverse transform, from the products of the (M + 2)^2 points to
// tiles of M x M results:
//   y tile = AT m A + bias[co] + emb[n, co] + residual
// An invocation owns four channels of a tile. Without BIAS it is an input's
// gradient, which is assigned or, with ACC, added. HALF: y and residual hold
// halves. MOMENTS: the mean and the sum of squared deviations of the tile's results,
// which all lie in the image, are kept for a group norm (group_norm_stats.wgsl).
{% include "common.wgsl" %}
{% from "storage.wgsl" import element, half_functions %}
{% from "winograd.wgsl" import output_row %}

struct Params {
    h: u32, w: u32, c: u32,
    tiles_x: u32, tiles_y: u32,
    first_tile: u32, tiles: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> m: array<vec4<f32>>;         // [(M + 2)^2, tiles, c]
{% if BIAS %}
@group(0) @binding(2) var<storage, read> bias: array<vec4<f32>>;      // [c]
{% endif %}
{% if EMB %}
@group(0) @binding(3) var<storage, read> emb: array<vec4<f32>>;       // [n, c]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(4) var<storage, read> residual: array<{{ element(1, HALF) }}>;  // [n, h, w, c]
{% endif %}
@group(0) @binding(5) var<storage, read_write> y: array<{{ element(1, HALF) }}>;   // [n, h, w, c]
{% if MOMENTS %}
@group(0) @binding(6) var<storage, read_write> moments: array<vec4<f32>>;          // [n, tiles of an image, 2, c]
{% endif %}

{{ half_functions(HALF) }}
// Returns what it stores.
fn store(i: u32, v: vec4<f32>) -> vec4<f32> {
    let sum = v{% if RESIDUAL %} + {{ "unpack4(residual[i])" if HALF else "residual[i]" }}{% endif %}{% if ACC %} + {{ "unpack4(y[i])" if HALF else "y[i]" }}{% endif %};
{% if HALF %}
    let packed = pack4(sum);
    y[i] = packed;
    return unpack4(packed);
{% else %}
    y[i] = sum;
    return sum;
{% endif %}
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    let quads = p.c >> 2u;
    if index >= p.tiles * quads {
        return;
    }
    let quad = index % quads;
    let tile = p.first_tile + index / quads;
    let x0 = (tile % p.tiles_x) * {{ M }}u;
    let y0 = (tile / p.tiles_x) % p.tiles_y * {{ M }}u;
    let image = tile / (p.tiles_x * p.tiles_y);
    let size = p.tiles * quads;
{% for a in range(M + 2) %}
{% for b in range(M + 2) %}
    let m{{ a }}_{{ b }} = m[{{ a * (M + 2) + b }}u * size + index];
{% endfor %}
{{ output_row(M, "m" ~ a ~ "_", "", "t", "_" ~ a) }}
{% endfor %}
    let added = {% if BIAS %}bias[quad]{% if EMB %} + emb[image * quads + quad]{% endif %}{% else %}vec4<f32>(0.0){% endif %};
{% for s in range(M) %}
{{ output_row(M, "t" ~ s ~ "_", "", "r", "_" ~ s) }}
{% endfor %}
    let first = ((image * p.h + y0) * p.w + x0) * quads + quad;
{% for r in range(M) %}{% for s in range(M) %}
{% if MOMENTS %}
    let v{{ r * M + s }} = store(first + ({{ r }}u * p.w + {{ s }}u) * quads, r{{ r }}_{{ s }} + added);
{% else %}
    if y0 + {{ r }}u < p.h && x0 + {{ s }}u < p.w {
        store(first + ({{ r }}u * p.w + {{ s }}u) * quads, r{{ r }}_{{ s }} + added);
    }
{% endif %}
{% endfor %}{% endfor %}
{% if MOMENTS %}
    // Relative to the first result, so that a large mean costs no digits.
    var sum = vec4<f32>(0.0);
{% for i in range(1, M * M) %}
    sum += v{{ i }} - v0;
{% endfor %}
    let mean = v0 + sum / {{ M * M }}.0;
    var squares = vec4<f32>(0.0);
{% for i in range(M * M) %}
    squares += (v{{ i }} - mean) * (v{{ i }} - mean);
{% endfor %}
    let kept = tile * 2u * quads + quad;
    moments[kept] = mean;
    moments[kept + quads] = squares;
{% endif %}
}
