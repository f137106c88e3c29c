{#- Stores of convolutions, of four channels from (pixel, channel) on: what is added
    to y on the way, and dx assigned or added. With `vec` channels are multiples
    of four, with `half` y and residual (dx) hold halves. -#}
{% macro store_y(vec, half, emb, residual) %}
fn store(pixel: u32, co: u32, v: vec4<f32>) {
    let i = pixel * p.cout + co;
{% if emb %}
    let e = (pixel / (p.oh * p.ow)) * p.cout + co;
{% endif %}
{% if half %}
    y[i >> 2u] = pack4(v + load_bias(0u, co){% if emb %} + load_emb(e - co, co){% endif %}{% if residual %} + unpack4(residual[i >> 2u]){% endif %});
{% elif vec %}
    y[i >> 2u] = v + bias[co >> 2u]{% if emb %} + emb[e >> 2u]{% endif %}{% if residual %} + residual[i >> 2u]{% endif %};
{% else %}
    for (var k = 0u; k < min(4u, p.cout - co); k += 1u) {
        y[i + k] = v[k] + bias[co + k]{% if emb %} + emb[e + k]{% endif %}{% if residual %} + residual[i + k]{% endif %};
    }
{% endif %}
}
{% endmacro %}
{#- Of a part of the sums, whose `row` begins at the split's first pixel. -#}
{% macro store_partial(channels) %}
fn store(row: u32, channel: u32, v: vec4<f32>) {
    partial[(row * {{ channels }} + channel) >> 2u] = v;
}
{% endmacro %}
{% macro store_dx(vec, half, acc) %}
fn store(pixel: u32, ci: u32, v: vec4<f32>) {
    let i = pixel * p.cin + ci;
{% if half %}
    dx[i >> 2u] = pack4(v{% if acc %} + unpack4(dx[i >> 2u]){% endif %});
{% elif vec %}
    dx[i >> 2u] = v{% if acc %} + dx[i >> 2u]{% endif %};
{% else %}
    for (var k = 0u; k < min(4u, p.cin - ci); k += 1u) {
        dx[i + k] = v[k]{% if acc %} + dx[i + k]{% endif %};
    }
{% endif %}
}
{% endmacro %}
