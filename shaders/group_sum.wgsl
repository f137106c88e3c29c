{#- The sum of `v` over a workgroup of 64, in a fixed order; the result is
   valid on invocation 0. Call it once per kernel, in uniform control flow. -#}
{% macro group_sum(type) %}
var<workgroup> shares: array<{{ type }}, 64>;

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
{% endmacro %}
