//! Plain CPU twins of every op: the numerical ground truth that the GPU kernels
//! are held against by the tests and by `demist selftest`.
//!
//! One file per op, named like the op. The code is loops over slices, with no
//! attempt at speed beyond what small test shapes need. Common rules:
//! - Tensors are NHWC, row-major; `hw` counts the pixels (or tokens) of a sample.
//!   Convolution weights are `[kh][kw][cin][cout]`, linear weights `[in][out]`.
//! - Every function is generic over [`Real`]. With `f32` slices it reads and
//!   returns what a kernel does, with every sum and product in f64 between; with
//!   `f64` slices nothing is rounded, so finite differences are sharp.
//! - `forward` maps `x` to `y`; `backward*` maps `dy` to the gradients, recomputes
//!   what it needs from the forward inputs and assigns (never accumulates).
//! - A slice whose length disagrees with the shape is a bug in the caller and
//!   panics, naming the op and the operand.

pub mod adamw;
pub mod add;
pub mod attention;
pub mod cast;
pub mod concat;
pub mod conv2d;
pub mod cross_entropy;
pub mod denoise;
pub mod dropout;
pub mod ema;
pub mod grad_norm;
pub mod group_norm;
pub mod label_embedding;
pub mod linear;
pub mod loss;
pub mod loss_scale;
pub mod loss_stats;
pub mod mean_pool;
pub mod pool_tokens;
pub mod q_sample;
pub mod relu;
pub mod repeat;
pub mod resample;
pub mod resize;
pub mod silu;
pub mod timestep_embedding;
pub mod vlb;

/// The name of every op that has a twin here, sorted.
pub const OPS: &[&str] = &[
    "adamw",
    "add",
    "attention",
    "cast",
    "concat",
    "conv2d",
    "cross_entropy",
    "denoise",
    "dropout",
    "ema",
    "grad_norm",
    "group_norm",
    "label_embedding",
    "linear",
    "loss",
    "loss_scale",
    "loss_stats",
    "mean_pool",
    "pool_tokens",
    "q_sample",
    "relu",
    "repeat",
    "resample",
    "resize",
    "silu",
    "timestep_embedding",
    "vlb",
];

/// An element type of the twins: `f32` or `f64`.
pub trait Real: Copy + Into<f64> {
    /// Rounds to the nearest value of this type.
    fn from_f64(value: f64) -> Self;
}

impl Real for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }
}

impl Real for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }
}

/// Widens a slice to f64 (exact).
pub fn widen<T: Real>(values: &[T]) -> Vec<f64> {
    values.iter().map(|&v| v.into()).collect()
}

/// Rounds f64 results to the element type.
pub fn narrow<T: Real>(values: &[f64]) -> Vec<T> {
    values.iter().map(|&v| T::from_f64(v)).collect()
}

/// Panics, naming op and operand, unless `values` has `want` elements.
#[track_caller]
fn expect_len<T>(op: &str, operand: &str, values: &[T], want: usize) {
    let got = values.len();
    assert!(got == want, "{op}: {operand} has {got} elements, its shape needs {want}");
}

/// Applies `f` to the elements of two slices of equal length.
#[track_caller]
fn zip_map<T: Real>(op: &str, a: &[T], b: &[T], f: impl Fn(f64, f64) -> f64) -> Vec<T> {
    expect_len(op, "second operand", b, a.len());
    a.iter().zip(b).map(|(&a, &b)| T::from_f64(f(a.into(), b.into()))).collect()
}

/// Sum of elementwise products, in f64.
pub fn dot<A: Real, B: Real>(a: &[A], b: &[B]) -> f64 {
    expect_len("dot", "second operand", b, a.len());
    a.iter().zip(b).map(|(&a, &b)| a.into() * b.into()).sum()
}

/// Euclidean norm, in f64.
pub fn norm<T: Real>(values: &[T]) -> f64 {
    dot(values, values).sqrt()
}

