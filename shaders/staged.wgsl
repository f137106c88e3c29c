{#- What kernels share whose workgroups own a whole tile of a product and stage
    slabs of both operands in workgroup memory.

    In 32 bits 256 invocations own 16 TM rows and 64 columns, each TM rows and four
    columns, and a slab is 16 deep. Slab a lies [row][depth], slab b
    [depth][column], both in vec4s. Neither needs padding: lanes that read
    together read one or two vec4s of a, and of b sixteen side by side. Barriers
    are the kernels', in uniform flow. -#}
{#- The slabs of 32 bits. -#}
{% macro slabs(tm) %}
var<workgroup> slab_a: array<vec4<f32>, {{ 64 * tm }}>;   // [rows of the tile, 16 / 4]
var<workgroup> slab_b: array<vec4<f32>, 256>;   // [16, columns of the tile / 4]
{% endmacro %}
{#- Sums of the invocation's elements. -#}
{% macro sums(tm) %}
{% for m in range(tm) %}
    var c{{ m }} = vec4<f32>(0.0);
{% endfor %}
{% endmacro %}
{#- Adds the products of the slabs: `down` and `across` say where in the tile the
    invocation's rows and columns lie, counted in rows and in vec4s. -#}
{% macro multiply(tm) %}
{% for k in range(4) %}
{% for q in range(4) %}
        let b{{ k }}_{{ q }} = slab_b[{{ 16 * (4 * k + q) }}u + across];
{% endfor %}
{% for m in range(tm) %}
        let a{{ k }}_{{ m }} = slab_a[(down + {{ m }}u) * 4u + {{ k }}u];
        c{{ m }} += a{{ k }}_{{ m }}.x * b{{ k }}_0 + a{{ k }}_{{ m }}.y * b{{ k }}_1 + a{{ k }}_{{ m }}.z * b{{ k }}_2 + a{{ k }}_{{ m }}.w * b{{ k }}_3;
{% endfor %}
{% endfor %}
{% endmacro %}
{#- Fills slab b from a matrix whose columns lie along the depth: 64 invocations turn
    4 x 4 elements around. `load_b(which, column, depth)` gives four of the depth,
    zeros outside. -#}
{% macro turn_b(which, column, depth) %}
        if local < 64u {
            let quad = local >> 2u;
            let deep = local & 3u;
{% for j in range(4) %}
            let t{{ j }} = load_b({{ which }}, {{ column }} + quad * 4u + {{ j }}u, {{ depth }} + deep * 4u);
{% endfor %}
{% for q in range(4) %}
            slab_b[(deep * 4u + {{ q }}u) * 16u + quad] = vec4<f32>(t0[{{ q }}], t1[{{ q }}], t2[{{ q }}], t3[{{ q }}]);
{% endfor %}
        }
{% endmacro %}
{#- Where the rows of a convolution's product come from. A row is a pixel of the
    result, y or with `dx` the input's gradient; `rows` of them, `step` apart from
    `start` on, are this invocation's to stage. -#}
{% macro staged_rows(rows, start, step, dx) %}
{% set h, w = ("p.h", "p.w") if dx else ("p.oh", "p.ow") %}
{% for t in range(rows) %}
    let pixel{{ t }} = {{ start }} + {{ t * step }}u;
    let image{{ t }} = pixel{{ t }} / ({{ h }} * {{ w }}) * {% if dx %}p.oh{% else %}p.h{% endif %};
{% if dx %}
    let y{{ t }} = pixel{{ t }} / p.w % p.h + p.pad;
    let x{{ t }} = pixel{{ t }} % p.w + p.pad;
{% else %}
    let y{{ t }} = pixel{{ t }} / p.ow % p.oh * p.stride - p.pad;
    let x{{ t }} = pixel{{ t }} % p.ow * p.stride - p.pad;
{% endif %}
{% endfor %}
{% endmacro %}
{#- The element at which such a row's channels begin for the window's tap (r, s),
    `base`, and whether there are any, `ok`. Below zero wraps to huge values, which
    fail the range test. -#}
{% macro staged_tap(rows, pixels, dx) %}
{% for t in range(rows) %}
{% if dx %}
            let qy{{ t }} = (y{{ t }} - r) / p.stride;
            let qx{{ t }} = (x{{ t }} - s) / p.stride;
            let ok{{ t }} = pixel{{ t }} < {{ pixels }} && qy{{ t }} < p.oh && qx{{ t }} < p.ow && qy{{ t }} * p.stride + r == y{{ t }} && qx{{ t }} * p.stride + s == x{{ t }};
            let base{{ t }} = ((image{{ t }} + qy{{ t }}) * p.ow + qx{{ t }}) * p.cout;
{% else %}
            let ok{{ t }} = pixel{{ t }} < {{ pixels }} && y{{ t }} + r < p.h && x{{ t }} + s < p.w;
            let base{{ t }} = ((image{{ t }} + y{{ t }} + r) * p.w + x{{ t }} + s) * p.cin;
{% endif %}
{% endfor %}
{% endmacro %}
