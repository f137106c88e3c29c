// Products of transposed matrices, one for each of a batch, in splits of the
// depth that whoever reads them adds in order:
//   c[split, i, row, column] = sum over k of the split of a[i, k, row] * b[i, k, column]
// and, behind the batch, the sums over k of b[i, k, column]. An invocation owns
// TM rows and TN columns in registers and takes PX of the depth a turn. UNI: a
// workgroup has one tile of columns, its lanes are rows, so that they load b
// together (uniform.wgsl); the columns are then a multiple of TN.
{% include "common.wgsl" %}
{% from "uniform.wgsl" import load_eights, uniform_functions %}

struct Params {
    batch: u32, rows: u32, columns: u32, depth: u32,
    across: u32,      // tiles along the columns
    down: u32,        // tiles along the rows, with UNI workgroups
    splits: u32, first_split: u32,
    per_split: u32,   // depth of a split, with UNI at most 1024
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;         // [batch, depth, rows]
@group(0) @binding(2) var<storage, read> b: array<{{ "mat2x4<f32>" if UNI else "vec4<f32>" }}>;   // [batch, depth, columns]
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;   // [all splits, batch * (rows + 1) * columns]

{{ uniform_functions(UNI) }}

@compute @workgroup_size({{ WG }})
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let flat = flat_group(group, groups){% if not UNI %} * {{ WG }}u + local{% endif %};
    let rest = flat / p.across;
    let first = {% if UNI %}((rest % p.down) * {{ WG }}u + local){% else %}(rest % p.down){% endif %} * {{ TM }}u;
    let i = (rest / p.down) % p.batch;
    let split = rest / p.down / p.batch;
    if split >= p.splits || first >= p.rows {
        return;
    }
    let column = uniform10(flat % p.across) * {{ TN }}u;
{% set per = 3 if UNI else 2 %}
    let columns = uniform25(p.columns >> {{ per }}u);
    let tile = uniform25(i * p.depth * (p.columns >> {{ per }}u)) + (column >> {{ per }}u);
    let last_column = (p.columns - 1u - column) >> 2u;
    let last_row = (p.rows - 1u - first) >> 2u;
{% for m in range(TM) %}{% for n in range(TN // 4) %}
    var c{{ m }}_{{ n }} = vec4<f32>(0.0);
{% endfor %}{% endfor %}
{% for n in range(TN // 4) %}
    var sum{{ n }} = vec4<f32>(0.0);
{% endfor %}
    let begin = split * p.per_split;
    let start = tile + uniform25(begin * (p.columns >> {{ per }}u));
    let end = min(begin + p.per_split, p.depth);
    for (var k = begin; k < end; k += {{ PX }}u) {
        let base = start + uniform10(k - begin) * columns;
{% for q in range(PX) %}
{% if PX > 1 %}
        // Past the end of the split a counts as zero, and past that of the buffer
        // these drivers load zeros.
{% endif %}
        let in{{ q }} = k + {{ q }}u < end;
{% if UNI %}
{{ load_eights("b" ~ q ~ "_", "b", "base + " ~ q ~ "u * columns", TN // 4) }}
{% endif %}
{% for n in range(TN // 4) %}
{% if not UNI %}
        let b{{ q }}_{{ n }} = b[base + {{ q }}u * columns + min({{ n }}u, last_column)];
{% endif %}
        sum{{ n }} += select(vec4<f32>(0.0), b{{ q }}_{{ n }}, in{{ q }});
{% endfor %}
{% for m in range(TM // 4) %}
        let v{{ q }}_{{ m }} = select(vec4<f32>(0.0), a[(i * p.depth + min(k + {{ q }}u, p.depth - 1u)) * (p.rows >> 2u) + (first >> 2u) + min({{ m }}u, last_row)], in{{ q }});
{% endfor %}
{% endfor %}
{% for m in range(TM // 4) %}{% for s in range(4) %}{% for n in range(TN // 4) %}
        c{{ 4 * m + s }}_{{ n }} += {% for q in range(PX) %}v{{ q }}_{{ m }}[{{ s }}] * b{{ q }}_{{ n }}{% if not loop.last %} + {% endif %}{% endfor %};
{% endfor %}{% endfor %}{% endfor %}
    }
    let base = (p.first_split + split) * p.batch * (p.rows + 1u) * (p.columns >> 2u);
{% for m in range(TM) %}
    if first + {{ m }}u < p.rows {
{% for n in range(TN // 4) %}
        if column + {{ 4 * n }}u < p.columns {
            c[base + (i * p.rows + first + {{ m }}u) * (p.columns >> 2u) + (column >> 2u) + {{ n }}u] = c{{ m }}_{{ n }};
        }
{% endfor %}
    }
{% endfor %}
    if first == 0u {
{% for n in range(TN // 4) %}
        if column + {{ 4 * n }}u < p.columns {
            c[base + (p.batch * p.rows + i) * (p.columns >> 2u) + (column >> 2u) + {{ n }}u] = sum{{ n }};
        }
{% endfor %}
    }
}
