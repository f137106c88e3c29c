{#- Element types of storage bindings. A tensor of half precision is an
    array<vec2<u32>>: an element holds four halves, lowest bits first, and is
    read and written whole; arithmetic is done in f32. -#}
{#- The element type of a binding: halves, vec4s or scalars. -#}
{% macro element(vec, half=0) %}{% if half %}vec2<u32>{% elif vec %}vec4<f32>{% else %}f32{% endif %}{% endmacro %}
{#- The functions that packed bindings need; call it where `on`. -#}
{% macro half_functions(on) %}
{% if on %}
fn unpack4(q: vec2<u32>) -> vec4<f32> {
    return vec4<f32>(unpack2x16float(q.x), unpack2x16float(q.y));
}

// Lane i & 3 of a quad.
fn unpack1(q: vec2<u32>, i: u32) -> f32 {
    let pair = unpack2x16float(select(q.x, q.y, (i & 2u) != 0u));
    return select(pair.x, pair.y, (i & 1u) != 0u);
}

// Rounds to nearest, ties to even, on the bits: what pack2x16float does with
// the last places, and beyond 65504, is left to the driver. Infinities and NaN
// become infinite.
fn pack4(v: vec4<f32>) -> vec2<u32> {
    let bits = bitcast<vec4<u32>>(v);
    let magnitude = (bits & vec4<u32>(0x7fffffffu)) + vec4<u32>(0xfffu) + ((bits >> vec4<u32>(13u)) & vec4<u32>(1u));
    let over = magnitude >= vec4<u32>(0x47800000u);
    let sign = (bits >> vec4<u32>(16u)) & vec4<u32>(0x8000u);
    // Below the smallest normal half the driver rounds.
    let kept = select(magnitude & vec4<u32>(0xffffe000u), bits & vec4<u32>(0x7fffffffu), magnitude < vec4<u32>(0x38800000u));
    let f = bitcast<vec4<f32>>(select(kept, vec4<u32>(0u), over));
    let tops = sign | select(vec4<u32>(0u), vec4<u32>(0x7c00u), over);
    return vec2<u32>(pack2x16float(f.xy), pack2x16float(f.zw)) | (tops.xz | (tops.yw << vec2<u32>(16u)));
}
{% endif %}
{% endmacro %}
