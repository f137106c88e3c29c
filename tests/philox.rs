//! The host's random numbers: Philox against published vectors, the stream
//! layout, and the distributions drawn from it.

use demist::engine::rng;

/// Known answers published with the Random123 library (kat_vectors).
#[test]
fn philox_gives_the_known_answers() {
    let cases = [
        ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
        ([u32::MAX; 4], [u32::MAX; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
        (
            [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
            [0xa409_3822, 0x299f_31d0],
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
        ),
    ];
    for (counter, key, expected) in cases {
        assert_eq!(rng::philox4x32(counter, key), expected, "{counter:x?} {key:x?}");
    }
}

/// The layout is a promise to saved runs and to the shaders.
#[test]
fn a_word_is_where_the_layout_says() {
    let seed = 0x299f_31d0_a409_3822;
    // Counter and key of the third known answer.
    let [block, sample, step, stream] = [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344];
    let words = [0xd16c_fe09_u32, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1];
    assert_eq!(rng::block(seed, step, stream, sample, block), words);

    let element = 4 * 0x0012_3456 + 2;
    let expected = rng::philox4x32([0x0012_3456, 7, 9, rng::STREAM_STEP], rng::key(seed))[2];
    assert_eq!(rng::word(seed, 9, rng::STREAM_STEP, 7, element), expected);
    assert_eq!(rng::dropout_stream(0xabcd), 0xabcd_0002);
}

#[test]
fn streams_steps_samples_and_seeds_differ() {
    use rng::*;
    let mut words: Vec<u32> = [
        STREAM_NOISE_TRAIN,
        STREAM_INIT,
        STREAM_XT,
        STREAM_STEP,
        STREAM_TIMESTEP,
        dropout_stream(0),
        dropout_stream(1),
    ]
    .map(|stream| word(1, 0, stream, 0, 0))
    .to_vec();
    words.extend([word(1, 1, STREAM_XT, 0, 0), word(1, 0, STREAM_XT, 1, 0)]);
    words.extend([word(1, 0, STREAM_XT, 0, 1), word(1, 0, STREAM_XT, 0, 4)]);
    words.extend([word(2, 0, STREAM_XT, 0, 0), word(1 + (1 << 32), 0, STREAM_XT, 0, 0)]);
    let count = words.len();
    words.sort_unstable();
    words.dedup();
    assert_eq!(words.len(), count, "two of them are the same word");
}

#[test]
fn open_uniforms_never_reach_an_end() {
    let ulp = 2.0_f32.powi(-24);
    assert_eq!(rng::uniform_open(0), ulp);
    assert_eq!(rng::uniform_open(511), ulp);
    assert_eq!(rng::uniform_open(512), 3.0 * ulp);
    assert_eq!(rng::uniform_open(1 << 31), 0.5 + ulp);
    assert_eq!(rng::uniform_open(u32::MAX), 1.0 - ulp);
    // The ends as radii of Box-Muller: positive and finite.
    for end in [0, u32::MAX] {
        assert!(rng::normal4([end, 0, end, 0]).iter().all(|z| z.is_finite()));
    }
    assert!(rng::normal4([u32::MAX, 0, 0, 0])[0] > 0.0);
}

#[test]
fn box_muller_pairs_lanes_as_documented() {
    let words = [0x1234_5678, 0x9abc_def0, 0x0fed_cba9, 0x8765_4321];
    let u = words.map(|w| f64::from(rng::uniform_open(w)));
    let polar = |u0: f64, u1: f64| {
        let (sin, cos) = (std::f64::consts::TAU * u1).sin_cos();
        let radius = (-2.0 * u0.ln()).sqrt();
        [radius * cos, radius * sin]
    };
    let expected = [polar(u[0], u[1]), polar(u[2], u[3])].concat();
    for (z, expected) in rng::normal4(words).iter().zip(expected) {
        approx::assert_abs_diff_eq!(f64::from(*z), expected, epsilon = 2e-6);
    }
}

#[test]
fn fillers_give_the_numbers_of_single_draws() {
    let (seed, step, stream, first) = (99, 3, rng::STREAM_NOISE_TRAIN, u32::MAX);
    // Not a multiple of the block of four, and sample numbers that wrap.
    let per_sample = 11;
    let mut batch = vec![f32::NAN; 3 * per_sample];
    rng::fill_normal_batch(&mut batch, per_sample, seed, step, stream, first);
    for (i, sample) in [u32::MAX, 0, 1].into_iter().enumerate() {
        for e in 0..per_sample {
            let single = rng::normal_f32(seed, step, stream, sample, e as u32);
            assert_eq!(batch[i * per_sample + e], single, "sample {sample} element {e}");
        }
    }
    let mut uniforms = [f32::NAN; 7];
    rng::fill_uniform(&mut uniforms, seed, step, stream, 5);
    for (e, &u) in uniforms.iter().enumerate() {
        assert_eq!(u, rng::uniform_f32(seed, step, stream, 5, e as u32), "element {e}");
    }
    rng::fill_normal_batch(&mut [], 0, seed, step, stream, 0);
}

/// Bounds at about five standard deviations for a million draws.
#[test]
fn normals_are_standard_normal() {
    let mut z = vec![0.0; 1_000_000];
    rng::fill_normal(&mut z, 7, 0, rng::STREAM_XT, 0);
    let mean_of =
        |f: &dyn Fn(f64) -> f64| z.iter().map(|&z| f(z.into())).sum::<f64>() / z.len() as f64;
    approx::assert_abs_diff_eq!(mean_of(&|z| z), 0.0, epsilon = 5e-3);
    approx::assert_abs_diff_eq!(mean_of(&|z| z * z), 1.0, epsilon = 7e-3);
    approx::assert_abs_diff_eq!(mean_of(&|z| z.powi(3)), 0.0, epsilon = 0.02);
    approx::assert_abs_diff_eq!(mean_of(&|z| z.powi(4)), 3.0, epsilon = 0.05);
    let within_one = mean_of(&|z| f64::from(z.abs() < 1.0));
    approx::assert_abs_diff_eq!(within_one, 0.682_689_5, epsilon = 2.5e-3);
    // Neighbours of a pair, and of neighbouring blocks, are uncorrelated.
    for lag in [1, 2, 4] {
        let products = z.iter().zip(&z[lag..]).map(|(&a, &b)| f64::from(a * b));
        approx::assert_abs_diff_eq!(products.sum::<f64>() / z.len() as f64, 0.0, epsilon = 5e-3);
    }
}

#[test]
fn integers_are_uniform_and_in_range() {
    assert_eq!(rng::below(0, 1000), 0);
    assert_eq!(rng::below(u32::MAX, 1000), 999);
    assert_eq!(rng::below(u32::MAX, u32::MAX), u32::MAX - 1);
    assert_eq!(rng::below(1 << 31, 1000), 500);

    const DRAWS: u32 = 140_000;
    let mut counts = [0_i32; 7];
    for e in 0..DRAWS {
        counts[rng::uniform_below(11, 0, rng::STREAM_TIMESTEP, 0, e, 7) as usize] += 1;
    }
    let expected = (DRAWS / 7) as i32;
    for (value, count) in counts.into_iter().enumerate() {
        // The standard deviation of a count is 131.
        assert!((count - expected).abs() < 655, "{value} came {count} times, not {expected}");
    }
}
