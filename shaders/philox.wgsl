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

// Radius of Box-Muller; log may round to above zero close to 1.
fn radius(v: u32) -> f32 {
    return sqrt(max(-2.0 * log(uniform_open(v)), 0.0));
}

// Four standard normals by Box-Muller.
fn normal4(bits: vec4<u32>) -> vec4<f32> {
    let r0 = radius(bits.x);
    let r1 = radius(bits.z);
    let a0 = 6.283185307179586 * uniform_open(bits.y);
    let a1 = 6.283185307179586 * uniform_open(bits.w);
    return vec4<f32>(r0 * cos(a0), r0 * sin(a0), r1 * cos(a1), r1 * sin(a1));
}
