// Adds the partial sums of one chunk to the sum over the chunks before (ACC),
// and takes the root after the last one (ROOT). One workgroup. `norm` holds
// the bits of a float, so that infinity can be written and tested exactly.
// SCALED, with ROOT: the gradients are those of the scaled loss. The norm is
// divided by the scale, norm[1] is what the optimizer multiplies them by, and
// the scale's state moves on.
{% include "common.wgsl" %}
{% if SCALED %}
{% include "power.wgsl" %}
{% endif %}
{% from "group_sum.wgsl" import group_sum, group_place %}
{% from "subgroup.wgsl" import subgroup_inputs %}

struct Params {
    parts: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> partial: array<f32>;            // [parts]
@group(0) @binding(2) var<storage, read_write> norm: array<u32>;         // [1], SCALED: [2]
{% if SCALED %}
@group(0) @binding(3) var<storage, read_write> state: array<vec4<f32>>;  // [1]: lg, growth, good, skipped
{% endif %}

{{ group_sum("vec2<f32>", SUBGROUP) }}

// Positive infinity.
const INF_BITS: u32 = 0x7f800000u;

@compute @workgroup_size(64)
fn main(@builtin(local_invocation_index) local: u32{{ subgroup_inputs(SUBGROUP) }}) {
    var sum = vec2<f32>(0.0);
    for (var i = local; i < p.parts; i += 64u) {
        let v = partial[i];
        sum += select(vec2<f32>(v, 0.0), vec2<f32>(0.0, 1.0), v < 0.0);
    }
    let total = group_sum({{ group_place(SUBGROUP) }}, sum);
    if local != 0u {
        return;
    }
    var value = total.x;
    var bad = total.y > 0.0;
{% if ACC %}
    let before = norm[0];
    if before == INF_BITS {
        bad = true;
    } else {
        value += bitcast<f32>(before);
    }
{% endif %}
{% if SCALED %}
    let old = state[0];
    let inverse = power_of_two(-scale_exponent(old.x));
    norm[0] = select(bitcast<u32>(inverse * sqrt(value)), INF_BITS, bad);
    norm[1] = bitcast<u32>(inverse);
    let ended = select(vec2<f32>(1.0, 0.0), vec2<f32>(0.0, 1.0), bad);
    let lg = clamp(old.x + select(old.y, -1.0, bad), -64.0, 64.0);
    state[0] = vec4<f32>(lg, old.y, old.zw + ended);
{% else %}
    norm[0] = select(bitcast<u32>({% if ROOT %}sqrt(value){% else %}value{% endif %}), INF_BITS, bad);
{% endif %}
}
