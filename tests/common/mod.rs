//! Shared by the integration tests: the hash that weights and inputs of the
//! golden vectors are rebuilt from, layout conversions, and error measures.

// Each test binary includes this module and uses its own part of it.
#![allow(dead_code)]

pub mod golden;

/// `n` pseudo-random values in [-1, 1) that depend on `name` alone, exact in
/// float32. Element i hashes `fnv1a32(name) + i * 0x9E3779B9` with a PCG step.
pub fn hash_u(name: &str, n: usize) -> Vec<f32> {
    let seed = name
        .bytes()
        .fold(0x811c_9dc5_u32, |h, byte| (h ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (0..n as u32).map(|i| hash_one(seed.wrapping_add(i.wrapping_mul(0x9E37_79B9)))).collect()
}

fn hash_one(x: u32) -> f32 {
    let a = x.wrapping_mul(747_796_405).wrapping_add(2_891_336_453);
    let w = ((a >> ((a >> 28) + 4)) ^ a).wrapping_mul(277_803_737);
    let v = (w >> 22) ^ w;
    (v >> 8) as f32 * (1.0 / (1 << 23) as f32) - 1.0
}

/// The golden vectors' value of parameter `key`, in the file's own layout
/// (OIHW for convolutions, OI for linear layers).
pub fn weight(salt: &str, key: &str, shape: &[usize]) -> Vec<f32> {
    let count = shape.iter().product();
    let mut values = hash_u(&format!("{salt}{key}"), count);
    let unscaled = ["label_emb.weight", "positional_embedding"];
    if unscaled.iter().any(|name| key.ends_with(name)) {
        return values;
    }
    let (offset, scale) = if shape.len() >= 2 {
        let fan_in = (count / shape[0]) as f64;
        (0.0, (1.5 / fan_in).sqrt() as f32)
    } else if key.ends_with(".weight") {
        (1.0, 0.25)
    } else {
        (0.0, 0.1)
    };
    values.iter_mut().for_each(|u| *u = offset + scale * *u);
    values
}

/// `scale * u(salt + name)`: the network inputs of the golden vectors.
pub fn input(salt: &str, name: &str, scale: f32, n: usize) -> Vec<f32> {
    hash_u(&format!("{salt}{name}"), n).into_iter().map(|u| scale * u).collect()
}

/// Noise of the golden vectors: uniform with variance 1.
pub fn input_noise(salt: &str, name: &str, n: usize) -> Vec<f32> {
    input(salt, name, 3.0_f32.sqrt(), n)
}

/// An image of the golden vectors: rounded to the 256 levels of a byte.
pub fn input_image(salt: &str, name: &str, n: usize) -> Vec<f32> {
    let level = |u: f32| (u * 127.5 + 127.5).round_ties_even();
    input(salt, name, 1.0, n).into_iter().map(|u| level(u) / 127.5 - 1.0).collect()
}

/// Reorders the axes of a row-major tensor: axis `k` of the result is axis
/// `axes[k]` of `values`.
pub fn permute<T: Copy>(values: &[T], shape: &[usize], axes: &[usize]) -> Vec<T> {
    assert_eq!(values.len(), shape.iter().product::<usize>(), "{shape:?}");
    assert_eq!(shape.len(), axes.len(), "one entry per axis");
    let stride_of = |axis: usize| shape[axis + 1..].iter().product::<usize>();
    let mut out = Vec::with_capacity(values.len());
    for flat in 0..values.len() {
        let (mut rest, mut source) = (flat, 0);
        for &axis in axes.iter().rev() {
            source += rest % shape[axis] * stride_of(axis);
            rest /= shape[axis];
        }
        out.push(values[source]);
    }
    out
}

/// Reference layout [n, c, h, w] to the device's [n, h, w, c].
pub fn nchw_to_nhwc(values: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    permute(values, &[n, c, h, w], &[0, 2, 3, 1])
}

/// Device layout [n, h, w, c] to the reference's [n, c, h, w]; the shape is
/// given as NCHW.
pub fn nhwc_to_nchw(values: &[f32], [n, c, h, w]: [usize; 4]) -> Vec<f32> {
    permute(values, &[n, h, w, c], &[0, 3, 1, 2])
}

/// A parameter in the file's layout to the device's: OIHW to
/// [kh][kw][cin][cout], OI (and 1x1 Conv1d OI1) to [in][out], rank 1 as it is.
/// Embedding tables ([classes][channels]) are looked up by row and are not
/// for this function.
pub fn param_to_device(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [o, i, h, w] => permute(values, &[o, i, h, w], &[2, 3, 1, 0]),
        [o, i] | [o, i, 1] => permute(values, &[o, i], &[1, 0]),
        _ => values.to_vec(),
    }
}

/// The way back from [`param_to_device`]; `shape` is again the file's.
pub fn param_from_device(values: &[f32], shape: &[usize]) -> Vec<f32> {
    match *shape {
        [o, i, h, w] => permute(values, &[h, w, i, o], &[3, 2, 0, 1]),
        [o, i] | [o, i, 1] => permute(values, &[i, o], &[1, 0]),
        _ => values.to_vec(),
    }
}

/// `|a - b| / |b|` in the l2 norm (`|a|` where b is all zero). Different
/// lengths or a NaN give infinity, so that no comparison lets them pass.
pub fn rel_err<A: Copy + Into<f64>, B: Copy + Into<f64>>(a: &[A], b: &[B]) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    let norm = |squares: f64| squares.sqrt();
    let difference =
        norm(a.iter().zip(b).map(|(&a, &b)| (a.into() - b.into()).powi(2)).sum::<f64>());
    let scale = norm(b.iter().map(|&b| b.into().powi(2)).sum::<f64>());
    let error = if scale > 0.0 { difference / scale } else { difference };
    if error.is_nan() { f64::INFINITY } else { error }
}

/// The largest `|a - b| / max(|b|, floor)` over the elements; infinity for
/// different lengths or a NaN.
pub fn max_rel_err(a: &[f64], b: &[f64], floor: f64) -> f64 {
    if a.len() != b.len() {
        return f64::INFINITY;
    }
    a.iter().zip(b).fold(0.0, |worst: f64, (a, b)| {
        let error = (a - b).abs() / b.abs().max(floor);
        if error.is_nan() { f64::INFINITY } else { worst.max(error) }
    })
}

/// Every `(n / limit)`-th element, or all when there are no more than `limit`:
/// how large tensors are thinned out in the golden files.
pub fn strided<T: Copy>(values: &[T], limit: usize) -> Vec<T> {
    let stride = (values.len() / limit).max(1);
    values.iter().copied().step_by(stride).collect()
}
