{#- Loads that all lanes share. llvmpipe (Mesa 25) loads once for a whole vector,
    instead of lane by lane, where it can prove an index to be the same
    everywhere; it believes constants and immediates and what is computed from
    them, but neither loop counters nor workgroup numbers. So such an index is
    looked up, five bits at a time, in immediates that hold 0, 1, .. 31. The
    index must be the same in the whole workgroup, as dynamic indices of
    immediates must. Without `on` they are all the identity.
    A shared operand is an array<mat2x4<f32>>, eight channels an element, where
    nothing else reads it: then half as many indices are fetched from lanes. -#}
{% macro uniform_functions(on) %}
{% if on %}
struct Digits { value: array<u32, 32> }
var<immediate> digits: Digits;

// Below 1024.
fn uniform10(v: u32) -> u32 {
    return digits.value[v & 31u] + (digits.value[(v >> 5u) & 31u] << 5u);
}

// Below 2^15.
fn uniform15(v: u32) -> u32 {
    return uniform10(v) + (digits.value[(v >> 10u) & 31u] << 10u);
}

// Below 2^25.
fn uniform25(v: u32) -> u32 {
    return uniform15(v) + (uniform10(v >> 15u) << 15u);
}
{% else %}
fn uniform10(v: u32) -> u32 { return v; }

fn uniform15(v: u32) -> u32 { return v; }

fn uniform25(v: u32) -> u32 { return v; }
{% endif %}
{% endmacro %}
{# `prefix`0, `prefix`1, ..: `count` vec4s from the eights of `name` at `at` on. -#}
{% macro load_eights(prefix, name, at, count) %}
{% for n in range(count // 2) %}
        let {{ prefix }}eight{{ n }} = {{ name }}[{{ at }} + {{ n }}u];
        let {{ prefix }}{{ 2 * n }} = {{ prefix }}eight{{ n }}[0];
        let {{ prefix }}{{ 2 * n + 1 }} = {{ prefix }}eight{{ n }}[1];
{% endfor %}
{% endmacro %}
