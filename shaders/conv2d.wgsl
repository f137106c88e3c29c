// Convolution forward as an implicit GEMM:
//   y[pixel, co] = bias[co] + emb[n, co] + residual[pixel, co]
//                + sum over r, s, ci of x[n, oy*stride+r-pad, ox*stride+s-pad, ci] * weight[r, s, ci, co]
// An invocation owns TM consecutive output pixels and TN output channels in
// registers and walks the reduction four input channels at a time.
// UNI: a workgroup has one channel tile, so that its lanes load the weight
// together (uniform.wgsl); with VEC cout is then a multiple of TN, without it the
// reduction goes channel by channel.
// HALF_X: x and weight hold halves (VEC is then set), HALF_Y: y and residual do.
{% include "common.wgsl" %}
{% from "conv2d_load.wgsl" import load_channels, load_weight %}
{% from "conv2d_store.wgsl" import store_y %}
{% from "quad.wgsl" import load %}
{% from "storage.wgsl" import element, half_functions %}
{% from "uniform.wgsl" import load_eights, uniform_functions %}

struct Params {
    n: u32, h: u32, w: u32, cin: u32,
    oh: u32, ow: u32, cout: u32,
    kernel: u32, stride: u32, pad: u32,
    tiles_n: u32, tiles: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
{% set EIGHTS = UNI and VEC and not HALF_X %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF_X) }}>;              // [n, h, w, cin]
@group(0) @binding(2) var<storage, read> weight: array<{{ "mat2x4<f32>" if EIGHTS else element(VEC, HALF_X) }}>;         // [kernel, kernel, cin, cout]
@group(0) @binding(3) var<storage, read> bias: array<{{ T }}>;           // [cout]
{% if EMB %}
@group(0) @binding(4) var<storage, read> emb: array<{{ T }}>;            // [n, cout]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(5) var<storage, read> residual: array<{{ element(VEC, HALF_Y) }}>;       // [n, oh, ow, cout]
{% endif %}
@group(0) @binding(6) var<storage, read_write> y: array<{{ element(VEC, HALF_Y) }}>;        // [n, oh, ow, cout]

{{ half_functions(HALF_X or HALF_Y) }}
{{ uniform_functions(UNI) }}
{{ load_channels("x", "cin", VEC, HALF_X) }}
{% if not UNI %}
{{ load_weight(VEC, HALF_X) }}
{% endif %}
{% if HALF_Y %}
{{ load("bias", VEC, "p.cout") }}
{% if EMB %}
{{ load("emb", VEC, "p.cout") }}
{% endif %}
{% endif %}

