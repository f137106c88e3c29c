// The convolution of conv2d.wgsl, or with DX the gradient of conv2d_dx.wgsl, for
// GPUs: an implicit product whose workgroups own a tile of 16 TM pixels and 64
// channels and stage slabs of pixels and of the weight (staged.wgsl). The depth runs over
// the window's taps and then the channels that are summed, 16 at a time. Channels are
// multiples of four. SPLIT: a workgroup sums some of the taps only, and conv2d_sum.wgsl
// adds the parts up. HALF_X: x (dx) and weight hold halves, HALF_Y: y (dy) and
// residual do; slabs and sums have 32 bits.
{% include "common.wgsl" %}
{% from "conv2d_load.wgsl" import load_channels, load_weight %}
{% from "conv2d_store.wgsl" import store_partial, store_y, store_dx %}
{% from "quad.wgsl" import load %}
{% from "staged.wgsl" import slabs, sums, multiply, turn_b, staged_rows, staged_tap %}
{% from "storage.wgsl" import element, half_functions %}

struct Params {
    n: u32, h: u32, w: u32, cin: u32,
    oh: u32, ow: u32, cout: u32,
    kernel: u32, stride: u32, pad: u32,
    tiles_n: u32,   // tiles along the channels
    tiles: u32,
    taps: u32,      // of the window, that a workgroup sums
}
@group(0) @binding(0) var<uniform> p: Params;
{% if DX %}
@group(0) @binding(1) var<storage, read> dy: array<{{ element(1, HALF_Y) }}>;         // [n, oh, ow, cout]
{% else %}
@group(0) @binding(1) var<storage, read> x: array<{{ element(1, HALF_X) }}>;          // [n, h, w, cin]
{% endif %}
@group(0) @binding(2) var<storage, read> weight: array<{{ element(1, HALF_X) }}>;     // [kernel, kernel, cin, cout]
{% if SPLIT %}
@group(0) @binding(3) var<storage, read_write> partial: array<vec4<f32>>;             // [splits, pixels, channels]
{% elif DX %}
@group(0) @binding(3) var<storage, read_write> dx: array<{{ element(1, HALF_X) }}>;   // [n, h, w, cin]
{% else %}
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;                      // [cout]
{% if EMB %}
@group(0) @binding(4) var<storage, read> emb: array<vec4<f32>>;                       // [n, cout]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(5) var<storage, read> residual: array<{{ element(1, HALF_Y) }}>;   // [n, oh, ow, cout]
{% endif %}
@group(0) @binding(6) var<storage, read_write> y: array<{{ element(1, HALF_Y) }}>;    // [n, oh, ow, cout]
{% endif %}

{{ slabs(TM) }}
{{ half_functions(HALF_X or HALF_Y) }}
{{ load_weight(1, HALF_X) }}
// Four output channels of the weight of one input channel.
fn load_b(tap: u32, ci: u32, co: u32) -> vec4<f32> {
    if ci >= p.cin || co >= p.cout {
        return vec4<f32>(0.0);
    }
    return load_w(tap * p.cin + ci, co);
}
{% if DX %}
{{ load_channels("dy", "cout", 1, HALF_Y) }}
{% else %}
{{ load_channels("x", "cin", 1, HALF_X) }}
{% endif %}
{% if SPLIT %}
{{ store_partial("p.cin" if DX else "p.cout") }}
{% elif DX %}
{{ store_dx(1, HALF_X, ACC) }}
{% else %}
{{ load("bias", 1, "p.cout") }}
{% if EMB %}
{{ load("emb", 1, "p.cout") }}
{% endif %}
{{ store_y(1, HALF_Y, EMB, RESIDUAL) }}
{% endif %}
{% set from, channels, depth = ("dy", "p.cin", "p.cout") if DX else ("x", "p.cout", "p.cin") %}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let pixels = {% if DX %}p.n * p.h * p.w{% else %}p.n * p.oh * p.ow{% endif %};
    let flat = flat_group(group, groups);
    let split = flat / p.tiles;
    let tile = flat % p.tiles;
    let first = tile / p.tiles_n * {{ 16 * TM }}u;
    let column = tile % p.tiles_n * 64u;
    let begin = split * p.taps;
    let end = min(begin + p.taps, p.kernel * p.kernel);
    // The same for all invocations: nobody is left waiting at a barrier.
    if begin >= end {
        return;
    }
    let down = (local >> 4u) * {{ TM }}u;
    let across = local & 15u;
    let deep = (local & 3u) * 4u;
{{ staged_rows(TM // 4, "first + (local >> 2u)", 64, DX) }}
{{ sums(TM) }}
    for (var tap = begin; tap < end; tap += 1u) {
        let r = tap / p.kernel;
        let s = tap % p.kernel;
{{ staged_tap(TM // 4, "pixels", DX) }}
        for (var c = 0u; c < {{ depth }}; c += 16u) {
{% for t in range(TM // 4) %}
            var v{{ t }} = vec4<f32>(0.0);
            if ok{{ t }} && c + deep < {{ depth }} {
                v{{ t }} = load_{{ from }}(base{{ t }}, c + deep);
            }
            slab_a[local + {{ 256 * t }}u] = v{{ t }};
{% endfor %}
{% if DX %}
{{ turn_b("tap", "column", "c") }}
{% else %}
            slab_b[local] = load_b(tap, c + (local >> 4u), column + across * 4u);
{% endif %}
            workgroupBarrier();
{{ multiply(TM) }}
            workgroupBarrier();
        }
    }
    if column + across * 4u < {{ channels }} {
{% for m in range(TM) %}
        if first + down + {{ m }}u < pixels {
            store({% if SPLIT %}split * pixels + {% endif %}first + down + {{ m }}u, column + across * 4u, c{{ m }});
        }
{% endfor %}
    }
}
