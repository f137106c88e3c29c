{#- What the three attention kernels share. `d` is the head's channels; a chunk
   is four of them, from the head whose channels start at `base`. With `half`
   the tensor holds halves; d is then a multiple of four. -#}
{# Reads a chunk, zero past the head's end. -#}
{% macro load_chunk(name, d, vec, half) %}
fn load_{{ name }}(base: u32, chunk: u32) -> vec4<f32> {
{% if half %}
    return unpack4({{ name }}[(base >> 2u) + chunk]);
{% elif vec %}
    return {{ name }}[(base >> 2u) + chunk];
{% else %}
    let i = base + 4u * chunk;
    let last = {{ d }}u - 4u * chunk - 1u;
    let v = vec4<f32>({{ name }}[i], {{ name }}[i + min(1u, last)], {{ name }}[i + min(2u, last)], {{ name }}[i + min(3u, last)]);
    return select(vec4<f32>(0.0), v, vec4<u32>(0u, 1u, 2u, 3u) <= vec4<u32>(last));
{% endif %}
}
{% endmacro %}
{# Writes a chunk, or adds it to what is there. -#}
{% macro store_chunk(name, d, vec, acc, half) %}
fn store(base: u32, chunk: u32, v: vec4<f32>) {
{% if half %}
    let i = (base >> 2u) + chunk;
    {{ name }}[i] = pack4(v{% if acc %} + unpack4({{ name }}[i]){% endif %});
{% elif vec %}
    let i = (base >> 2u) + chunk;
    {{ name }}[i] = v{% if acc %} + {{ name }}[i]{% endif %};
{% else %}
    for (var k = 0u; k < min(4u, {{ d }}u - 4u * chunk); k += 1u) {
        let i = base + 4u * chunk + k;
        {{ name }}[i] = v[k]{% if acc %} + {{ name }}[i]{% endif %};
    }
{% endif %}
}
{% endmacro %}
{# Which rows of which head of which image an invocation owns. A workgroup
   stays within one head of one image, so that what it streams is the same for
   all its invocations. -#}
{% macro own_rows(rows, slices) %}
    let task = flat_group(group, groups);
    let first = ((task % p.blocks) * 64u + local) * {{ rows }}u;
    if first >= p.tokens || task >= p.tasks {
        return;
    }
{% if slices > 1 %}
    let slice = (task / p.blocks) % {{ slices }}u;
    let pair = task / p.blocks / {{ slices }}u;
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
{% endmacro %}
