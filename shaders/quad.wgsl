{#- Access to four channels of a tensor whose innermost extent is `channels`.
    With `vec` the buffer is array<vec4<f32>> and the channel count a multiple
    of four; otherwise it is array<f32>, loads past the last channel repeat it
    and stores there are dropped. With `half` it holds halves and its innermost
    extent is a multiple of four; without `vec` loads may start anywhere. -#}
{% macro load(name, vec, channels="p.c", half=0) %}
fn load_{{ name }}(base: u32, c: u32) -> vec4<f32> {
{% if half and vec %}
    return unpack4({{ name }}[(base + c) >> 2u]);
{% elif half %}
    let last = {{ channels }} - 1u;
    let i = base + min(c + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
    return vec4<f32>(unpack1({{ name }}[i.x >> 2u], i.x), unpack1({{ name }}[i.y >> 2u], i.y), unpack1({{ name }}[i.z >> 2u], i.z), unpack1({{ name }}[i.w >> 2u], i.w));
{% elif vec %}
    return {{ name }}[(base + c) >> 2u];
{% else %}
    let last = {{ channels }} - 1u;
    return vec4<f32>({{ name }}[base + min(c, last)], {{ name }}[base + min(c + 1u, last)], {{ name }}[base + min(c + 2u, last)], {{ name }}[base + min(c + 3u, last)]);
{% endif %}
}
{% endmacro %}
{% macro store(name, vec, acc=0, channels="p.c", half=0) %}
fn store_{{ name }}(base: u32, c: u32, v: vec4<f32>) {
{% if half %}
    {{ name }}[(base + c) >> 2u] = pack4(v{% if acc %} + unpack4({{ name }}[(base + c) >> 2u]){% endif %});
{% elif vec %}
    {{ name }}[(base + c) >> 2u] = v{% if acc %} + {{ name }}[(base + c) >> 2u]{% endif %};
{% else %}
    for (var k = 0u; k < min(4u, {{ channels }} - c); k += 1u) {
        {{ name }}[base + c + k] = v[k]{% if acc %} + {{ name }}[base + c + k]{% endif %};
    }
{% endif %}
}
{% endmacro %}
{#- One element of such a buffer. -#}
{% macro one(name, vec, half=0) %}
fn one_{{ name }}(i: u32) -> f32 {
{% if half %}
    return unpack1({{ name }}[i >> 2u], i);
{% else %}
    return {{ name }}[{% if vec %}i >> 2u][i & 3u{% else %}i{% endif %}];
{% endif %}
}
{% endmacro %}
