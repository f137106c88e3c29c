// Self-attention with a streaming softmax:
//   s[i, j] = scale * dot(q[i], k[j]),  y[i] = sum over j of softmax_j(s)[i, j] * v[j]
// An invocation owns OWNED queries of one head of one image and walks the keys
// STREAMED at a time, keeping the running maximum, sum and weighted values; when the
// maximum grows, what has been summed fades by the same factor. Exponentials
// are taken to base 2, so lse is log2 of the sum of exp(s).
//   HOLD: the queries stay in registers (small heads); otherwise they are read
//   again for every block of keys, and SLICES invocations share the channels of y.
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
@group(0) @binding(2) var<storage, read_write> y: array<{{ element(VEC, HALF) }}>;        // [n, tokens, channels]
@group(0) @binding(3) var<storage, read_write> lse: array<f32>;          // [n, heads, tokens]

{{ half_functions(HALF) }}
{{ uniform_functions(UNI) }}
{{ load_chunk("qkv", D, VEC, HALF) }}
{{ store_chunk("y", D, VEC, 0, HALF) }}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
{{ own_rows(OWNED, SLICES) }}
    // What is streamed is the same for the whole workgroup (UNI: uniform.wgsl).
    let base = uniform25(token0 * row + start);
    let step = uniform25(row);
    let k_off = uniform25(p.k_off);
    let v_off = uniform25(p.v_off);
{% for i in range(OWNED) %}
    let q_at{{ i }} = (token0 + min(first + {{ i }}u, last)) * row + start;
    var top{{ i }} = -3.4e38;
    var sum{{ i }} = 0.0;
{% if HOLD %}{% for c in range(D4) %}
    var q{{ i }}_{{ c }} = vec4<f32>(0.0);
{% endfor %}{% endif %}
{% for c in range(S4) %}
    var a{{ i }}_{{ c }} = vec4<f32>(0.0);
{% endfor %}{% endfor %}
{% if HOLD %}
    for (var c = 0u; c < p.chunks; c += 1u) {
{% for i in range(OWNED) %}
        let q{{ i }} = scale * load_qkv(q_at{{ i }}, c);
{% for k in range(D4) %}
        q{{ i }}_{{ k }} = select(q{{ i }}_{{ k }}, q{{ i }}, c == {{ k }}u);
{% endfor %}{% endfor %}
    }
{% endif %}
    for (var key = 0u; key < p.tokens; key += {{ STREAMED }}u) {
{% for j in range(STREAMED) %}
        let at{{ j }} = base + uniform15(min(key + {{ j }}u, last)) * step;
{% for i in range(OWNED) %}
        var s{{ i }}_{{ j }} = 0.0;
{% endfor %}{% endfor %}
{% if HOLD %}
{% for c in range(D4) %}{% for j in range(STREAMED) %}
        let k{{ j }}_{{ c }} = load_qkv(at{{ j }} + k_off, {{ c }}u);
{% for i in range(OWNED) %}
        s{{ i }}_{{ j }} += dot(q{{ i }}_{{ c }}, k{{ j }}_{{ c }});
{% endfor %}{% endfor %}{% endfor %}
{% else %}
        for (var c = 0u; c < p.chunks; c += 1u) {
{% for i in range(OWNED) %}
            let q{{ i }} = scale * load_qkv(q_at{{ i }}, c);
{% endfor %}{% for j in range(STREAMED) %}
            let k{{ j }} = load_qkv(at{{ j }} + k_off, uniform10(c));
{% for i in range(OWNED) %}
            s{{ i }}_{{ j }} += dot(q{{ i }}, k{{ j }});
{% endfor %}{% endfor %}
        }
{% endif %}
{% for i in range(OWNED) %}
        // Keys past the end repeat the last one, which cannot raise the maximum.
        let old{{ i }} = top{{ i }};
{% for j in range(STREAMED) %}
        top{{ i }} = max(top{{ i }}, s{{ i }}_{{ j }});
{% endfor %}
        let fade{{ i }} = exp2(old{{ i }} - top{{ i }});
        sum{{ i }} *= fade{{ i }};
{% for j in range(STREAMED) %}
        let w{{ i }}_{{ j }} = {% if j %}select(0.0, exp2(s{{ i }}_{{ j }} - top{{ i }}), key + {{ j }}u < p.tokens){% else %}exp2(s{{ i }}_0 - top{{ i }}){% endif %};
        sum{{ i }} += w{{ i }}_{{ j }};
{% endfor %}{% endfor %}
{% for c in range(S4) %}
{% if SLICES > 1 %}
        let c{{ c }} = uniform10(min(slice * {{ S4 }}u + {{ c }}u, {{ D4 - 1 }}u));
{% endif %}
{% for j in range(STREAMED) %}
        let v{{ j }}_{{ c }} = load_qkv(at{{ j }} + v_off, {% if SLICES > 1 %}c{{ c }}{% else %}{{ c }}u{% endif %});
{% endfor %}
{% for i in range(OWNED) %}
        a{{ i }}_{{ c }} = fade{{ i }} * a{{ i }}_{{ c }}{% for j in range(STREAMED) %} + w{{ i }}_{{ j }} * v{{ j }}_{{ c }}{% endfor %};
{% endfor %}{% endfor %}
    }
{% for i in range(OWNED) %}
    let inside{{ i }} = first + {{ i }}u < p.tokens;
    let to{{ i }} = (token0 + first + {{ i }}u) * p.channels + head * {{ D }}u;
    if inside{{ i }} && slice == 0u {
        lse[pair * p.tokens + first + {{ i }}u] = top{{ i }} + log2(sum{{ i }});
    }
    let inverse{{ i }} = 1.0 / sum{{ i }};
{% endfor %}
    for (var c = 0u; c < min({{ S4 }}u, p.chunks - slice * {{ S4 }}u); c += 1u) {
{% for i in range(OWNED) %}
        var y{{ i }} = a{{ i }}_0;
{% for k in range(1, S4) %}
        y{{ i }} = select(y{{ i }}, a{{ i }}_{{ k }}, c == {{ k }}u);
{% endfor %}
        if inside{{ i }} { store(to{{ i }}, slice * {{ S4 }}u + c, inverse{{ i }} * y{{ i }}); }
{% endfor %}
    }
}
