{#- The sum of `v` over a workgroup of 64, in a fixed order; the result is
   valid on invocation 0. Call it once per kernel, in uniform control flow, and
   with what `group_place` gives before `v`. `subgroup`: each subgroup adds up
   first (any size, subgroup.wgsl), and one barrier is enough. -#}
{% from "subgroup.wgsl" import first_lane %}
{% macro group_sum(type, subgroup) %}
var<workgroup> shares: array<{{ type }}, 64>;

{% if subgroup %}
{{ first_lane(true) }}
fn group_sum(local: u32, subgroup: u32, subgroups: u32, v: {{ type }}) -> {{ type }} {
    let sum = subgroupAdd(v);
    if first_lane(local) {
        shares[subgroup] = sum;
    }
    workgroupBarrier();
    var total = shares[0];
    for (var i = 1u; i < subgroups; i += 1u) {
        total += shares[i];
    }
    return total;
}
{% else %}
fn group_sum(local: u32, v: {{ type }}) -> {{ type }} {
    shares[local] = v;
    workgroupBarrier();
    // Invocation i < 8 touches only shares i, i + 8, ..., so no barrier is
    // needed between its reads and its write.
    if local < 8u {
        var sum = shares[local];
{% for i in range(1, 8) %}
        sum += shares[local + {{ i * 8 }}u];
{% endfor %}
        shares[local] = sum;
    }
    workgroupBarrier();
    var total = shares[0];
{% for i in range(1, 8) %}
    total += shares[{{ i }}];
{% endfor %}
    return total;
}
{% endif %}
{% endmacro %}

{#- The arguments of `group_sum` that say where an invocation stands. -#}
{% macro group_place(subgroup) %}local{% if subgroup %}, subgroup, subgroups{% endif %}{% endmacro %}
