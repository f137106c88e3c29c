//! Twin of the dynamic loss scale: the factor and how its logarithm moves.

/// 2^floor(lg), for lg within -64 to 64.
pub fn forward(lg: f64) -> f64 {
    lg.clamp(-64.0, 64.0).floor().exp2()
}

/// lg after a step whose gradients were `finite` or not.
pub fn step(lg: f64, growth: f64, finite: bool) -> f64 {
    (lg + if finite { growth } else { -1.0 }).clamp(-64.0, 64.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scale_by_hand() {
        assert_eq!(forward(20.0), 1048576.0);
        assert_eq!(forward(20.999), 1048576.0);
        assert_eq!(forward(-0.5), 0.5);
        assert_eq!(forward(1000.0), forward(64.0));
        assert_eq!(step(20.0, 0.25, true), 20.25);
        assert_eq!(step(20.25, 0.25, false), 19.25);
        assert_eq!(step(-64.0, 0.25, false), -64.0);
    }
}
