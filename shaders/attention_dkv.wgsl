// Gradient of self-attention with respect to keys and values, with w and ds as
// in attention_dq.wgsl:
//   dv[j] = sum over i of w[i, j] * dy[i]
//   dk[j] = scale * sum over i of ds[i, j] * q[i]
// An invocation owns OWNED keys and walks the queries STREAMED at a time. HOLD:
// its keys and values stay in registers; otherwise they are read again for every block
// of queries, and SLICES invocations share the channels of dk and dv.
// Loops over channels end at p.chunks, not at a constant, so that no compiler
// unrolls them: software drivers take long to compile each load and store.
{% include "common.wgsl" %}
{% from "attention_head.wgsl" import load_chunk, own_rows, store_chunk %}
{% from "storage.wgsl" import element, half_functions %}
{% from "uniform.wgsl" import uniform_functions %}
{% set D4 = (D + 3) // 4 %}{% set S4 = (D4 + SLICES - 1) // SLICES %}

struct Params {
    tokens: u32, heads: u32, channels: u32,
    head_stride: u32, k_off: u32, v_off: u32,
    chunks: u32, blocks: u32, tasks: u32, scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> qkv: array<{{ element(VEC, HALF) }}>;            // [n, tokens, 3 channels]
@group(0) @binding(2) var<storage, read> dy: array<{{ element(VEC, HALF) }}>;             // [n, tokens, channels]
@group(0) @binding(3) var<storage, read> lse: array<f32>;                // [n, heads, tokens]
@group(0) @binding(4) var<storage, read> delta: array<f32>;              // [n, heads, tokens]
@group(0) @binding(5) var<storage, read_write> dqkv: array<{{ element(VEC, HALF) }}>;     // [n, tokens, 3 channels]

{{ half_functions(HALF) }}
{{ uniform_functions(UNI) }}
{{ load_chunk("qkv", D, VEC, HALF) }}
{{ load_chunk("dy", D, VEC, HALF) }}
{{ store_chunk("dqkv", D, VEC, ACC, HALF) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
{{ own_rows(OWNED, SLICES) }}
    // What is streamed is the same for the whole workgroup (UNI: uniform.wgsl).
    let base = uniform25(token0 * row + start);
    let step = uniform25(row);
    let dy_base = uniform25(token0 * p.channels + head * {{ D }}u);
    let dy_step = uniform25(p.channels);
    let pair_base = uniform25(pair * p.tokens);
{% for j in range(OWNED) %}
    let at{{ j }} = (token0 + min(first + {{ j }}u, last)) * row + start;
{% if HOLD %}{% for c in range(D4) %}
    var k{{ j }}_{{ c }} = vec4<f32>(0.0);
    var v{{ j }}_{{ c }} = vec4<f32>(0.0);
{% endfor %}{% endif %}
{% for c in range(S4) %}
    var dk{{ j }}_{{ c }} = vec4<f32>(0.0);
    var dv{{ j }}_{{ c }} = vec4<f32>(0.0);
{% endfor %}{% endfor %}
{% if HOLD %}
    for (var c = 0u; c < p.chunks; c += 1u) {
{% for j in range(OWNED) %}
        let k{{ j }} = scale * load_qkv(at{{ j }} + p.k_off, c);
        let v{{ j }} = load_qkv(at{{ j }} + p.v_off, c);
{% for k in range(D4) %}
        k{{ j }}_{{ k }} = select(k{{ j }}_{{ k }}, k{{ j }}, c == {{ k }}u);
        v{{ j }}_{{ k }} = select(v{{ j }}_{{ k }}, v{{ j }}, c == {{ k }}u);
{% endfor %}{% endfor %}
    }
{% endif %}
    for (var query = 0u; query < p.tokens; query += {{ STREAMED }}u) {
{% for i in range(STREAMED) %}
        let query{{ i }} = uniform15(min(query + {{ i }}u, last));
        let q_at{{ i }} = base + query{{ i }} * step;
        let g_at{{ i }} = dy_base + query{{ i }} * dy_step;
        let lse{{ i }} = lse[pair_base + query{{ i }}];
        let d{{ i }} = delta[pair_base + query{{ i }}];
{% for j in range(OWNED) %}
        var s{{ i }}_{{ j }} = 0.0;
        var b{{ i }}_{{ j }} = 0.0;
{% endfor %}{% endfor %}
{% if HOLD %}
{% for c in range(D4) %}{% for i in range(STREAMED) %}
        let q{{ i }}_{{ c }} = load_qkv(q_at{{ i }}, {{ c }}u);
        let g{{ i }}_{{ c }} = load_dy(g_at{{ i }}, {{ c }}u);
{% for j in range(OWNED) %}
        s{{ i }}_{{ j }} += dot(q{{ i }}_{{ c }}, k{{ j }}_{{ c }});
        b{{ i }}_{{ j }} += dot(g{{ i }}_{{ c }}, v{{ j }}_{{ c }});
{% endfor %}{% endfor %}{% endfor %}
{% else %}
        for (var c = 0u; c < p.chunks; c += 1u) {
{% for j in range(OWNED) %}
            let k{{ j }} = scale * load_qkv(at{{ j }} + p.k_off, c);
            let v{{ j }} = load_qkv(at{{ j }} + p.v_off, c);
{% endfor %}{% for i in range(STREAMED) %}
            let q{{ i }} = load_qkv(q_at{{ i }}, uniform10(c));
            let g{{ i }} = load_dy(g_at{{ i }}, uniform10(c));
{% for j in range(OWNED) %}
            s{{ i }}_{{ j }} += dot(q{{ i }}, k{{ j }});
            b{{ i }}_{{ j }} += dot(g{{ i }}, v{{ j }});
{% endfor %}{% endfor %}
        }
{% endif %}
{% for i in range(STREAMED) %}{% for j in range(OWNED) %}
        let w{{ i }}_{{ j }} = {% if i %}select(0.0, exp2(s{{ i }}_{{ j }} - lse{{ i }}), query + {{ i }}u < p.tokens){% else %}exp2(s0_{{ j }} - lse0){% endif %};
        let ds{{ i }}_{{ j }} = w{{ i }}_{{ j }} * (b{{ i }}_{{ j }} - d{{ i }});
{% endfor %}{% endfor %}
{% for c in range(S4) %}
{% if not HOLD %}
        let c{{ c }} = uniform10(min(slice * {{ S4 }}u + {{ c }}u, {{ D4 - 1 }}u));
{% for i in range(STREAMED) %}
        let q{{ i }}_{{ c }} = load_qkv(q_at{{ i }}, c{{ c }});
        let g{{ i }}_{{ c }} = load_dy(g_at{{ i }}, c{{ c }});
{% endfor %}{% endif %}
{% for j in range(OWNED) %}
        dk{{ j }}_{{ c }} += {% for i in range(STREAMED) %}{{ " + " if i }}ds{{ i }}_{{ j }} * q{{ i }}_{{ c }}{% endfor %};
        dv{{ j }}_{{ c }} += {% for i in range(STREAMED) %}{{ " + " if i }}w{{ i }}_{{ j }} * g{{ i }}_{{ c }}{% endfor %};
{% endfor %}{% endfor %}
    }
    for (var c = 0u; c < min({{ S4 }}u, p.chunks - slice * {{ S4 }}u); c += 1u) {
{% for j in range(OWNED) %}
        var k{{ j }} = dk{{ j }}_0;
        var v{{ j }} = dv{{ j }}_0;
{% for k in range(1, S4) %}
        k{{ j }} = select(k{{ j }}, dk{{ j }}_{{ k }}, c == {{ k }}u);
        v{{ j }} = select(v{{ j }}, dv{{ j }}_{{ k }}, c == {{ k }}u);
{% endfor %}
        if first + {{ j }}u < p.tokens {
            store(at{{ j }} + p.k_off, slice * {{ S4 }}u + c, p.scale * k{{ j }});
            store(at{{ j }} + p.v_off, slice * {{ S4 }}u + c, v{{ j }});
        }
{% endfor %}
    }
}
