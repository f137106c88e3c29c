// Gradient of a convolution with respect to its weight and bias:
//   dweight[r, s, ci, co] = sum over pixels of x[n, oy*stride+r-pad, ox*stride+s-pad, ci] * dy[pixel, co]
//   dbias[co]             = sum over pixels of dy[pixel, co]
// An invocation owns TM input by TN output channels of one tap and sums over
// the image rows of its split; the splits are added by sum_splits.wgsl in a
// fixed order, so the result does not depend on scheduling.
// SPLIT: there are several, which write their parts; WHOLE: the only one writes
// (ACC: adds to) the gradients.
// UNI: a workgroup has one tile of output channels and one split, its lanes are
// taps and input channels; so they load dy together (uniform.wgsl), PX pixels of
// a row a turn. cout is then a multiple of TN, the row's width one of PX.
// HALF_X: x holds halves (VEC is then set), HALF_Y: dy does.
{% include "common.wgsl" %}
{% from "quad.wgsl" import load, store %}
{% from "storage.wgsl" import element, half_functions %}
{% from "uniform.wgsl" import load_eights, uniform_functions %}

struct Params {
    n: u32, h: u32, w: u32, cin: u32,
    oh: u32, ow: u32, cout: u32,
    kernel: u32, stride: u32, pad: u32,
    tiles_m: u32, tiles_n: u32, tiles: u32,
    rows_per_split: u32,
}
{% set T = "vec4<f32>" if VEC else "f32" %}
{% set EIGHTS = UNI and not HALF_Y %}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<{{ element(VEC, HALF_X) }}>;                    // [n, h, w, cin]
@group(0) @binding(2) var<storage, read> dy: array<{{ "mat2x4<f32>" if EIGHTS else element(VEC, HALF_Y) }}>;                   // [n, oh, ow, cout]
{% if SPLIT %}
@group(0) @binding(3) var<storage, read_write> partial: array<{{ T }}>;        // [splits, kernel*kernel*cin*cout + cout]
{% else %}
@group(0) @binding(4) var<storage, read_write> dweight: array<{{ T }}>;        // [kernel*kernel*cin*cout]
@group(0) @binding(5) var<storage, read_write> dbias: array<{{ T }}>;          // [cout]
{% endif %}

