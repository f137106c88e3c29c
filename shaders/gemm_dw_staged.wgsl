// The products of gemm_dw.wgsl for GPUs: a workgroup of 256 invocations owns 64 rows
// and 64 columns of one split and stages slabs of both operands, 16 deep.
//   c[split, i, row, column] = sum over k of the split of a[i, k, row] * b[i, k, column]
// and, behind the batch, the sums over k of b[i, k, column]. Rows and columns are
// multiples of four.
{% include "common.wgsl" %}

struct Params {
    batch: u32, rows: u32, columns: u32, depth: u32,
    across: u32,      // tiles along the columns
    down: u32,        // tiles along the rows
    splits: u32, first_split: u32,
    per_split: u32,   // depth of a split
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<vec4<f32>>;         // [batch, depth, rows]
@group(0) @binding(2) var<storage, read> b: array<vec4<f32>>;         // [batch, depth, columns]
@group(0) @binding(3) var<storage, read_write> c: array<vec4<f32>>;   // [all splits, batch * (rows + 1) * columns]

var<workgroup> slab_a: array<vec4<f32>, 256>;   // [16, rows of the tile / 4]
var<workgroup> slab_b: array<vec4<f32>, 256>;   // [16, columns of the tile / 4]

@compute @workgroup_size(256)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let flat = flat_group(group, groups);
    let rest = flat / p.across;
    let i = rest / p.down % p.batch;
    let split = rest / p.down / p.batch;
    // The same for all invocations: nobody is left waiting at a barrier.
    if split >= p.splits {
        return;
    }
    let first = rest % p.down * 64u;
    let column = flat % p.across * 64u;
    let deep = local >> 4u;
    let quad = local & 15u;
{% for m in range(4) %}
    var c{{ m }} = vec4<f32>(0.0);
{% endfor %}
    var sum = vec4<f32>(0.0);
    let begin = split * p.per_split;
    let end = min(begin + p.per_split, p.depth);
    let row_in = first + quad * 4u < p.rows;
    let column_in = column + quad * 4u < p.columns;
    for (var k = begin; k < end; k += 16u) {
        let at = i * p.depth + k + deep;
        var va = vec4<f32>(0.0);
        var vb = vec4<f32>(0.0);
        if k + deep < end {
            if row_in {
                va = a[(at * p.rows + first) / 4u + quad];
            }
            if column_in {
                vb = b[(at * p.columns + column) / 4u + quad];
            }
        }
        slab_a[local] = va;
        slab_b[local] = vb;
        workgroupBarrier();
        // Rows go by `deep` here, columns by `quad`.
{% for q in range(16) %}
        let a{{ q }} = slab_a[{{ 16 * q }}u + deep];
        let b{{ q }} = slab_b[{{ 16 * q }}u + quad];
        sum += b{{ q }};
{% for m in range(4) %}
        c{{ m }} += a{{ q }}[{{ m }}] * b{{ q }};
{% endfor %}
{% endfor %}
        workgroupBarrier();
    }
    let base = (p.first_split + split) * p.batch * (p.rows + 1u) * (p.columns >> 2u);
    if column_in {
{% for m in range(4) %}
        if first + deep * 4u + {{ m }}u < p.rows {
            c[base + ((i * p.rows + first + deep * 4u + {{ m }}u) * p.columns + column) / 4u + quad] = c{{ m }};
        }
{% endfor %}
        if first == 0u && deep == 0u {
            c[base + ((p.batch * p.rows + i) * p.columns + column) / 4u + quad] = sum;
        }
    }
}
