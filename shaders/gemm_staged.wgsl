// The products of gemm.wgsl for GPUs: a workgroup of 256 invocations owns a tile of
// 16 TM rows and 64 columns and stages slabs of both operands (staged.wgsl).
//   c[i, row, column] = sum over k of a[i, row, k] * b[i, k, column],
// or, with TRANSPOSED, of b[i, column, k]. Depth and columns are multiples of four.
{% include "common.wgsl" %}
{% from "staged.wgsl" import slabs, sums, multiply, turn_b %}

struct Params {
    batch: u32, rows: u32, columns: u32, depth: u32,
    across: u32,   // tiles along the columns
    down: u32,     // tiles along the rows
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;         // [batch, rows, depth]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;         // [batch, depth, columns] or [batch, columns, depth]
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;   // [batch, rows, columns]

{{ slabs(TM) }}

// Four of the depth of the batch's row, zeros outside of matrix i.
fn load_a(i: u32, row: u32, k: u32) -> vec4<f32> {
    if row >= p.rows || k >= p.depth {
        return vec4<f32>(0.0);
    }
    return a[((i * p.rows + row) * p.depth + k) >> 2u];
}

{% if TRANSPOSED %}
// Four of the depth of a column of b.
fn load_b(i: u32, column: u32, k: u32) -> vec4<f32> {
    if column >= p.columns || k >= p.depth {
        return vec4<f32>(0.0);
    }
    return b[((i * p.columns + column) * p.depth + k) >> 2u];
}
{% else %}
// Four columns of a row of b.
fn load_b(i: u32, k: u32, column: u32) -> vec4<f32> {
    if k >= p.depth || column >= p.columns {
        return vec4<f32>(0.0);
    }
    return b[((i * p.depth + k) * p.columns + column) >> 2u];
}
{% endif %}

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let flat = flat_group(group, groups);
    let rest = flat / p.across;
    let i = rest / p.down;
    // The same for all invocations: nobody is left waiting at a barrier.
    if i >= p.batch {
        return;
    }
    let first = rest % p.down * {{ 16 * TM }}u;
    let column = flat % p.across * 64u;
    let down = (local >> 4u) * {{ TM }}u;
    let across = local & 15u;
{{ sums(TM) }}
    for (var k = 0u; k < p.depth; k += 16u) {
{% for t in range(TM // 4) %}
        slab_a[local + {{ 256 * t }}u] = load_a(i, first + (local >> 2u) + {{ 64 * t }}u, k + (local & 3u) * 4u);
{% endfor %}
{% if TRANSPOSED %}
{{ turn_b("i", "column", "k") }}
{% else %}
        slab_b[local] = load_b(i, k + (local >> 4u), column + across * 4u);
{% endif %}
        workgroupBarrier();
{{ multiply(TM) }}
        workgroupBarrier();
    }
    if column + across * 4u < p.columns {
{% for m in range(TM) %}
        if first + down + {{ m }}u < p.rows {
            c[((i * p.rows + first + down + {{ m }}u) * p.columns + column) / 4u + across] = c{{ m }};
        }
{% endfor %}
    }
}
