// The convolution of conv2d.wgsl, or with DX the gradient of conv2d_dx.wgsl, on
// cooperative matrices of COOP x COOP halves whose products are added up in 32 bits. All
// images and the weight hold halves, so nothing is rounded that is not stored so.
// A workgroup owns a tile of 64 pixels and 64 channels; slabs of pixels and of the
// weight, 32 deep, are staged as halves. Each of four subgroups owns 32 x 32 of the tile; a
// workgroup has at least four, and more repeat what others do. Rows of slabs
// are padded by 16 bytes, so that rows start in different banks.
// Channels are multiples of four. SPLIT: a workgroup sums some of the window's taps only,
// and conv2d_sum.wgsl adds the parts up.
enable f16;
enable wgpu_cooperative_matrix;
{% include "common.wgsl" %}
{% from "conv2d_store.wgsl" import store_partial, store_y, store_dx %}
{% from "quad.wgsl" import load %}
{% from "staged.wgsl" import staged_rows, staged_tap %}
{% from "storage.wgsl" import half_functions %}

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
@group(0) @binding(1) var<storage, read> dy: array<vec4<f16>>;              // [n, oh, ow, cout]
{% else %}
@group(0) @binding(1) var<storage, read> x: array<vec4<f16>>;               // [n, h, w, cin]
{% endif %}
@group(0) @binding(2) var<storage, read> weight: array<vec4<f16>>;          // [kernel, kernel, cin, cout]
{% if SPLIT %}
@group(0) @binding(3) var<storage, read_write> partial: array<vec4<f32>>;   // [splits, pixels, channels]
{% elif DX %}
@group(0) @binding(3) var<storage, read_write> dx: array<vec2<u32>>;        // [n, h, w, cin]
{% else %}
@group(0) @binding(3) var<storage, read> bias: array<vec4<f32>>;            // [cout]
{% if EMB %}
@group(0) @binding(4) var<storage, read> emb: array<vec4<f32>>;             // [n, cout]
{% endif %}
{% if RESIDUAL %}
@group(0) @binding(5) var<storage, read> residual: array<vec2<u32>>;        // [n, oh, ow, cout]
{% endif %}
@group(0) @binding(6) var<storage, read_write> y: array<vec2<u32>>;         // [n, oh, ow, cout]
{% endif %}

