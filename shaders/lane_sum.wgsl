{#- The sum of `v` over the eight invocations local, local + 8, ... of a
   workgroup of 64, in a fixed order; valid on invocations 0 to 7. Call it once
   per kernel, in uniform control flow. -#}
{% macro lane_sum() %}
var<workgroup> lanes: array<vec4<f32>, 64>;

fn lane_sum(local: u32, v: vec4<f32>) -> vec4<f32> {
    lanes[local] = v;
    workgroupBarrier();
    var total = lanes[local % 8u];
{% for i in range(1, 8) %}
    total += lanes[local % 8u + {{ i * 8 }}u];
{% endfor %}
    return total;
}
{% endmacro %}
