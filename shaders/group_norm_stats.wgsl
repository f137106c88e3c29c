// Statistics of a group norm and its per-channel coefficients:
//   y = a * (x - pivot) + b,   pivot = the channel's value in the image's first pixel,
//   a = gamma * (1 + scale) * rstd,   b = beta * (1 + scale) + shift - a * (mean - pivot).
// A workgroup owns a window of channels (whole groups) of one image: its
// invocations stand on `rows` pixels times the window's channel quads and walk
// down the pixels. Means and squared deviations are merged by Chan, Golub and
// LeVeque's update ("Updating Formulae...", 1979), from blocks of four pixels
// held in registers up to the group, relative to the pivot: neither a mean far
// larger than the deviation nor an outlying pivot costs accuracy.
// With PARTIAL a workgroup covers one split of the pixels and writes (mean, squared
// deviations) per channel; with MERGE those are read instead of x. With MOMENTS the
// walk is over the moments of `each` pixels that a convolution left, not over
// the pixels. With SUBGROUP, for windows of one, two, four, .. quads, a subgroup
// merges its rows first.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, one %}
{% from "storage.wgsl" import element, half_functions %}
{% from "subgroup.wgsl" import subgroup_inputs %}

struct Params {
    n: u32,
    hw: u32,       // places walked in an image: pixels, or tiles of `each`
    c: u32, width: u32,
    window: u32, windows: u32,
    pixels: u32,   // such places of a split
    splits: u32,
    eps: f32,
    each: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF_X) }}>;                  // [n, hw, c]
{% if not PARTIAL %}
@group(0) @binding(2) var<storage, read> weight: array<f32>;                 // [c]
@group(0) @binding(3) var<storage, read> bias: array<f32>;                   // [c]
{% if EMB %}
@group(0) @binding(4) var<storage, read> emb: array<f32>;                    // [n, 2, c]: scale, shift
{% endif %}
@group(0) @binding(5) var<storage, read_write> coefs: array<f32>;            // [n, 4, c]: a, b, mean - pivot, rstd
{% endif %}
{% if MERGE %}
@group(0) @binding(6) var<storage, read> partials: array<f32>;                // [n, splits, 2, c]
{% endif %}
{% if PARTIAL %}
@group(0) @binding(7) var<storage, read_write> partials_out: array<f32>;      // [n, splits, 2, c]
{% endif %}
{% if MOMENTS %}
@group(0) @binding(8) var<storage, read> moments: array<vec4<f32>>;           // [n, hw, 2, c]: mean, squared deviations
{% endif %}

{{ half_functions(HALF_X) }}
{% if not MERGE %}
{{ load("x", VEC, half=HALF_X) }}
var<workgroup> row_mean: array<f32, 256>;
var<workgroup> row_m2: array<f32, 256>;

