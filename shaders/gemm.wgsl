// Products of matrices, one for each of a batch:
//   c[i, row, column] = sum over k of a[i, row, k] * b[i, k, column],
// or, with TRANSPOSED, of b[i, column, k]. An invocation owns TM rows and TN
// columns in registers and walks the depth four at a time; depth and columns are
// multiples of four. UNI: a workgroup has one tile of columns, so that its lanes
// load b together (uniform.wgsl); the columns are then a multiple of TN.
{% include "common.wgsl" %}
{% from "uniform.wgsl" import load_eights, uniform_functions %}
{% set EIGHTS = UNI and not TRANSPOSED %}

struct Params {
    batch: u32, rows: u32, columns: u32, depth: u32,
    across: u32,   // tiles along the columns
    down: u32,     // tiles along the rows, with UNI workgroups
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;         // [batch, rows, depth]
{% if EIGHTS %}
@group(0) @binding(2) var<storage, read> b: array<mat2x4<f32>>;       // [batch, depth, columns]
{% else %}
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;         // [batch, depth, columns] or [batch, columns, depth]
{% endif %}
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;   // [batch, rows, columns]

{{ uniform_functions(UNI) }}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let flat = flat_group(group, groups){% if not UNI %} * {{ WG }}u + local{% endif %};
    let rest = flat / p.across;
    let i = rest / p.down;
    let first = {% if UNI %}((rest % p.down) * {{ WG }}u + local){% else %}(rest % p.down){% endif %} * {{ TM }}u;
    if i >= p.batch || first >= p.rows {
        return;
    }
    let column = uniform10(flat % p.across) * {{ TN }}u;
    let depth = uniform25(p.depth >> 2u);
    let columns = uniform25(p.columns >> {{ 3 if EIGHTS else 2 }}u);
{% if TRANSPOSED %}
    let tile = uniform25(i * p.columns * (p.depth >> 2u)) + column * depth;
    let last = p.columns - 1u - column;
{% else %}
    let tile = uniform25(i * p.depth * (p.columns >> {{ 3 if EIGHTS else 2 }}u)) + (column >> {{ 3 if EIGHTS else 2 }}u);
    let last = (p.columns - 1u - column) >> 2u;
{% endif %}
    let row = i * p.rows + first;
{% for m in range(TM) %}
    let a{{ m }} = (i * p.rows + min(first + {{ m }}u, p.rows - 1u)) * (p.depth >> 2u);
{% for n in range(TN if TRANSPOSED else TN // 4) %}
    var c{{ m }}_{{ n }} = {% if TRANSPOSED %}0.0{% else %}vec4<f32>(0.0){% endif %};
{% endfor %}
{% endfor %}
    for (var k = 0u; k < (p.depth >> 2u); k += 1u) {
{# Past the last column any value will do: that product is not stored. #}
{% if TRANSPOSED %}
        let at = tile + uniform10(k);
{% for n in range(TN) %}
        let b{{ n }} = b[at + {% if UNI %}{{ n }}u{% else %}min({{ n }}u, last){% endif %} * depth];
{% endfor %}
{% else %}
        let at = tile + uniform10(k) * columns * 4u;
{% for q in range(4) %}
{% if EIGHTS %}
{{ load_eights("b" ~ q ~ "_", "b", "at + " ~ q ~ "u * columns", TN // 4) }}
{% else %}
{% for n in range(TN // 4) %}
        let b{{ q }}_{{ n }} = b[at + {{ q }}u * columns + min({{ n }}u, last)];
{% endfor %}
{% endif %}
{% endfor %}
{% endif %}
{% for m in range(TM) %}
        let v{{ m }} = a[a{{ m }} + k];
{% if TRANSPOSED %}
{% for n in range(TN) %}
        c{{ m }}_{{ n }} += dot(v{{ m }}, b{{ n }});
{% endfor %}
{% else %}
{% for n in range(TN // 4) %}
        c{{ m }}_{{ n }} += v{{ m }}.x * b0_{{ n }} + v{{ m }}.y * b1_{{ n }} + v{{ m }}.z * b2_{{ n }} + v{{ m }}.w * b3_{{ n }};
{% endfor %}
{% endif %}
{% endfor %}
    }
{% for m in range(TM) %}
    if first + {{ m }}u < p.rows {
{% for n in range(TN // 4) %}
        if column + {{ 4 * n }}u < p.columns {
            c[(row + {{ m }}u) * (p.columns >> 2u) + (column >> 2u) + {{ n }}u] = {% if TRANSPOSED %}vec4<f32>(c{{ m }}_{{ 4 * n }}, c{{ m }}_{{ 4 * n + 1 }}, c{{ m }}_{{ 4 * n + 2 }}, c{{ m }}_{{ 4 * n + 3 }}){% else %}c{{ m }}_{{ n }}{% endif %};
        }
{% endfor %}
    }
{% endfor %}
}