{% set from, channels, depth = ("dy", "p.cin", "p.cout") if DX else ("x", "p.cout", "p.cin") %}
{% set a_row, b_row = 40, 40 if DX else 72 %}
{% set S = COOP %}
{% set fragments = 32 // S %}
{% set mat = "coop_mat" ~ S ~ "x" ~ S %}
var<workgroup> slab_a: array<f16, {{ 64 * a_row }}>;   // [64 pixels, 32 of the depth]
{% if DX %}
var<workgroup> slab_b: array<f16, {{ 64 * b_row }}>;   // [64 channels, 32 of the depth]
{% else %}
var<workgroup> slab_b: array<f16, {{ 32 * b_row }}>;   // [32 of the depth, 64 channels]
{% endif %}
var<workgroup> results: array<f32, 1024>;   // 256 elements of each of four subgroups

{{ half_functions(1) }}
{% if SPLIT %}
{{ store_partial("p.cin" if DX else "p.cout") }}
{% elif DX %}
{{ store_dx(1, 1, ACC) }}
{% else %}
{{ load("bias", 1, "p.cout") }}
{% if EMB %}
{{ load("emb", 1, "p.cout") }}
{% endif %}
{{ store_y(1, 1, EMB, RESIDUAL) }}
{% endif %}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32, @builtin(subgroup_id) subgroup: u32) {
    let pixels = {% if DX %}p.n * p.h * p.w{% else %}p.n * p.oh * p.ow{% endif %};
    // Workgroups beyond the last tile find no pixels: a return would leave the
    // flow that cooperative operations need.
    let flat = flat_group(group, groups);
    let split = flat / p.tiles;
    let tile = flat % p.tiles;
    let begin = split * p.taps;
    let end = min(begin + p.taps, p.kernel * p.kernel);
    let first = select(pixels, tile / p.tiles_n * 64u, begin < end);
    let column = tile % p.tiles_n * 64u;
    let own = subgroup & 3u;
    let down = (own >> 1u) * 32u;
    let across = (own & 1u) * 32u;
    let deep = (local & 7u) * 4u;
{{ staged_rows(512 // WG, "first + (local >> 3u)", WG // 8, DX) }}
{% for i in range(fragments) %}{% for j in range(fragments) %}
    var c{{ i }}_{{ j }} = {{ mat }}<f32, C>();
{% endfor %}{% endfor %}
    for (var tap = begin; tap < end; tap += 1u) {
        let r = tap / p.kernel;
        let s = tap % p.kernel;
{{ staged_tap(512 // WG, "pixels", DX) }}
        for (var c = 0u; c < {{ depth }}; c += 32u) {
{% for t in range(512 // WG) %}
            var v{{ t }} = vec4<f16>();
            if ok{{ t }} && c + deep < {{ depth }} {
                v{{ t }} = {{ from }}[(base{{ t }} + c + deep) >> 2u];
            }
            let at{{ t }} = ((local >> 3u) + {{ t * (WG // 8) }}u) * {{ a_row }}u + deep;
{% for e in range(4) %}
            slab_a[at{{ t }} + {{ e }}u] = v{{ t }}[{{ e }}];
{% endfor %}
{% endfor %}
{% for t in range(512 // WG) %}
            var u{{ t }} = vec4<f16>();
{% if DX %}
            let ci{{ t }} = (local >> 3u) + {{ t * (WG // 8) }}u;
            if column + ci{{ t }} < p.cin && c + deep < p.cout {
                u{{ t }} = weight[((tap * p.cin + column + ci{{ t }}) * p.cout + c + deep) >> 2u];
            }
            let to{{ t }} = ci{{ t }} * {{ b_row }}u + deep;
{% else %}
            let k{{ t }} = (local >> 4u) + {{ t * (WG // 16) }}u;
            let co{{ t }} = (local & 15u) * 4u;
            if c + k{{ t }} < p.cin && column + co{{ t }} < p.cout {
                u{{ t }} = weight[((tap * p.cin + c + k{{ t }}) * p.cout + column + co{{ t }}) >> 2u];
            }
            let to{{ t }} = k{{ t }} * {{ b_row }}u + co{{ t }};
{% endif %}
{% for e in range(4) %}
            slab_b[to{{ t }} + {{ e }}u] = u{{ t }}[{{ e }}];
{% endfor %}
{% endfor %}
            workgroupBarrier();
            // Not unrolled: a turn has {{ fragments * fragments }} products already.
            for (var k = 0u; k < 32u; k += {{ S }}u) {
{% for j in range(fragments) %}
{# b of the gradient lies along the depth: column by column. #}
                let b{{ j }} = {% if DX %}coopLoad<{{ mat }}<f16, B>>(&slab_b[(across + {{ j * S }}u) * {{ b_row }}u + k], {{ b_row }}u){% else %}coopLoadT<{{ mat }}<f16, B>>(&slab_b[k * {{ b_row }}u + across + {{ j * S }}u], {{ b_row }}u){% endif %};
{% endfor %}
{% for i in range(fragments) %}
                let a{{ i }} = coopLoadT<{{ mat }}<f16, A>>(&slab_a[(down + {{ i * S }}u) * {{ a_row }}u + k], {{ a_row }}u);
{% for j in range(fragments) %}
                c{{ i }}_{{ j }} = coopMultiplyAdd(a{{ i }}, b{{ j }}, c{{ i }}_{{ j }});
{% endfor %}
{% endfor %}
            }
            workgroupBarrier();
        }
    }
{# Four turns of 256 elements a subgroup: 8 rows of 32, or 16 of 16. -#}
{% set width = 256 // S %}
{% for turn in range(4) %}
{% if S == 8 %}
{% for j in range(4) %}
    coopStoreT(c{{ turn }}_{{ j }}, &results[own * 256u + {{ 8 * j }}u], {{ width }}u);
{% endfor %}
{% set row, co = turn * 8, 0 %}
{% else %}
    coopStoreT(c{{ turn // 2 }}_{{ turn % 2 }}, &results[own * 256u], {{ width }}u);
{% set row, co = turn // 2 * 16, turn % 2 * 16 %}
{% endif %}
    workgroupBarrier();
    for (var q = local; q < 256u; q += {{ WG }}u) {
        let at = q * 4u % 256u;
        let pixel = first + (q >> 7u) * 32u + {{ row }}u + at / {{ width }}u;
        let channel = column + ((q >> 6u) & 1u) * 32u + {{ co }}u + at % {{ width }}u;
        if pixel < pixels && channel < {{ channels }} {
            store({% if SPLIT %}split * pixels + {% endif %}pixel, channel, vec4<f32>(results[q * 4u], results[q * 4u + 1u], results[q * 4u + 2u], results[q * 4u + 3u]));
        }
    }
    workgroupBarrier();
{% endfor %}
}
