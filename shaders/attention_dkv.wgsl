// Gradient of self-attention with respect to keys and values, with w and ds as
// in attention_dq.wgsl:
//   dv[j] = sum over i of w[i, j] * dy[i]
//   dk[j] = scale * sum over i of ds[i, j] * q[i]
// An invocation owns TK keys and walks the queries TQ at a time. HOLD: its keys
// and values stay in registers; otherwise they are read again for every block
// of queries, and SLICES invocations share the channels of dk and dv.
// Loops over channels end at p.chunks, not at a constant, so that no compiler
// unrolls them: software drivers take long to compile each load and store.
{% include "common.wgsl" %}
{% set D4 = (D + 3) // 4 %}{% set S4 = (D4 + SLICES - 1) // SLICES %}
{% set T = "vec4<f32>" if VEC else "f32" %}

struct Params {
    tokens: u32, heads: u32, channels: u32,
    head_stride: u32, k_off: u32, v_off: u32,
    chunks: u32, blocks: u32, tasks: u32, scale: f32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> qkv: array<{{ T }}>;            // [n, tokens, 3 channels]
@group(0) @binding(2) var<storage, read> dy: array<{{ T }}>;             // [n, tokens, channels]
@group(0) @binding(3) var<storage, read> lse: array<f32>;                // [n, heads, tokens]
@group(0) @binding(4) var<storage, read> delta: array<f32>;              // [n, heads, tokens]
@group(0) @binding(5) var<storage, read_write> dqkv: array<{{ T }}>;     // [n, tokens, 3 channels]

// Four channels of the head whose channels start at `base`, zero past its end.
{% for name in ["qkv", "dy"] %}
fn load_{{ name }}(base: u32, chunk: u32) -> vec4<f32> {
{% if VEC %}
    return {{ name }}[(base >> 2u) + chunk];
{% else %}
    let i = base + 4u * chunk;
    let last = {{ D }}u - 4u * chunk - 1u;
    let v = vec4<f32>({{ name }}[i], {{ name }}[i + min(1u, last)], {{ name }}[i + min(2u, last)], {{ name }}[i + min(3u, last)]);
    return select(vec4<f32>(0.0), v, vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last));
{% endif %}
}
{% endfor %}

fn store(base: u32, chunk: u32, v: vec4<f32>) {
{% if VEC %}
    let i = (base >> 2u) + chunk;
    dqkv[i] = v{% if ACC %} + dqkv[i]{% endif %};
{% else %}
    for (var k = 0u; k < min(4u, {{ D }}u - 4u * chunk); k += 1u) {
        let i = base + 4u * chunk + k;
        dqkv[i] = v[k]{% if ACC %} + dqkv[i]{% endif %};
    }
{% endif %}
}

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    // A workgroup stays within one head of one image, so that what it streams
    // is the same for all its invocations.
    let task = flat_group(group, groups);
    let first = ((task % p.blocks) * 64u + local) * {{ TK }}u;
    if first >= p.tokens || task >= p.tasks {
        return;
    }
{% if SLICES > 1 %}
    let slice = (task / p.blocks) % {{ SLICES }}u;
    let pair = task / p.blocks / {{ SLICES }}u;
{% else %}
    let slice = 0u;
    let pair = task / p.blocks;
{% endif %}
    let head = pair % p.heads;
    let token0 = (pair / p.heads) * p.tokens;
    let start = head * p.head_stride;
    let row = 3u * p.channels;
    let last = p.tokens - 1u;
    let scale = p.scale * 1.4426950408889634;
{% for j in range(TK) %}
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
{% for j in range(TK) %}
        let k{{ j }} = scale * load_qkv(at{{ j }} + p.k_off, c);
        let v{{ j }} = load_qkv(at{{ j }} + p.v_off, c);
{% for k in range(D4) %}
        k{{ j }}_{{ k }} = select(k{{ j }}_{{ k }}, k{{ j }}, c == {{ k }}u);
        v{{ j }}_{{ k }} = select(v{{ j }}_{{ k }}, v{{ j }}, c == {{ k }}u);
{% endfor %}{% endfor %}
    }
{% endif %}
    for (var query = 0u; query < p.tokens; query += {{ TQ }}u) {
{% for i in range(TQ) %}
        let query{{ i }} = min(query + {{ i }}u, last);
        let q_at{{ i }} = (token0 + query{{ i }}) * row + start;
        let g_at{{ i }} = (token0 + query{{ i }}) * p.channels + head * {{ D }}u;
        let lse{{ i }} = lse[pair * p.tokens + query{{ i }}];
        let d{{ i }} = delta[pair * p.tokens + query{{ i }}];
{% for j in range(TK) %}
        var s{{ i }}_{{ j }} = 0.0;
        var b{{ i }}_{{ j }} = 0.0;
{% endfor %}{% endfor %}
{% if HOLD %}
{% for c in range(D4) %}{% for i in range(TQ) %}
        let q{{ i }}_{{ c }} = load_qkv(q_at{{ i }}, {{ c }}u);
        let g{{ i }}_{{ c }} = load_dy(g_at{{ i }}, {{ c }}u);
{% for j in range(TK) %}
        s{{ i }}_{{ j }} += dot(q{{ i }}_{{ c }}, k{{ j }}_{{ c }});
        b{{ i }}_{{ j }} += dot(g{{ i }}_{{ c }}, v{{ j }}_{{ c }});
{% endfor %}{% endfor %}{% endfor %}
{% else %}
        for (var c = 0u; c < p.chunks; c += 1u) {
{% for j in range(TK) %}
            let k{{ j }} = scale * load_qkv(at{{ j }} + p.k_off, c);
            let v{{ j }} = load_qkv(at{{ j }} + p.v_off, c);
{% endfor %}{% for i in range(TQ) %}
            let q{{ i }} = load_qkv(q_at{{ i }}, c);
            let g{{ i }} = load_dy(g_at{{ i }}, c);
{% for j in range(TK) %}
            s{{ i }}_{{ j }} += dot(q{{ i }}, k{{ j }});
            b{{ i }}_{{ j }} += dot(g{{ i }}, v{{ j }});
{% endfor %}{% endfor %}
        }
{% endif %}
{% for i in range(TQ) %}{% for j in range(TK) %}
        let w{{ i }}_{{ j }} = {% if i %}select(0.0, exp2(s{{ i }}_{{ j }} - lse{{ i }}), query + {{ i }}u < p.tokens){% else %}exp2(s0_{{ j }} - lse0){% endif %};
        let ds{{ i }}_{{ j }} = w{{ i }}_{{ j }} * (b{{ i }}_{{ j }} - d{{ i }});
{% endfor %}{% endfor %}
{% for c in range(S4) %}
{% if not HOLD %}
        let c{{ c }} = min(slice * {{ S4 }}u + {{ c }}u, {{ D4 - 1 }}u);
{% for i in range(TQ) %}
        let q{{ i }}_{{ c }} = load_qkv(q_at{{ i }}, c{{ c }});
        let g{{ i }}_{{ c }} = load_dy(g_at{{ i }}, c{{ c }});
{% endfor %}{% endif %}
{% for j in range(TK) %}
        dk{{ j }}_{{ c }} += {% for i in range(TQ) %}{{ " + " if i }}ds{{ i }}_{{ j }} * q{{ i }}_{{ c }}{% endfor %};
        dv{{ j }}_{{ c }} += {% for i in range(TQ) %}{{ " + " if i }}w{{ i }}_{{ j }} * g{{ i }}_{{ c }}{% endfor %};
{% endfor %}{% endfor %}
    }
    for (var c = 0u; c < min({{ S4 }}u, p.chunks - slice * {{ S4 }}u); c += 1u) {
{% for j in range(TK) %}
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
