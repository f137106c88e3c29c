// Winograd's transform of an image's tiles, into one matrix of tiles x channels
// for each of the (M + 2)^2 points:
//   v[a, b, tile, c] = BT d B   of the (M + 2)^2 window d that a tile of M x M results reads,
// or, with GRAD, of the results' gradients, for the weight's gradient:
//   v[a, b, tile, c] = A y AT   of the M x M tile y itself.
// An invocation owns four channels of a tile. NORM: the image is still to be
// normalised with the coefficients of group_norm_stats.wgsl; NORM 2 applies SiLU
// too. HALF: the image holds halves.
{% include "common.wgsl" %}
{% from "storage.wgsl" import element, half_functions %}
{% from "winograd.wgsl" import input_row, output_row_grad %}

struct Params {
    h: u32, w: u32, c: u32,
    tiles_x: u32, tiles_y: u32,
    first_tile: u32, tiles: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(1, HALF) }}>;       // [n, h, w, c]
@group(0) @binding(2) var<storage, read_write> v: array<vec4<f32>>;   // [(M + 2)^2, tiles, c]
{% if NORM %}
@group(0) @binding(3) var<storage, read> coefs: array<vec4<f32>>;     // [n, 4, c]: a, b, mean - pivot, rstd
{% endif %}

{{ half_functions(HALF) }}
// Zero outside the image; negative coordinates wrap to huge ones.
fn load_x(row: u32, y: u32, x0: u32, quad: u32{% if NORM %}, a: vec4<f32>, b: vec4<f32>, pivot: vec4<f32>{% endif %}) -> vec4<f32> {
    let inside = y < p.h && x0 < p.w;
    let i = select(0u, ((row + y) * p.w + x0) * (p.c >> 2u) + quad, inside);
{% if NORM %}
    let z = a * ({% if HALF %}unpack4(x[i]){% else %}x[i]{% endif %} - pivot) + b;
    return select(vec4<f32>(0.0), z{% if NORM == 2 %} * sigmoid4(z){% endif %}, inside);
{% else %}
    return select(vec4<f32>(0.0), {% if HALF %}unpack4(x[i]){% else %}x[i]{% endif %}, inside);
{% endif %}
}
{% set SIZE = M if GRAD else M + 2 %}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let index = flat_group(group, groups) * 64u + local;
    let quads = p.c >> 2u;
    if index >= p.tiles * quads {
        return;
    }
    let quad = index % quads;
    let tile = p.first_tile + index / quads;
    let tx = (tile % p.tiles_x) * {{ M }}u{% if not GRAD %} - 1u{% endif %};
    let ty = (tile / p.tiles_x) % p.tiles_y * {{ M }}u{% if not GRAD %} - 1u{% endif %};
    let row = tile / (p.tiles_x * p.tiles_y) * p.h;
{% if NORM %}
    let image = tile / (p.tiles_x * p.tiles_y);
    let first = image * p.h * p.w * quads + quad;
    let pivot = {% if HALF %}unpack4(x[first]){% else %}x[first]{% endif %};
    let a = coefs[image * 4u * quads + quad];
    let b = coefs[(image * 4u + 1u) * quads + quad];
{% endif %}
{% for r in range(SIZE) %}
{% for s in range(SIZE) %}
    let d{{ r }}_{{ s }} = load_x(row, ty + {{ r }}u, tx + {{ s }}u, quad{% if NORM %}, a, b, pivot{% endif %});
{% endfor %}
{{ output_row_grad(M, "d" ~ r ~ "_", "", "t", "_" ~ r) if GRAD else input_row(M, "d" ~ r ~ "_", "", "t", "_" ~ r) }}
{% endfor %}
    // t holds the transform along x, by point and row; now along y.
{% for b in range(M + 2) %}
{{ output_row_grad(M, "t" ~ b ~ "_", "", "u", "_" ~ b) if GRAD else input_row(M, "t" ~ b ~ "_", "", "u", "_" ~ b) }}
{% for a in range(M + 2) %}
    v[{{ a * (M + 2) + b }}u * p.tiles * quads + index] = u{{ a }}_{{ b }};
{% endfor %}
{% endfor %}
}
