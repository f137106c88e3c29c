// Philox4x32-10 (Salmon et al., "Parallel Random Numbers: As Easy as 1, 2, 3",
// SC 2011): a counter in, four random words out, the same on every device.

// High and low word of a 32 x 32 bit product.
fn mul_wide(a: u32, b: u32) -> vec2<u32> {
    let a0 = a & 0xffffu;
    let a1 = a >> 16u;
    let b0 = b & 0xffffu;
    let b1 = b >> 16u;
    let low = a0 * b0;
    let mid = a1 * b0 + (low >> 16u);
    let mid2 = a0 * b1 + (mid & 0xffffu);
    return vec2<u32>(a1 * b1 + (mid >> 16u) + (mid2 >> 16u), a * b);
}

fn philox(counter: vec4<u32>, seed: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = seed;
    for (var i = 0u; i < 10u; i += 1u) {
        let m0 = mul_wide(0xD2511F53u, c.x);
        let m1 = mul_wide(0xCD9E8D57u, c.z);
        c = vec4<u32>(m1.x ^ c.y ^ k.x, m1.y, m0.x ^ c.w ^ k.y, m0.y);
        k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// Uniform in (0, 1), never an end point: odd multiples of 2^-24, exact in f32.
fn uniform_open(v: u32) -> f32 {
    return (f32(v >> 9u) + 0.5) * 1.1920928955078125e-7;
}

// Two standard normals by Box-Muller: radius * (cos, sin) of 2 pi u1. The
// angle is turned by pi into the range where every device's sine is accurate,
// and an inexact logarithm next to 1 is kept from turning positive.
fn box_muller(u0: f32, u1: f32) -> vec2<f32> {
    let radius = sqrt(max(-2.0 * log(u0), 0.0));
    let angle = 6.283185307179586 * (u1 - 0.5);
    return -radius * vec2<f32>(cos(angle), sin(angle));
}

// Four standard normals from the words of a block.
fn normal4(bits: vec4<u32>) -> vec4<f32> {
    return vec4<f32>(
        box_muller(uniform_open(bits.x), uniform_open(bits.y)),
        box_muller(uniform_open(bits.z), uniform_open(bits.w)),
    );
}

// The normals of block `block` of the image at `image` in the batch;
// state = (seed low, seed high, step, index of the batch's first image).
fn image_normal4(state: vec4<u32>, stream: u32, image: u32, block: u32) -> vec4<f32> {
    return normal4(philox(vec4<u32>(block, state.w + image, state.z, stream), state.xy));
}
