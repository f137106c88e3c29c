//! Philox on the device, Gaussian noise and the forward diffusion: integers to
//! the bit, normals against the host's, independence of the batch.

#[path = "harness/forward.rs"]
mod forward;
mod harness;

use demist::engine::graph::{DType, Graph, Launch, Lower, TensorId};
use demist::engine::kernel::{KernelOf, read, write};
use demist::engine::ops::{gaussian, q_sample, q_sample_with};
use demist::engine::rng;
use demist::{named, params, reference};
use forward::{Input, forward, forward_on};
use harness::{device, rel_err, values};

const SEED: u64 = 0x299f_31d0_a409_3822;

fn state(step: u32, first: u32) -> [u32; 4] {
    let [low, high] = rng::key(SEED);
    [low, high, step, first]
}

fn host_normals(shape: [usize; 4], step: u32, stream: u32, first: u32) -> Vec<f32> {
    let mut out = vec![0.0; shape.iter().product()];
    let per_image = shape[1..].iter().product();
    rng::fill_normal_batch(&mut out, per_image, SEED, step, stream, first);
    out
}

/// Device normals against the host's. WGSL allows a logarithm next to 1 an
/// error of 2^-21, which the root in Box-Muller turns into 1e-3 for the few
/// smallest radii; over all of them the error is one of rounding.
fn check_normals(name: &str, got: &[f32], want: &[f32]) {
    let (worst, rms) = (reference::max_abs_error(got, want), rel_err(got, want));
    assert!(worst < 1e-3 && rms < 2e-6, "{name}: worst {worst:.2e}, mean {rms:.2e}");
}

params! {
    struct WordParams { len: u32 }
}

static WORDS: KernelOf<WordParams, ()> = KernelOf::new(
    "philox_words",
    r#"{% include "common.wgsl" %}
{% include "philox.wgsl" %}
struct Params { len: u32 }
@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> counters: array<vec4<u32>>;
@group(0) @binding(2) var<storage, read> keys: array<vec2<u32>>;
@group(0) @binding(3) var<storage, read_write> words: array<vec4<u32>>;

@compute @workgroup_size(64)
fn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, @builtin(local_invocation_index) local: u32) {
    let i = flat_group(group, groups) * 64u + local;
    if i < p.len {
        words[i] = philox(counters[i], keys[i]);
    }
}
"#,
    &[read("counters"), read("keys"), write("words")],
);

