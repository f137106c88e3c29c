// Gradient of self-attention with respect to the queries. The weights are
// rebuilt from the saved lse, w[i, j] = exp(s[i, j]) / sum_j exp(s[i, j]); then
//   delta[i] = dot(dy[i], y[i])                (= sum over j of w[i, j] * dot(dy[i], v[j]))
//   ds[i, j] = w[i, j] * (dot(dy[i], v[j]) - delta[i])
//   dq[i]    = scale * sum over j of ds[i, j] * k[j]
// An invocation owns OWNED queries and walks the keys STREAMED at a time; delta
// is stored for attention_dkv.wgsl. HOLD and SLICES as in attention.wgsl, the
// channels shared out being those of dq.
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
@group(0) @binding(2) var<storage, read> y: array<{{ element(VEC, HALF) }}>;              // [n, tokens, channels]
@group(0) @binding(3) var<storage, read> dy: array<{{ element(VEC, HALF) }}>;             // [n, tokens, channels]
@group(0) @binding(4) var<storage, read> lse: array<f32>;                // [n, heads, tokens]
@group(0) @binding(5) var<storage, read_write> delta: array<f32>;        // [n, heads, tokens]
@group(0) @binding(6) var<storage, read_write> dqkv: array<{{ element(VEC, HALF) }}>;     // [n, tokens, 3 channels]

{{ half_functions(HALF) }}
{{ uniform_functions(UNI) }}
{{ load_chunk("qkv", D, VEC, HALF) }}
{{ load_chunk("y", D, VEC, HALF) }}
{{ load_chunk("dy", D, VEC, HALF) }}
{{ store_chunk("dqkv", D, VEC, ACC, HALF) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
{{ own_rows(OWNED, SLICES) }}
    // What is streamed is the same for the whole workgroup (UNI: uniform.wgsl).
    let base = uniform25(token0 * row + start);
    let step = uniform25(row);
    let k_off = uniform25(p.k_off);
    let v_off = uniform25(p.v_off);
{% for i in range(OWNED) %}
    let query{{ i }} = min(first + {{ i }}u, last);
    let q_at{{ i }} = (token0 + query{{ i }}) * row + start;
    let y_at{{ i }} = (token0 + query{{ i }}) * p.channels + head * {{ D }}u;
    let lse{{ i }} = lse[pair * p.tokens + query{{ i }}];
    var d{{ i }} = 0.0;
{% if HOLD %}{% for c in range(D4) %}
    var q{{ i }}_{{ c }} = vec4<f32>(0.0);
    var g{{ i }}_{{ c }} = vec4<f32>(0.0);
{% endfor %}{% endif %}
{% for c in range(S4) %}
    var a{{ i }}_{{ c }} = vec4<f32>(0.0);
{% endfor %}{% endfor %}
    for (var c = 0u; c < p.chunks; c += 1u) {
{% for i in range(OWNED) %}
        let g{{ i }} = load_dy(y_at{{ i }}, c);
        d{{ i }} += dot(g{{ i }}, load_y(y_at{{ i }}, c));
{% if HOLD %}
        let q{{ i }} = scale * load_qkv(q_at{{ i }}, c);
{% for k in range(D4) %}
        q{{ i }}_{{ k }} = select(q{{ i }}_{{ k }}, q{{ i }}, c == {{ k }}u);
        g{{ i }}_{{ k }} = select(g{{ i }}_{{ k }}, g{{ i }}, c == {{ k }}u);
{% endfor %}{% endif %}{% endfor %}
    }
    for (var key = 0u; key < p.tokens; key += {{ STREAMED }}u) {
{% for j in range(STREAMED) %}
        let at{{ j }} = base + uniform15(min(key + {{ j }}u, last)) * step;
{% for i in range(OWNED) %}
        var s{{ i }}_{{ j }} = 0.0;
        var b{{ i }}_{{ j }} = 0.0;
{% endfor %}{% endfor %}
{% if HOLD %}
{% for c in range(D4) %}{% for j in range(STREAMED) %}
        let k{{ j }}_{{ c }} = load_qkv(at{{ j }} + k_off, {{ c }}u);
        let v{{ j }}_{{ c }} = load_qkv(at{{ j }} + v_off, {{ c }}u);
{% for i in range(OWNED) %}
        s{{ i }}_{{ j }} += dot(q{{ i }}_{{ c }}, k{{ j }}_{{ c }});
        b{{ i }}_{{ j }} += dot(g{{ i }}_{{ c }}, v{{ j }}_{{ c }});
{% endfor %}{% endfor %}{% endfor %}
{% else %}
        for (var c = 0u; c < p.chunks; c += 1u) {
{% for i in range(OWNED) %}
            let q{{ i }} = scale * load_qkv(q_at{{ i }}, c);
            let g{{ i }} = load_dy(y_at{{ i }}, c);
{% endfor %}{% for j in range(STREAMED) %}
            let k{{ j }} = load_qkv(at{{ j }} + k_off, uniform10(c));
            let v{{ j }} = load_qkv(at{{ j }} + v_off, uniform10(c));
{% for i in range(OWNED) %}
            s{{ i }}_{{ j }} += dot(q{{ i }}, k{{ j }});
            b{{ i }}_{{ j }} += dot(g{{ i }}, v{{ j }});
{% endfor %}{% endfor %}
        }
{% endif %}
{% for j in range(STREAMED) %}{% for i in range(OWNED) %}
        let ds{{ i }}_{{ j }} = {% if j %}select(0.0, exp2(s{{ i }}_{{ j }} - lse{{ i }}), key + {{ j }}u < p.tokens){% else %}exp2(s{{ i }}_0 - lse{{ i }}){% endif %} * (b{{ i }}_{{ j }} - d{{ i }});
{% endfor %}{% endfor %}
{% for c in range(S4) %}
{% if not HOLD %}
        let c{{ c }} = uniform10(min(slice * {{ S4 }}u + {{ c }}u, {{ D4 - 1 }}u));
{% for j in range(STREAMED) %}
        let k{{ j }}_{{ c }} = load_qkv(at{{ j }} + k_off, c{{ c }});
{% endfor %}{% endif %}
{% for i in range(OWNED) %}
        a{{ i }}_{{ c }} += {% for j in range(STREAMED) %}{{ " + " if j }}ds{{ i }}_{{ j }} * k{{ j }}_{{ c }}{% endfor %};
{% endfor %}{% endfor %}
    }
{% for i in range(OWNED) %}
    let inside{{ i }} = first + {{ i }}u < p.tokens;
    if inside{{ i }} && slice == 0u {
        delta[pair * p.tokens + first + {{ i }}u] = d{{ i }};
    }
{% endfor %}
    for (var c = 0u; c < min({{ S4 }}u, p.chunks - slice * {{ S4 }}u); c += 1u) {
{% for i in range(OWNED) %}
        var dq{{ i }} = a{{ i }}_0;
{% for k in range(1, S4) %}
        dq{{ i }} = select(dq{{ i }}, a{{ i }}_{{ k }}, c == {{ k }}u);
{% endfor %}
        if inside{{ i }} { store(q_at{{ i }}, slice * {{ S4 }}u + c, p.scale * dq{{ i }}); }
{% endfor %}
    }
}