// Of `pixels` dealt to `rows` in turn, those of `some` rows from `first` on.
fn rows_pixels(pixels: u32, rows: u32, first: u32, some: u32) -> f32 {
    let rest = clamp(pixels % rows, first, first + some) - first;
    return f32((pixels / rows) * some + rest);
}
{% endif %}
{% if not PARTIAL %}
{{ one("x", VEC, HALF_X) }}
var<workgroup> mean: array<f32, 256>;   // of a channel, later of a group
var<workgroup> m2: array<f32, 256>;
var<workgroup> rstd: array<f32, 256>;
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
    let image = n * p.hw * p.each * p.c;
{% if not MERGE %}
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
        var lane_mean = vec4<f32>(0.0);
        var lane_m2 = vec4<f32>(0.0);
{% if MOMENTS %}
        let step = rows * p.c / 2u;
        var at = ((n * p.hw + begin + row) * 2u * p.c + c) >> 2u;
        var seen = 0.0;
        for (var tile = begin + row; tile < end; tile += rows) {
            let delta = moments[at] - pivot - lane_mean;
            let part = 1.0 / (seen + 1.0);
            lane_mean += delta * part;
            lane_m2 += moments[at + (p.c >> 2u)] + (f32(p.each) * seen * part) * delta * delta;
            seen += 1.0;
            at += step;
        }
{% else %}
        let step = rows * p.c;
        var at = image + (begin + row) * p.c;
        var pixel = begin + row;
        var blocks = 0.0;
        for (; pixel + 3u * rows < end; pixel += 4u * rows) {
{% for i in range(4) %}
            let v{{ i }} = load_x(at + {{ i }}u * step, c) - pivot;
{% endfor %}
            let block_mean = 0.25 * ((v0 + v1) + (v2 + v3));
{% for i in range(4) %}
            let d{{ i }} = v{{ i }} - block_mean;
{% endfor %}
            let delta = block_mean - lane_mean;
            let part = 1.0 / (blocks + 1.0);
            lane_mean += delta * part;
            lane_m2 += (d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3) + (4.0 * blocks * part) * delta * delta;
            blocks += 1.0;
            at += 4u * step;
        }
        var seen = 4.0 * blocks;
        for (; pixel < end; pixel += rows) {
            let delta = load_x(at, c) - pivot - lane_mean;
            let part = 1.0 / (seen + 1.0);
            lane_mean += delta * part;
            lane_m2 += (seen * part) * delta * delta;
            seen += 1.0;
            at += step;
        }
{% endif %}
{% if SUBGROUP %}
        for (var apart = quads; apart < lanes; apart *= 2u) {
            let delta = subgroupShuffleXor(lane_mean, apart) - lane_mean;
            let others = subgroupShuffleXor(seen, apart);
            let part = others / max(seen + others, 1.0);
            lane_m2 += subgroupShuffleXor(lane_m2, apart) + (f32(p.each) * seen * part) * delta * delta;
            lane_mean += part * delta;
            seen += others;
        }
{% endif %}
        if row % merged == 0u {
            let slot = ((row / merged) * quads + place % quads) * 4u;
{% for k in range(4) %}
            row_mean[slot + {{ k }}u] = lane_mean[{{ k }}];
            row_m2[slot + {{ k }}u] = lane_m2[{{ k }}];
{% endfor %}
        }
    }
    workgroupBarrier();
    let parts = (min(rows, end - begin) + merged - 1u) / merged;
    let total = f32(end - begin);
{% else %}
    let parts = p.splits;
    let total = f32(p.hw);
{% endif %}
    // Merge the parts (rows or splits) of each channel.
    for (var j = local; j < channels; j += 64u) {
        var channel_mean = 0.0;
        for (var part = 0u; part < parts; part += 1u) {
{% if MERGE %}
            let count = f32(min(p.hw - part * p.pixels, p.pixels));
            let part_mean = partials[((n * p.splits + part) * 2u) * p.c + first + j];
{% else %}
            let count = rows_pixels(end - begin, rows, part * merged, merged);
            let part_mean = row_mean[part * quads * 4u + j];
{% endif %}
            channel_mean += count * part_mean;
        }
        channel_mean /= total;
        var channel_m2 = 0.0;
        for (var part = 0u; part < parts; part += 1u) {
{% if MERGE %}
            let count = f32(min(p.hw - part * p.pixels, p.pixels));
            let at = ((n * p.splits + part) * 2u) * p.c + first + j;
            let delta = partials[at] - channel_mean;
            channel_m2 += partials[at + p.c] + f32(p.each) * count * delta * delta;
{% else %}
            let count = rows_pixels(end - begin, rows, part * merged, merged);
            let delta = row_mean[part * quads * 4u + j] - channel_mean;
            channel_m2 += row_m2[part * quads * 4u + j] + f32(p.each) * count * delta * delta;
{% endif %}
        }
{% if PARTIAL %}
        let at = ((n * splits + split) * 2u) * p.c + first + j;
        partials_out[at] = channel_mean;
        partials_out[at + p.c] = channel_m2;
{% else %}
        // Within a group, means are relative to its first channel's pivot.
        mean[j] = channel_mean + (one_x(image + first + j) - one_x(image + first + j - j % p.width));
        m2[j] = channel_m2;
{% endif %}
    }
{% if not PARTIAL %}
    workgroupBarrier();
    // Merge the channels of each group; only the group's own invocation
    // touches its channels, so the result may replace them.
    for (var g = local; g * p.width < channels; g += 64u) {
        let start = g * p.width;
        var group_mean = 0.0;
        for (var j = start; j < start + p.width; j += 1u) {
            group_mean += mean[j];
        }
        group_mean /= f32(p.width);
        var group_m2 = 0.0;
        for (var j = start; j < start + p.width; j += 1u) {
            let delta = mean[j] - group_mean;
            group_m2 += m2[j] + f32(p.each) * total * delta * delta;
        }
        mean[start] = group_mean;
        rstd[start] = 1.0 / sqrt(group_m2 / (f32(p.each) * total * f32(p.width)) + p.eps);
    }
    workgroupBarrier();
    for (var j = local; j < channels; j += 64u) {
        let start = j - j % p.width;
        let c = first + j;
        let offset = mean[start] - (one_x(image + c) - one_x(image + first + start));
        var gamma = weight[c];
        var beta = bias[c];
{% if EMB %}
        let scale = 1.0 + emb[n * 2u * p.c + c];
        gamma *= scale;
        beta = beta * scale + emb[(n * 2u + 1u) * p.c + c];
{% endif %}
        let a = gamma * rstd[start];
        let at = n * 4u * p.c + c;
        coefs[at] = a;
        coefs[at + p.c] = beta - a * offset;
        coefs[at + 2u * p.c] = offset;
        coefs[at + 3u * p.c] = rstd[start];
    }
{% endif %}
}