/// The known answers of the Random123 library (kat_vectors), and words of
/// arbitrary counters, which must equal the host's.
#[test]
fn words_are_the_same_on_host_and_device() {
    let mut cases: Vec<([u32; 4], [u32; 2])> = vec![
        ([0; 4], [0; 2]),
        ([u32::MAX; 4], [u32::MAX; 2]),
        ([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344], [0xa409_3822, 0x299f_31d0]),
    ];
    let known: [[u32; 4]; 3] = [
        [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
        [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
    ];
    for i in 0..1000u32 {
        let w = rng::philox4x32([i, 7, 7, 7], [1, 2]);
        cases.push((w, [w[0] ^ w[2], !w[1]]));
    }
    let mut g = Graph::new();
    let counters = g.input("counters", &[cases.len(), 4], DType::U32);
    let keys = g.input("keys", &[cases.len(), 2], DType::U32);
    let words = g.input("words", &[cases.len(), 4], DType::U32);
    let launch = |lower: &mut Lower| {
        let launch = Launch {
            kernel: &WORDS,
            defines: (),
            params: WordParams { len: cases.len() as u32 },
            bindings: &named![counters, keys, words],
            groups: (cases.len() as u64).div_ceil(64),
            flops: 0,
        };
        lower.launch(launch).unwrap();
    };
    let counter_words: Vec<u32> = cases.iter().flat_map(|c| c.0).collect();
    let key_words: Vec<u32> = cases.iter().flat_map(|c| c.1).collect();
    let inputs = [(counters, Input::U32(&counter_words)), (keys, Input::U32(&key_words))];
    let got = forward(&g, Some(&launch), &inputs, &[words]);
    let got: Vec<[u32; 4]> = got[0]
        .chunks(4)
        .map(|w| [w[0].to_bits(), w[1].to_bits(), w[2].to_bits(), w[3].to_bits()])
        .collect();
    assert_eq!(got[..3], known);
    for ((counter, key), got) in cases.iter().zip(&got) {
        assert_eq!(*got, rng::philox4x32(*counter, *key), "{counter:x?} {key:x?}");
    }
}

fn device_normals(shape: [usize; 4], step: u32, stream: u32, first: u32) -> Vec<f32> {
    let mut g = Graph::new();
    let r = g.input("rng", &[4], DType::U32);
    let y = gaussian(&mut g, shape, r, stream).unwrap();
    forward(&g, None, &[(r, Input::U32(&state(step, first)))], &[y]).remove(0)
}

#[test]
fn normals_are_the_hosts() {
    for (shape, step, stream, first) in [
        ([3, 17, 13, 3], 0, rng::STREAM_XT, 5),
        ([2, 8, 8, 4], 77, rng::STREAM_NOISE_TRAIN, 0),
        ([5, 1, 1, 1], u32::MAX, rng::STREAM_STEP, u32::MAX - 2),
    ] {
        let got = device_normals(shape, step, stream, first);
        check_normals(&format!("{shape:?}"), &got, &host_normals(shape, step, stream, first));
    }
}

/// One image per invocation, more than one dimension of workgroups can hold;
/// the tails of the distribution are exercised as well.
#[test]
fn more_than_65535_workgroups() {
    let shape = [65_536 * 64 + 37, 1, 1, 1];
    let mut g = Graph::new();
    let r = g.input("rng", &[4], DType::U32);
    let y = gaussian(&mut g, shape, r, rng::STREAM_XT).unwrap();
    let got = forward_on(device(), &g, None, &[(r, Input::U32(&state(1, 9)))], &[y]).remove(0);
    check_normals("large", &got, &host_normals(shape, 1, rng::STREAM_XT, 9));
    let n = got.len() as f64;
    let mean = got.iter().map(|v| f64::from(*v)).sum::<f64>() / n;
    let variance = got.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / n;
    assert!(mean.abs() < 3e-3 && (variance - 1.0).abs() < 5e-3, "{mean} {variance}");
    let widest = got.iter().fold(0f32, |m, v| m.max(v.abs()));
    assert!((4.5..6.5).contains(&widest), "{widest}");
}

struct QSample {
    graph: Graph,
    x0: TensorId,
    coefs: TensorId,
    third: TensorId,
    outputs: Vec<TensorId>,
}

impl QSample {
    fn new(shape: [usize; 4], given: bool) -> Self {
        let mut graph = Graph::new();
        let x0 = graph.input("x0", &shape, DType::F32);
        let coefs = graph.input("coefs", &[shape[0], 2], DType::F32);
        let (third, outputs);
        if given {
            third = graph.input("noise", &shape, DType::F32);
            outputs = vec![q_sample_with(&mut graph, x0, coefs, third).unwrap()];
        } else {
            third = graph.input("rng", &[4], DType::U32);
            let (x_t, noise) = q_sample(&mut graph, x0, coefs, third).unwrap();
            outputs = vec![x_t, noise];
        }
        QSample { graph, x0, coefs, third, outputs }
    }

    fn run(&self, x0: &[f32], coefs: &[f32], third: Input) -> Vec<Vec<f32>> {
        let inputs =
            [(self.x0, Input::F32(x0)), (self.coefs, Input::F32(coefs)), (self.third, third)];
        forward(&self.graph, None, &inputs, &self.outputs)
    }
}

fn twin(x0: &[f32], coefs: &[f32], noise: &[f32]) -> Vec<f32> {
    let column = |k: usize| coefs.iter().copied().skip(k).step_by(2).collect::<Vec<_>>();
    reference::q_sample::forward(x0, noise, &column(0), &column(1))
}

#[test]
fn q_sample_matches_its_twin() {
    for shape in [[3, 17, 13, 3], [4, 8, 8, 3], [7, 1, 1, 1], [2, 5, 1, 2]] {
        let x0 = values(1, shape.iter().product());
        let coefs = values(2, 2 * shape[0]);
        let out = QSample::new(shape, false).run(&x0, &coefs, Input::U32(&state(12, 100)));
        let noise = host_normals(shape, 12, rng::STREAM_NOISE_TRAIN, 100);
        check_normals(&format!("{shape:?}"), &out[1], &noise);
        // The noise handed out is the one that was used.
        let e = rel_err(&out[0], &twin(&x0, &coefs, &out[1]));
        assert!(e < 1e-6, "{shape:?}: {e:.2e}");

        let given = values(3, x0.len());
        let out = QSample::new(shape, true).run(&x0, &coefs, Input::F32(&given));
        let e = rel_err(&out[0], &twin(&x0, &coefs, &given));
        assert!(e < 1e-6, "{shape:?}, noise given: {e:.2e}");
    }
}

/// Half batches numbered from 4 and from 7 are, to the bit, the batch of six
/// numbered from 4.
#[test]
fn noise_does_not_depend_on_the_batch() {
    for (h, w, c) in [(9, 7, 3), (8, 8, 3)] {
        let image = h * w * c;
        let x0 = values(4, 6 * image);
        let coefs = values(5, 12);
        let all = QSample::new([6, h, w, c], false).run(&x0, &coefs, Input::U32(&state(3, 4)));
        let half = QSample::new([3, h, w, c], false);
        for i in 0..2 {
            let first = state(3, 4 + 3 * i as u32);
            let x0 = &x0[i * 3 * image..][..3 * image];
            let part = half.run(x0, &coefs[i * 6..][..6], Input::U32(&first));
            for (part, all) in part.iter().zip(&all) {
                let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
                assert_eq!(bits(part), bits(&all[i * 3 * image..][..3 * image]));
            }
        }
    }
}

#[test]
fn impossible_operands_are_errors() {
    let mut g = Graph::new();
    let x0 = g.input("x0", &[2, 4, 4, 3], DType::F32);
    let coefs = g.input("coefs", &[2, 2], DType::F32);
    let r = g.input("rng", &[4], DType::U32);
    let float = g.input("float", &[4], DType::F32);
    let other = g.input("other", &[2, 4, 4, 1], DType::F32);
    assert!(q_sample(&mut g, x0, coefs, r).is_ok());
    assert!(q_sample(&mut g, x0, float, r).is_err());
    assert!(q_sample(&mut g, coefs, coefs, r).is_err());
    let error = q_sample(&mut g, x0, coefs, float).unwrap_err().to_string();
    assert_eq!(error, "q_sample: rng is F32 [4], U32 [4] is needed");
    assert!(q_sample_with(&mut g, x0, coefs, other).is_err());
    assert!(gaussian(&mut g, [2, 4, 0, 3], r, rng::STREAM_XT).is_err());
}
