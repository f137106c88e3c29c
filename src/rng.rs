//! Counter-based random numbers: Philox4x32-10, and how the crate spends it.
//!
//! Every random number of a run is a pure function of *what it is for*, so the
//! host and every device draw the same ones in any order, a resumed run
//! continues exactly, and an image depends on its own seed and index alone and
//! not on the batch it was made in.
//!
//! # Stream layout (host and device alike)
//!
//! ```text
//! key     = (seed low word, seed high word)
//! counter = (block, sample, step, stream)
//!   block   element / 4 within the sample; element e uses lane e % 4
//!   sample  low 32 bits of the sample's index
//!   step    the training step, or the loop step of a sampler
//!   stream  purpose in the low 16 bits (the STREAM_* constants); the high 16
//!           bits are zero, except for dropout, where they hold the node id
//! ```
//!
//! Elements count in the order of the tensor in memory (NHWC for images).
//!
//! Normals come from Box-Muller on the open uniforms of one block: lanes (0, 1)
//! give `r cos a, r sin a` with `r = sqrt(-2 ln u0)` and `a = 2 pi u1`, lanes
//! (2, 3) the next two. Host and device agree on the words to the bit; on the
//! normals to the accuracy of the device's `log`, `sin` and `cos`.

/// Noise added to a training image at its timestep.
pub const STREAM_NOISE_TRAIN: u32 = 1;
/// Dropout masks: the step word is the training step, the node's id goes into
/// the upper half of the stream word (see [`dropout_stream`]).
pub const STREAM_DROPOUT: u32 = 2;
/// Initial weights.
pub const STREAM_INIT: u32 = 3;
/// The starting noise x_T of a sampler.
pub const STREAM_XT: u32 = 4;
/// The noise a sampler adds after each of its steps.
pub const STREAM_STEP: u32 = 5;
/// The timesteps drawn for a training batch.
pub const STREAM_TIMESTEP: u32 = 6;
/// Classes drawn at random for sampling.
pub const STREAM_LABEL: u32 = 7;
/// Which training images are shown without their class.
pub const STREAM_NO_LABEL: u32 = 8;

const MULTIPLIER_0: u32 = 0xD251_1F53;
const MULTIPLIER_1: u32 = 0xCD9E_8D57;
const WEYL_0: u32 = 0x9E37_79B9;
const WEYL_1: u32 = 0xBB67_AE85;
const ROUNDS: usize = 10;

/// 2^-23, the spacing of [`uniform_open`].
const ULP23: f32 = 1.0 / (1 << 23) as f32;

/// The stream word of the dropout node `node`.
pub const fn dropout_stream(node: u16) -> u32 {
    STREAM_DROPOUT | (node as u32) << 16
}

/// A 64-bit seed as a Philox key: (low word, high word).
pub const fn key(seed: u64) -> [u32; 2] {
    [seed as u32, (seed >> 32) as u32]
}

/// Philox4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel Random Numbers: As
/// Easy as 1, 2, 3", SC 2011): four random words per counter and key.
pub fn philox4x32(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let [mut c0, mut c1, mut c2, mut c3] = counter;
    let [mut k0, mut k1] = key;
    for _ in 0..ROUNDS {
        let product_0 = u64::from(MULTIPLIER_0) * u64::from(c0);
        let product_1 = u64::from(MULTIPLIER_1) * u64::from(c2);
        (c0, c1, c2, c3) = (
            (product_1 >> 32) as u32 ^ c1 ^ k0,
            product_1 as u32,
            (product_0 >> 32) as u32 ^ c3 ^ k1,
            product_0 as u32,
        );
        k0 = k0.wrapping_add(WEYL_0);
        k1 = k1.wrapping_add(WEYL_1);
    }
    [c0, c1, c2, c3]
}

/// A uniform float in (0, 1), never an end point: odd multiples of 2^-24, every
/// one exact in float32.
pub fn uniform_open(word: u32) -> f32 {
    ((word >> 9) as f32 + 0.5) * ULP23
}

/// Four standard normals from the four words of a block (Box-Muller).
pub fn normal4(words: [u32; 4]) -> [f32; 4] {
    let [u0, u1, u2, u3] = words.map(uniform_open);
    let [z0, z1] = box_muller(u0, u1);
    let [z2, z3] = box_muller(u2, u3);
    [z0, z1, z2, z3]
}

fn box_muller(u0: f32, u1: f32) -> [f32; 2] {
    let radius = (-2.0 * u0.ln()).sqrt();
    let (sin, cos) = (std::f32::consts::TAU * u1).sin_cos();
    [radius * cos, radius * sin]
}

/// `word` scaled to an integer in `0..n` by the high half of a 32 x 32-bit
/// product: the bias is below `n / 2^32`. `n = 0` gives 0.
pub const fn below(word: u32, n: u32) -> u32 {
    ((word as u64 * n as u64) >> 32) as u32
}

/// The four words of `block` of a sample; see the module's stream layout.
pub fn block(seed: u64, step: u32, stream: u32, sample: u32, block: u32) -> [u32; 4] {
    philox4x32([block, sample, step, stream], key(seed))
}

/// The random word of one element of a sample.
pub fn word(seed: u64, step: u32, stream: u32, sample: u32, element: u32) -> u32 {
    block(seed, step, stream, sample, element / 4)[(element % 4) as usize]
}

/// One uniform number in (0, 1); see [`uniform_open`].
pub fn uniform_f32(seed: u64, step: u32, stream: u32, sample: u32, element: u32) -> f32 {
    uniform_open(word(seed, step, stream, sample, element))
}

/// One integer in `0..n`; see [`below`].
pub fn uniform_below(seed: u64, step: u32, stream: u32, sample: u32, element: u32, n: u32) -> u32 {
    below(word(seed, step, stream, sample, element), n)
}

/// One standard normal.
pub fn normal_f32(seed: u64, step: u32, stream: u32, sample: u32, element: u32) -> f32 {
    normal4(block(seed, step, stream, sample, element / 4))[(element % 4) as usize]
}

/// Fills `out` with the first `out.len()` standard normals of one sample: the
/// numbers [`normal_f32`] gives, a block at a time.
pub fn fill_normal(out: &mut [f32], seed: u64, step: u32, stream: u32, sample: u32) {
    fill_blocks(out, seed, step, stream, sample, normal4);
}

/// Fills `out` with the first `out.len()` uniforms in (0, 1) of one sample.
pub fn fill_uniform(out: &mut [f32], seed: u64, step: u32, stream: u32, sample: u32) {
    fill_blocks(out, seed, step, stream, sample, |words| words.map(uniform_open));
}

/// Fills a batch of samples of `per_sample` elements each, one after the other
/// and numbered from `first_sample` up, with standard normals.
pub fn fill_normal_batch(
    out: &mut [f32],
    per_sample: usize,
    seed: u64,
    step: u32,
    stream: u32,
    first_sample: u32,
) {
    for (i, sample) in out.chunks_mut(per_sample.max(1)).enumerate() {
        fill_normal(sample, seed, step, stream, first_sample.wrapping_add(i as u32));
    }
}

fn fill_blocks(
    out: &mut [f32],
    seed: u64,
    step: u32,
    stream: u32,
    sample: u32,
    convert: impl Fn([u32; 4]) -> [f32; 4],
) {
    for (i, lanes) in out.chunks_mut(4).enumerate() {
        let values = convert(block(seed, step, stream, sample, i as u32));
        lanes.copy_from_slice(&values[..lanes.len()]);
    }
}
