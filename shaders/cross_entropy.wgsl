// loss[n] = log of the sum of exp(logits[n, ..]) - logits[n, label], and
// whether no, or fewer than five, logits exceed the label's. A workgroup owns
// one row: each invocation sums relative to the largest of its own logits, and
// invocation 0 brings the sums together in order; with SUBGROUP those of
// subgroups, which have brought theirs together first.
{% include "common.wgsl" %}
{% from "subgroup.wgsl" import first_lane, subgroup_inputs %}

struct Params {
    n: u32, k: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> logits: array<f32>;             // [n, k]
@group(0) @binding(2) var<storage, read> labels: array<u32>;             // [n]
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;         // [n]
@group(0) @binding(4) var<storage, read_write> top1: array<f32>;         // [n]
@group(0) @binding(5) var<storage, read_write> top5: array<f32>;         // [n]

// Largest logit, sum of exponentials relative to it, logits above the label's.
var<workgroup> shares: array<vec3<f32>, 64>;

{{ first_lane(SUBGROUP) }}
@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32{{ subgroup_inputs(SUBGROUP) }}) {
    let row = flat_group(group, groups);
    let inside = row < p.n;
    let first = min(row, p.n - 1u) * p.k;
    // A label past the end counts as the last class.
    let own = logits[first + min(labels[min(row, p.n - 1u)], p.k - 1u)];
    // An invocation without logits repeats the last one and weighs it zero.
    var largest = logits[first + min(local, p.k - 1u)];
    for (var i = local + 64u; i < p.k; i += 64u) {
        largest = max(largest, logits[first + i]);
    }
    var sum = 0.0;
    var above = 0.0;
    for (var i = local; i < p.k; i += 64u) {
        let logit = logits[first + i];
        sum += exp(logit - largest);
        above += select(0.0, 1.0, logit > own);
    }
{% if SUBGROUP %}
    let parts = subgroups;
    let most = subgroupMax(largest);
    let share = vec3<f32>(most, subgroupAdd(sum * exp(largest - most)), subgroupAdd(above));
    if first_lane(local) {
        shares[subgroup] = share;
    }
{% else %}
    let parts = 64u;
    shares[local] = vec3<f32>(largest, sum, above);
{% endif %}
    workgroupBarrier();
    if inside && local == 0u {
        var all = shares[0];
        for (var i = 1u; i < parts; i += 1u) {
            all.x = max(all.x, shares[i].x);
        }
        all.y = 0.0;
        all.z = 0.0;
        for (var i = 0u; i < parts; i += 1u) {
            let share = shares[i];
            all.y += share.y * exp(share.x - all.x);
            all.z += share.z;
        }
        loss[row] = (all.x - own) + log(all.y);
        top1[row] = select(0.0, 1.0, all.z < 1.0);
        top5[row] = select(0.0, 1.0, all.z < 5.0);
    }
}