{{ store_y(VEC, HALF_Y, EMB, RESIDUAL) }}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let pixels = p.n * p.oh * p.ow;
{% if UNI %}
    let flat = flat_group(group, groups);
    let co = uniform10(flat % p.tiles_n) * {{ TN }}u;
    let first = ((flat / p.tiles_n) * {{ WG }}u + local) * {{ TM }}u;
    if first >= pixels {
        return;
    }
{% if VEC %}
    let weight_row = uniform25(p.cout >> {{ 3 if EIGHTS else 2 }}u);
{% endif %}
{% else %}
    let tile = flat_group(group, groups) * 64u + local;
    if tile >= p.tiles {
        return;
    }
    let co = (tile % p.tiles_n) * {{ TN }}u;
    let first = (tile / p.tiles_n) * {{ TM }}u;
{% endif %}
    // Image row start and the window's corner of every pixel of the tile.
    var ox = first % p.ow;
    var oy = (first / p.ow) % p.oh;
    var image = first / (p.ow * p.oh);
{% for m in range(TM) %}
    let row{{ m }} = image * p.h;
    let y{{ m }} = oy * p.stride - p.pad;
    let x{{ m }} = ox * p.stride - p.pad;
    let in{{ m }} = first + {{ m }}u < pixels;
{% if not loop.last %}
    ox += 1u;
    if ox == p.ow { ox = 0u; oy += 1u; if oy == p.oh { oy = 0u; image += 1u; } }
{% endif %}
{% endfor %}
{% if UNI and not VEC %}
    let last = uniform10(p.cout - 1u - co);
    let cout = uniform10(p.cout);
{% endif %}
{% for m in range(TM) %}{% for j in range(TN // 4) %}
    var a{{ m }}_{{ j }} = vec4<f32>(0.0);
{% endfor %}{% endfor %}
    for (var r = 0u; r < p.kernel; r += 1u) {
        for (var s = 0u; s < p.kernel; s += 1u) {
            // Negative coordinates wrap to huge ones, so one compare serves both edges.
{% for m in range(TM) %}
            let ok{{ m }} = in{{ m }} && y{{ m }} + r < p.h && x{{ m }} + s < p.w;
            let base{{ m }} = select(0u, ((row{{ m }} + y{{ m }} + r) * p.w + x{{ m }} + s) * p.cin, ok{{ m }});
{% endfor %}
            var row = (r * p.kernel + s) * p.cin;
{% if UNI and not VEC %}
            let tap = uniform25(row * p.cout) + co;
            for (var c = 0u; c < p.cin; c += 1u) {
                let at = tap + uniform10(c) * cout;
{# Past the last channel any weight will do: that product is not stored. #}
{% for j in range(TN // 4) %}{% for k in range(4) %}
                let w{{ j }}_{{ k }} = weight[at + min({{ 4 * j + k }}u, last)];
{% endfor %}
                let w{{ j }} = vec4<f32>(w{{ j }}_0, w{{ j }}_1, w{{ j }}_2, w{{ j }}_3);
{% endfor %}
{% for m in range(TM) %}
                let v{{ m }} = select(0.0, x[base{{ m }} + c], ok{{ m }});
{% for j in range(TN // 4) %}
                a{{ m }}_{{ j }} += v{{ m }} * w{{ j }};
{% endfor %}{% endfor %}
            }
{% else %}
{% if UNI %}
            let tap = uniform25(row * (p.cout >> {{ 3 if EIGHTS else 2 }}u)) + (co >> {{ 3 if EIGHTS else 2 }}u);
{% endif %}
            for (var c = 0u; c < p.cin; c += 4u) {
{% if UNI %}
                let at = tap + uniform10(c >> 2u) * weight_row * 4u;
{% for i in range(4) %}
{% if EIGHTS %}
{{ load_eights("w" ~ i ~ "_", "weight", "at + " ~ i ~ "u * weight_row", TN // 4) }}
{% else %}
{% for j in range(TN // 4) %}
                let w{{ i }}_{{ j }} = unpack4(weight[at + {{ i }}u * weight_row + {{ j }}u]);
{% endfor %}
{% endif %}
{% endfor %}
{% else %}
{% for i in range(4) %}{% for j in range(TN // 4) %}
                let w{{ i }}_{{ j }} = load_w(row + {{ i }}u, co + {{ 4 * j }}u);
{% endfor %}{% endfor %}
{% endif %}
{% for m in range(TM) %}
                let v{{ m }} = select(vec4<f32>(0.0), load_x(base{{ m }}, c), ok{{ m }});
{% for j in range(TN // 4) %}
                a{{ m }}_{{ j }} += v{{ m }}.x * w0_{{ j }} + v{{ m }}.y * w1_{{ j }} + v{{ m }}.z * w2_{{ j }} + v{{ m }}.w * w3_{{ j }};
{% endfor %}{% endfor %}
                row += 4u;
            }
{% endif %}
        }
    }
{% for m in range(TM) %}
    if in{{ m }} {
{% for j in range(TN // 4) %}
        if co + {{ 4 * j }}u < p.cout { store(first + {{ m }}u, co + {{ 4 * j }}u, a{{ m }}_{{ j }}); }
{% endfor %}
    }
{% endfor %}
}