/// Largest `|got - want|`; infinite if any element of either slice is not
/// finite, so that `error < tolerance` fails on NaN-poisoned output.
pub fn max_abs_error<A: Real, B: Real>(got: &[A], want: &[B]) -> f64 {
    expect_len("max_abs_error", "want", want, got.len());
    let mut largest = 0f64;
    for (&got, &want) in got.iter().zip(want) {
        let difference = (got.into() - want.into()).abs();
        if !difference.is_finite() {
            return f64::INFINITY;
        }
        largest = largest.max(difference);
    }
    largest
}

/// `||got - want|| / ||want||` (Euclidean; `||got||` where `want` is all zero);
/// infinite if any element is not finite.
pub fn relative_error<A: Real, B: Real>(got: &[A], want: &[B]) -> f64 {
    expect_len("relative_error", "want", want, got.len());
    let difference: Vec<f64> = got.iter().zip(want).map(|(&g, &w)| g.into() - w.into()).collect();
    scaled(norm(&difference), norm(want))
}

/// Largest `|got - want|` over the largest `|want|`: what a single wrong element
/// cannot hide from, however many right ones surround it. Infinite if any
/// element is not finite.
pub fn max_relative_error<A: Real, B: Real>(got: &[A], want: &[B]) -> f64 {
    let scale = want.iter().fold(0f64, |m, &w| m.max(w.into().abs()));
    scaled(max_abs_error(got, want), scale)
}

/// `error / scale`, or `error` itself where the scale is zero.
fn scaled(error: f64, scale: f64) -> f64 {
    if !error.is_finite() || !scale.is_finite() {
        f64::INFINITY
    } else if scale == 0.0 {
        error
    } else {
        error / scale
    }
}

/// Deterministic test data in [-1, 1), exact in f32 and without symmetry:
/// element `i` is a PCG hash (Jarzynski and Olano, "Hash Functions for GPU
/// Rendering", JCGT 2020) of `i` and of the FNV-1a hash of `name`.
pub fn test_values<T: Real>(name: &str, len: usize) -> Vec<T> {
    let seed = name
        .bytes()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..len)
        .map(|i| {
            let x = seed.wrapping_add((i as u32).wrapping_mul(0x9e37_79b9));
            let a = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
            let word = ((a >> ((a >> 28) + 4)) ^ a).wrapping_mul(277_803_737);
            let bits = (word >> 22) ^ word;
            T::from_f64(f64::from(bits >> 8) * 2f64.powi(-23) - 1.0)
        })
        .collect()
}

/// Central difference of `f` at `x` along `direction` (any length; `step` is
/// the distance walked each way): an estimate of `grad . direction`.
pub fn directional_difference(
    mut f: impl FnMut(&[f64]) -> f64,
    x: &[f64],
    direction: &[f64],
    step: f64,
) -> f64 {
    expect_len("directional_difference", "direction", direction, x.len());
    let length = norm(direction);
    if length == 0.0 {
        return 0.0;
    }
    let mut at = |distance: f64| {
        let moved: Vec<f64> =
            x.iter().zip(direction).map(|(x, d)| x + d * (distance / length)).collect();
        f(&moved)
    };
    (at(step) - at(-step)) / (2.0 * step) * length
}

/// Central difference of `f` at `x` in each of the elements `indices`.
pub fn finite_difference(
    mut f: impl FnMut(&[f64]) -> f64,
    x: &[f64],
    indices: &[usize],
    step: f64,
) -> Vec<f64> {
    let mut moved = x.to_vec();
    indices
        .iter()
        .map(|&i| {
            moved[i] = x[i] + step;
            let above = f(&moved);
            moved[i] = x[i] - step;
            let below = f(&moved);
            moved[i] = x[i];
            (above - below) / (2.0 * step)
        })
        .collect()
}

/// How far `gradient` is from the finite differences of `f` at `x`, relative to
/// the gradient's size: the larger of the error in up to [`GRADIENT_PROBES`]
/// single elements spread over `x`, and of the error along one direction that
/// involves every element. Infinite if anything is not finite.
pub fn gradient_error(mut f: impl FnMut(&[f64]) -> f64, x: &[f64], gradient: &[f64]) -> f64 {
    expect_len("gradient_error", "gradient", gradient, x.len());
    const STEP: f64 = 1e-4;
    // First, last, and evenly between.
    let probes = x.len().min(GRADIENT_PROBES);
    let indices: Vec<usize> =
        (0..probes).map(|p| p * (x.len() - 1) / (probes - 1).max(1)).collect();
    let sampled: Vec<f64> = indices.iter().map(|&i| gradient[i]).collect();
    let differences = finite_difference(&mut f, x, &indices, STEP);
    let single = max_relative_error(&sampled, &differences);

    let direction: Vec<f64> = test_values("gradient direction", x.len());
    let estimate = directional_difference(&mut f, x, &direction, STEP);
    let along = (dot(gradient, &direction) - estimate).abs();
    single.max(scaled(along, norm(gradient) * norm(&direction)))
}

