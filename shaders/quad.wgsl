{#- Access to four channels of a tensor whose innermost extent is `channels`.
    With `vec` the buffer is array<vec4<f32>> and the channel count a multiple
    of four; otherwise it is array<f32>, loads past the last channel repeat it
    and stores there are dropped. -#}
{% macro load(name, vec, channels="p.c") %}
fn load_{{ name }}(base: u32, c: u32) -> vec4<f32> {
{% if vec %}
    return {{ name }}[(base + c) >> 2u];
{% else %}
    let last = {{ channels }} - 1u;
    return vec4<f32>({{ name }}[base + min(c, last)], {{ name }}[base + min(c + 1u, last)], {{ name }}[base + min(c + 2u, last)], {{ name }}[base + min(c + 3u, last)]);
{% endif %}
}
{% endmacro %}
{% macro store(name, vec, acc=0, channels="p.c") %}
fn store_{{ name }}(base: u32, c: u32, v: vec4<f32>) {
{% if vec %}
    {{ name }}[(base + c) >> 2u] = v{% if acc %} + {{ name }}[(base + c) >> 2u]{% endif %};
{% else %}
    for (var k = 0u; k < min(4u, {{ channels }} - c); k += 1u) {
        {{ name }}[base + c + k] = v[k]{% if acc %} + {{ name }}[base + c + k]{% endif %};
    }
{% endif %}
}
{% endmacro %}
{#- One element of such a buffer. -#}
{% macro one(name, vec) %}
fn one_{{ name }}(i: u32) -> f32 {
    return {{ name }}[{% if vec %}i >> 2u][i & 3u{% else %}i{% endif %}];
}
{% endmacro %}
