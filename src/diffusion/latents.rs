//! Latents: the noise that deterministic DDIM turns into images, one to one.

/// Along the great circle from `a` to `b` (Shoemake 1985), from `u` = 0 to `u` = 1. Latents
/// between two are as long as they are, which a straight line would not keep.
pub fn slerp(a: &[f32], b: &[f32], u: f64) -> Vec<f32> {
    let dot = |x: &[f32], y: &[f32]| -> f64 {
        x.iter().zip(y).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum()
    };
    let cosine = dot(a, b) / (dot(a, a) * dot(b, b)).sqrt().max(1e-12);
    let angle = cosine.clamp(-1.0, 1.0).acos();
    let (wa, wb) = if angle.sin().abs() < 1e-6 {
        (1.0 - u, u)
    } else {
        (((1.0 - u) * angle).sin() / angle.sin(), (u * angle).sin() / angle.sin())
    };
    a.iter().zip(b).map(|(x, y)| (wa * f64::from(*x) + wb * f64::from(*y)) as f32).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slerp_ends_where_it_should_and_keeps_the_length() {
        let (a, b) = ([3.0, 0.0, 4.0], [0.0, 5.0, 0.0]);
        assert_eq!(slerp(&a, &b, 0.0), a);
        let end = slerp(&a, &b, 1.0);
        assert!(end.iter().zip(b).all(|(x, y)| (x - y).abs() < 1e-5), "{end:?}");
        let middle = slerp(&a, &b, 0.5);
        let length: f64 = middle.iter().map(|v| f64::from(*v).powi(2)).sum();
        assert!((length - 25.0).abs() < 1e-4);
        // The same point twice has no angle between.
        assert_eq!(slerp(&a, &a, 0.3), a);
    }
}