/// How many single elements [`gradient_error`] differentiates.
pub const GRADIENT_PROBES: usize = 40;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_op_file_is_listed() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/src/reference");
        let mut files: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().path().file_stem().unwrap().to_str().unwrap().to_owned())
            .filter(|name| name != "mod")
            .collect();
        files.sort();
        assert_eq!(files, OPS);
    }

    #[test]
    fn errors_are_relative_and_reject_nan() {
        assert_eq!(relative_error(&[3.0f32, 4.5], &[3.0, 4.0]), 0.1);
        assert_eq!(max_relative_error(&[3.0f32, 4.5], &[3.0, 4.0]), 0.125);
        assert_eq!(max_abs_error(&[0.5f64], &[0.0f32]), 0.5);
        assert_eq!(relative_error(&[0.25f64], &[0.0f64]), 0.25);
        assert_eq!(relative_error(&[0.0f64], &[0.0f64]), 0.0);
        for bad in [f32::NAN, f32::INFINITY] {
            assert_eq!(max_abs_error(&[1.0, bad], &[1.0f32, 1.0]), f64::INFINITY);
            assert_eq!(max_relative_error(&[1.0, bad], &[1.0f32, 1.0]), f64::INFINITY);
            assert_eq!(relative_error(&[1.0, bad], &[1.0f32, 1.0]), f64::INFINITY);
            assert_eq!(relative_error(&[1.0f32, 1.0], &[1.0, bad]), f64::INFINITY);
        }
    }

    #[test]
    fn gradient_error_accepts_the_gradient_and_nothing_else() {
        let f = |x: &[f64]| x.iter().enumerate().map(|(i, v)| (i as f64 + v).sin()).sum::<f64>();
        let x: Vec<f64> = test_values("x", 500);
        let mut gradient: Vec<f64> =
            x.iter().enumerate().map(|(i, v)| (i as f64 + v).cos()).collect();
        assert!(gradient_error(f, &x, &gradient) < 1e-7);
        // Not among the probed elements: only the direction sees it.
        gradient[7] += 0.1;
        assert!(gradient_error(f, &x, &gradient) > 1e-5);
        gradient[7] = f64::NAN;
        assert_eq!(gradient_error(f, &x, &gradient), f64::INFINITY);
    }

    #[test]
    fn gradient_error_works_on_one_element() {
        assert!(gradient_error(|x| x[0] * x[0], &[3.0], &[6.0]) < 1e-9);
        assert!(gradient_error(|x| x[0] * x[0], &[3.0], &[5.9]) > 1e-3);
    }

    #[test]
    fn test_values_are_the_documented_hash() {
        // From an independent implementation in another language.
        let want = [0.804_666_519_165_039_1, 0.689_314_842_224_121_1, 0.417_628_884_315_490_7];
        assert_eq!(test_values::<f64>("in.x", 3), want);
        assert_eq!(test_values::<f32>("in.x", 3), want.map(|v| v as f32));
        let many: Vec<f32> = test_values("many", 10_000);
        assert!(many.iter().all(|v| (-1.0..1.0).contains(v)));
        let mean = many.iter().sum::<f32>() / 1e4;
        assert!(mean.abs() < 0.03, "mean {mean}");
        assert_ne!(test_values::<f32>("a", 4), test_values::<f32>("b", 4));
    }

    #[test]
    #[should_panic(expected = "conv2d: weight has 2 elements, its shape needs 3")]
    fn wrong_lengths_name_the_operand() {
        expect_len("conv2d", "weight", &[0f32; 2], 3);
    }
}
