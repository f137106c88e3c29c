{#- Loads of conv2d.wgsl and conv2d_dx.wgsl: four channels of a pixel that
   starts at element `base`, zero past the last of p.EXTENT channels; and four
   output channels of a row of the weight. With `half` they hold halves. -#}
{% macro load_channels(name, extent, vec, half) %}
fn load_{{ name }}(base: u32, c: u32) -> vec4<f32> {
{% if half %}
    return unpack4({{ name }}[(base + c) >> 2u]);
{% elif vec %}
    return {{ name }}[(base + c) >> 2u];
{% else %}
    let last = p.{{ extent }} - 1u;
    let v = vec4<f32>({{ name }}[base + c], {{ name }}[base + min(c + 1u, last)], {{ name }}[base + min(c + 2u, last)], {{ name }}[base + min(c + 3u, last)]);
    return select(vec4<f32>(0.0), v, c + vec4<u32>(0u, 1u, 2u, 3u) < vec4<u32>(p.{{ extent }}));
{% endif %}
}
{% endmacro %}
{% macro load_weight(vec, half) %}
fn load_w(row: u32, co: u32) -> vec4<f32> {
{% if half %}
    return unpack4(weight[(row * p.cout + co) >> 2u]);
{% elif vec %}
    return weight[(row * p.cout + co) >> 2u];
{% else %}
    // Past the end any weight will do: the other factor there is zero, or the
    // result is not stored.
    let last = p.kernel * p.kernel * p.cin * p.cout - 1u;
    let i = row * p.cout + co;
    return vec4<f32>(weight[min(i, last)], weight[min(i + 1u, last)], weight[min(i + 2u, last)], weight[min(i + 3u, last)]);
{% endif %}
}
{% endmacro %}
