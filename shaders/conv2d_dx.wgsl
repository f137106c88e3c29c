// Gradient of a convolution with respect to its input, gathered:
//   dx[n, iy, ix, ci] = sum over r, s, co of dy[n, (iy+pad-r)/stride, (ix+pad-s)/stride, co] * weight[r, s, ci, co]
// where the divisions must come out even. An invocation owns TM consecutive
// input pixels and TN input channels; the reduction runs along co, which is
// contiguous in dy and in weight, so every product is a dot of vec4s.
// UNI: a workgroup has one channel tile, so that its lanes load the weight
// together (uniform.wgsl); cin is then a multiple of TN.
// HALF_X: dx and weight hold halves (VEC is then set), HALF_Y: dy does.
{% include "common.wgsl" %}
{% from "conv2d_load.wgsl" import load_channels, load_weight %}
{% from "conv2d_store.wgsl" import store_dx %}
{% from "storage.wgsl" import element, half_functions %}
{% from "uniform.wgsl" import uniform_functions %}

struct Params {
    n: u32, h: u32, w: u32, cin: u32,
    oh: u32, ow: u32, cout: u32,
    kernel: u32, stride: u32, pad: u32,
    tiles_n: u32, tiles: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> dy: array<{{ element(VEC, HALF_Y) }}>;             // [n, oh, ow, cout]
@group(0) @binding(2) var<storage, read> weight: array<{{ element(VEC, HALF_X) }}>;         // [kernel, kernel, cin, cout]
@group(0) @binding(3) var<storage, read_write> dx: array<{{ element(VEC, HALF_X) }}>;       // [n, h, w, cin]

{{ half_functions(HALF_X or HALF_Y) }}
{{ uniform_functions(UNI) }}
{{ load_channels("dy", "cout", VEC, HALF_Y) }}
{{ load_weight(VEC, HALF_X) }}

{{ store_dx(VEC, HALF_X, ACC) }}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let pixels = p.n * p.h * p.w;
{% if UNI %}
    let flat = flat_group(group, groups);
    let ci = uniform10(flat % p.tiles_n) * {{ TN }}u;
    let first = ((flat / p.tiles_n) * {{ WG }}u + local) * {{ TM }}u;
    if first >= pixels {
        return;
    }
    let row_of_four = uniform25(p.cout >> 2u);
{% else %}
    let tile = flat_group(group, groups) * 64u + local;
    if tile >= p.tiles {
        return;
    }
    let ci = (tile % p.tiles_n) * {{ TN }}u;
    let first = (tile / p.tiles_n) * {{ TM }}u;
{% endif %}
    var ix = first % p.w;
    var iy = (first / p.w) % p.h;
    var image = first / (p.w * p.h);
{% for m in range(TM) %}
    let row{{ m }} = image * p.oh;
    let y{{ m }} = iy + p.pad;
    let x{{ m }} = ix + p.pad;
    let in{{ m }} = first + {{ m }}u < pixels;
{% if not loop.last %}
    ix += 1u;
    if ix == p.w { ix = 0u; iy += 1u; if iy == p.h { iy = 0u; image += 1u; } }
{% endif %}
{% endfor %}
{% for m in range(TM) %}{% for k in range(TN) %}
    var a{{ m }}_{{ k }} = 0.0;
{% endfor %}{% endfor %}
    for (var r = 0u; r < p.kernel; r += 1u) {
        for (var s = 0u; s < p.kernel; s += 1u) {
            // Below zero wraps to huge values, which fail the range test.
{% for m in range(TM) %}
{% if STRIDE1 %}
            let qy{{ m }} = y{{ m }} - r;
            let qx{{ m }} = x{{ m }} - s;
            let ok{{ m }} = in{{ m }} && qy{{ m }} < p.oh && qx{{ m }} < p.ow;
{% else %}
            let qy{{ m }} = (y{{ m }} - r) / p.stride;
            let qx{{ m }} = (x{{ m }} - s) / p.stride;
            let ok{{ m }} = in{{ m }} && qy{{ m }} < p.oh && qx{{ m }} < p.ow && qy{{ m }} * p.stride + r == y{{ m }} && qx{{ m }} * p.stride + s == x{{ m }};
{% endif %}
            let base{{ m }} = select(0u, ((row{{ m }} + qy{{ m }}) * p.ow + qx{{ m }}) * p.cout, ok{{ m }});
{% endfor %}
{% if UNI %}
            let tap = uniform25((r * p.kernel + s) * p.cin * (p.cout >> 2u)) + ci * row_of_four;
{% else %}
            let row = (r * p.kernel + s) * p.cin + ci;
{% endif %}
            for (var c = 0u; c < p.cout; c += 4u) {
{% if UNI %}
                let at = tap + uniform10(c >> 2u);
{% for k in range(TN) %}
                let w{{ k }} = {% if HALF_X %}unpack4(weight[at + {{ k }}u * row_of_four]){% else %}weight[at + {{ k }}u * row_of_four]{% endif %};
{% endfor %}
{% else %}
{% for k in range(TN) %}
                let w{{ k }} = load_w({% if VEC %}min(row + {{ k }}u, p.kernel * p.kernel * p.cin - 1u){% else %}row + {{ k }}u{% endif %}, c);
{% endfor %}
{% endif %}
{% for m in range(TM) %}
                let v{{ m }} = select(vec4<f32>(0.0), load_dy(base{{ m }}, c), ok{{ m }});
{% for k in range(TN) %}
                a{{ m }}_{{ k }} += dot(v{{ m }}, w{{ k }});
{% endfor %}{% endfor %}
            }
        }
    }
{% for m in range(TM) %}
    if in{{ m }} {
{% for j in range(TN // 4) %}
        if ci + {{ 4 * j }}u < p.cin {
            store(first + {{ m }}u, ci + {{ 4 * j }}u, vec4<f32>(a{{ m }}_{{ 4 * j }}, a{{ m }}_{{ 4 * j + 1 }}, a{{ m }}_{{ 4 * j + 2 }}, a{{ m }}_{{ 4 * j + 3 }}));
        }
{% endfor %}
    }
{% endfor %}
}