{{ half_functions(HALF_X or HALF_Y) }}
{{ uniform_functions(UNI) }}
// Past the last channel anything will do: those products are not stored.
{{ load("x", VEC, "p.cin", HALF_X) }}
{% if not UNI %}
{{ load("dy", VEC or HALF_Y, "p.cout", HALF_Y) }}
{% endif %}
{% for name in (["partial"] if SPLIT else ["dweight", "dbias"]) %}
{{ store(name, VEC, ACC, "p.cout") }}
{% endfor %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let taps = p.kernel * p.kernel;
{% if UNI %}
    let flat = flat_group(group, groups);
    let co = uniform10(flat % p.tiles_n) * {{ TN }}u;
    let blocks = (taps * p.tiles_m + {{ WG - 1 }}u) / {{ WG }}u;
    let split = (flat / p.tiles_n) / blocks;
    let index = ((flat / p.tiles_n) % blocks) * {{ WG }}u + local;
    let ci = (index % p.tiles_m) * {{ TM }}u;
    let tap = index / p.tiles_m;
    if tap >= taps {
        return;
    }
    let dy_row = uniform25(p.cout >> {{ 3 if EIGHTS else 2 }}u);
{% else %}
    let index = flat_group(group, groups) * 64u + local;
    if index >= p.tiles {
        return;
    }
    let co = (index % p.tiles_n) * {{ TN }}u;
    var rest = index / p.tiles_n;
    let ci = (rest % p.tiles_m) * {{ TM }}u;
    rest = rest / p.tiles_m;
    let tap = rest % taps;
    let split = rest / taps;
{% endif %}
    let r = tap / p.kernel;
    let s = tap % p.kernel;
{% if not UNI %}
    // Columns whose input column lies inside the image.
    let ox_first = select(0u, (p.pad - s + p.stride - 1u) / p.stride, s < p.pad);
    let ox_last = min(p.ow, (p.w + p.pad - s + p.stride - 1u) / p.stride);
{% endif %}
    let centre = r == p.pad && s == p.pad && ci == 0u;
{% for i in range(TM) %}{% for j in range(TN // 4) %}
    var a{{ i }}_{{ j }} = vec4<f32>(0.0);
{% endfor %}{% endfor %}
{% for j in range(TN // 4) %}
    var b{{ j }} = vec4<f32>(0.0);
{% endfor %}
    let row_end = min(p.n * p.oh, (split + 1u) * p.rows_per_split);
    for (var row = split * p.rows_per_split; row < row_end; row += 1u) {
        let image = row / p.oh;
        let iy = (row % p.oh) * p.stride + r - p.pad;
{% if UNI %}
        let yi = uniform25(row * p.ow * (p.cout >> {{ 3 if EIGHTS else 2 }}u)) + (co >> {{ 3 if EIGHTS else 2 }}u);
        let xi = (image * p.h + iy) * p.w;
        for (var ox = 0u; ox < p.ow; ox += {{ PX }}u) {
            let at = yi + uniform10(ox) * dy_row;
{% for q in range(PX) %}
{% if EIGHTS %}
{{ load_eights("g" ~ q ~ "_", "dy", "at + " ~ q ~ "u * dy_row", TN // 4) }}
{% endif %}
{% for j in range(TN // 4) %}
{% if not EIGHTS %}
            let g{{ q }}_{{ j }} = unpack4(dy[at + {{ q }}u * dy_row + {{ j }}u]);
{% endif %}
            b{{ j }} += g{{ q }}_{{ j }};
{% endfor %}
            let ix{{ q }} = (ox + {{ q }}u) * p.stride + s - p.pad;
            let ok{{ q }} = iy < p.h && ix{{ q }} < p.w;
            let xp{{ q }} = select(0u, (xi + ix{{ q }}) * p.cin, ok{{ q }});
{% for i in range(TM // 4) %}
            let v{{ q }}_{{ i }} = select(vec4<f32>(0.0), load_x(xp{{ q }}, ci + {{ 4 * i }}u), ok{{ q }});
{% endfor %}
{% endfor %}
{% for i in range(TM // 4) %}{% for k in range(4) %}{% for j in range(TN // 4) %}
            a{{ 4 * i + k }}_{{ j }} += {% for q in range(PX) %}v{{ q }}_{{ i }}[{{ k }}] * g{{ q }}_{{ j }}{% if not loop.last %} + {% endif %}{% endfor %};
{% endfor %}{% endfor %}{% endfor %}
        }
{% else %}
        if iy >= p.h {
            continue;
        }
        var xi = ((image * p.h + iy) * p.w + ox_first * p.stride + s - p.pad) * p.cin;
        var yi = (row * p.ow + ox_first) * p.cout;
        for (var ox = ox_first; ox < ox_last; ox += 1u) {
{% for j in range(TN // 4) %}
            let g{{ j }} = load_dy(yi, {% if VEC or HALF_Y %}min(co + {{ 4 * j }}u, p.cout - 4u){% else %}co + {{ 4 * j }}u{% endif %});
            b{{ j }} += g{{ j }};
{% endfor %}
{% for i in range(TM // 4) %}
            let v{{ i }} = load_x(xi, {% if VEC %}min(ci + {{ 4 * i }}u, p.cin - 4u){% else %}ci + {{ 4 * i }}u{% endif %});
{% for k in range(4) %}{% for j in range(TN // 4) %}
            a{{ 4 * i + k }}_{{ j }} += v{{ i }}[{{ k }}] * g{{ j }};
{% endfor %}{% endfor %}{% endfor %}
            xi += p.stride * p.cin;
            yi += p.cout;
        }
{% endif %}
    }
{% if SPLIT %}
    let weights = taps * p.cin * p.cout;
    let base = split * (weights + p.cout);
{% else %}
    let base = 0u;
{% endif %}
{% for i in range(TM) %}
    if ci + {{ i }}u < p.cin {
        let at = base + (tap * p.cin + ci + {{ i }}u) * p.cout;
{% for j in range(TN // 4) %}
        if co + {{ 4 * j }}u < p.cout { store_{{ "partial" if SPLIT else "dweight" }}(at, co + {{ 4 * j }}u, a{{ i }}_{{ j }}); }
{% endfor %}
    }
{% endfor %}
    if centre {
{% for j in range(TN // 4) %}
        if co + {{ 4 * j }}u < p.cout { store_{{ "partial(base + weights" if SPLIT else "dbias(0u" }}, co + {{ 4 * j }}u, b{{ j }}); }
{% endfor %}
    }
}
