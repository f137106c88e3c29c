// y = x * 2^floor(lg), the seed of a backward walk under a loss scale.
{% include "common.wgsl" %}
{% include "power.wgsl" %}

struct Params {
    len: u32,
}
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;              // [len]
@group(0) @binding(2) var<storage, read> state: array<vec4<f32>>;    // [1]: lg, growth, good, skipped
@group(0) @binding(3) var<storage, read_write> y: array<f32>;        // [len]

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i < p.len {
        y[i] = power_of_two(scale_exponent(state[0].x)) * x[i];
    }
}
