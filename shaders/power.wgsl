// 2^floor(lg), exactly: what a loss scale multiplies and divides by. lg is
// within -64 to 64.
fn power_of_two(exponent: i32) -> f32 {
    return bitcast<f32>(u32(exponent + 127) << 23u);
}

fn scale_exponent(lg: f32) -> i32 {
    return i32(floor(clamp(lg, -64.0, 64.0)));
}
