{#- Access to a quad: four consecutive elements of one image of a batch, from
   flat index `start`; `last` is the image's last element. With `vec` buffers
   are array<vec4<f32>> and quads never straddle images; otherwise array<f32>,
   loads past `last` repeat it and stores there are dropped. With `wide` the
   tensor has p.wide channels, of which indices count p.c only: the first ones,
   or under another `alias` those that lie `offset` elements further on. With
   `half` the tensor holds halves, and images are multiples of four elements. -#}
{% macro load(name, vec, wide=0, alias="", offset="", half=0) %}
fn load_{{ alias or name }}(start: u32, last: u32) -> vec4<f32> {
{% if half %}
    return unpack4({{ name }}[start >> 2u]);
{% elif vec and not wide %}
    return {{ name }}[start >> 2u];
{% else %}
    let i = min(start + vec4<u32>(0u, 1u, 2u, 3u), vec4<u32>(last));
{% if wide %}
    let at = i / p.c * p.wide + i % p.c{{ " + " ~ offset if offset }};
{% else %}
    let at = i;
{% endif %}
    return vec4<f32>({{ name }}[at.x], {{ name }}[at.y], {{ name }}[at.z], {{ name }}[at.w]);
{% endif %}
}
{% endmacro %}
{% macro store(name, vec, half=0) %}
fn store_{{ name }}(start: u32, last: u32, v: vec4<f32>) {
{% if half %}
    {{ name }}[start >> 2u] = pack4(v);
{% elif vec %}
    {{ name }}[start >> 2u] = v;
{% else %}
    {{ name }}[start] = v.x;
{% for i in range(1, 4) %}
    if start + {{ i }}u <= last {
        {{ name }}[start + {{ i }}u] = v[{{ i }}];
    }
{% endfor %}
{% endif %}
}
{% endmacro %}
