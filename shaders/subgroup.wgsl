{#- What variants with SUBGROUP share: the builtins, and who speaks for a
   subgroup. A subgroup may have any size from 1 to 128, and nothing is assumed
   of which invocations form one: `subgroup` of `subgroups` is asked of the
   driver, never computed from the invocation's index. -#}
{% macro subgroup_inputs(on) %}{% if on %}, @builtin(subgroup_id) subgroup: u32, @builtin(num_subgroups) subgroups: u32{% endif %}{% endmacro %}

{#- Whether an invocation is its subgroup's first; lane 0 need not take part. -#}
{% macro first_lane(on) %}
{% if on %}
fn first_lane(local: u32) -> bool {
    return subgroupBroadcastFirst(local) == local;
}
{% endif %}
{% endmacro %}
