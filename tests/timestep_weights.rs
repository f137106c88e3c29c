//! Importance sampling of timesteps: its probabilities, that it changes no
//! expectation, and what a saved history may not be.

use demist::diffusion::LossSecondMoment;
use demist::diffusion::timestep_weights::{UNIFORM_SHARE, draw};

const STEPS: usize = 6;
const HISTORY: usize = 3;

/// A full history; the loss of timestep t is around (t + 1)^2.
fn warm() -> LossSecondMoment {
    let mut weights = LossSecondMoment::new(STEPS, HISTORY);
    for round in 0..HISTORY {
        for t in 0..STEPS {
            weights.update(t, ((t + 1) * (t + 1)) as f32 + 0.1 * round as f32);
        }
    }
    assert!(weights.warmed_up());
    weights
}

fn check_sum(p: &[f64]) {
    assert_eq!(p.len(), STEPS);
    let sum: f64 = p.iter().sum();
    assert!((sum - 1.0).abs() < 1e-12, "{p:?} add up to {sum}");
    let least = UNIFORM_SHARE / STEPS as f64;
    assert!(p.iter().all(|p| *p >= least), "{p:?}");
}

#[test]
fn probabilities_add_up_to_one_and_follow_the_losses() {
    let mut weights = LossSecondMoment::new(STEPS, HISTORY);
    for i in 0..HISTORY * STEPS - 1 {
        check_sum(&weights.probabilities());
        assert_eq!(weights.probabilities(), vec![1.0 / STEPS as f64; STEPS], "after {i} losses");
        weights.update(i % STEPS, 1.0 + i as f32);
        assert!(!weights.warmed_up());
    }
    let p = warm().probabilities();
    check_sum(&p);
    assert!(p.is_sorted() && p[0] > 0.0 && p[STEPS - 1] > 0.3, "{p:?}");
    let root = |t: usize| {
        let square = |round: usize| (((t + 1) * (t + 1)) as f64 + 0.1 * round as f64).powi(2);
        ((0..HISTORY).map(square).sum::<f64>() / HISTORY as f64).sqrt()
    };
    let sum: f64 = (0..STEPS).map(root).sum();
    for (t, p) in p.iter().enumerate() {
        let want = (1.0 - UNIFORM_SHARE) * root(t) / sum + UNIFORM_SHARE / STEPS as f64;
        assert!((p - want).abs() < 1e-7, "p({t}) is {p}, not {want}");
    }
}

#[test]
fn old_losses_are_forgotten_and_zeros_mean_nothing() {
    let mut weights = warm();
    for _ in 0..HISTORY {
        for t in 0..STEPS {
            weights.update(t, 2.0);
        }
    }
    let p = weights.probabilities();
    assert!(p.iter().all(|p| (p - 1.0 / STEPS as f64).abs() < 1e-12), "{p:?}");
    for _ in 0..HISTORY {
        (0..STEPS).for_each(|t| weights.update(t, 0.0));
    }
    assert_eq!(weights.probabilities(), vec![1.0 / STEPS as f64; STEPS]);
    // Only one timestep has a loss: the others are still drawn.
    weights.update(2, 5.0);
    let p = weights.probabilities();
    check_sum(&p);
    assert!(p[2] > 0.999, "{p:?}");
}

#[test]
fn a_loss_that_is_not_finite_is_ignored() {
    let mut weights = warm();
    let before = weights.clone();
    for loss in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        weights.update(3, loss);
    }
    assert_eq!(weights, before);
    let mut cold = LossSecondMoment::new(1, 1);
    cold.update(0, f32::NAN);
    assert!(!cold.warmed_up());
    // The largest losses there are.
    for t in 0..STEPS {
        weights.update(t, f32::MAX);
    }
    check_sum(&weights.probabilities());
}

/// Drawn by evenly spread numbers, any function of the timestep has the mean
/// that it has over all timesteps alike.
#[test]
fn importance_weights_keep_the_expectation() {
    const DRAWS: usize = 600_000;
    let p = warm().probabilities();
    let f = |t: usize| (1.7 * t as f64).sin() + 2.0;
    let (mut sum, mut weights, mut counts) = (0.0, 0.0, [0usize; STEPS]);
    for i in 0..DRAWS {
        let (t, weight) = draw(&p, (i as f64 + 0.5) / DRAWS as f64);
        sum += weight * f(t);
        weights += weight;
        counts[t] += 1;
    }
    let (n, want) = (DRAWS as f64, (0..STEPS).map(f).sum::<f64>() / STEPS as f64);
    assert!((sum / n - want).abs() < 1e-3, "{} instead of {want}", sum / n);
    assert!((weights / n - 1.0).abs() < 1e-3, "the weights have mean {}", weights / n);
    for (count, p) in counts.iter().zip(&p) {
        assert!((*count as f64 / n - p).abs() < 1e-5, "{count} draws at probability {p}");
    }
}

#[test]
fn the_ends_of_the_unit_interval_draw_the_ends() {
    let p = [0.0, 0.25, 0.5, 0.25];
    // Nothing is drawn at probability zero, not even by zero.
    assert_eq!(draw(&p, 0.0), (1, 1.0));
    assert_eq!(draw(&p, 0.25), (2, 0.5));
    assert_eq!(draw(&p, 1.0 - f64::EPSILON), (3, 1.0));
    assert_eq!(draw(&p, 1.0), (3, 1.0));
    // Probabilities that rounding left short of one.
    let short = [0.5, 0.5 - 1e-9];
    assert_eq!(draw(&short, 1.0 - 1e-12).0, 1);
    assert_eq!(draw(&[1.0], 0.7), (0, 1.0));
}

#[test]
fn a_state_makes_the_same_history() {
    for weights in [LossSecondMoment::new(STEPS, HISTORY), warm()] {
        let (losses, counts) = weights.state();
        assert_eq!((losses.len(), counts.len()), (STEPS * HISTORY, STEPS));
        let mut again = LossSecondMoment::from_state(STEPS, losses.to_vec(), &counts).unwrap();
        assert_eq!(again, weights);
        let mut weights = weights;
        // Also in what is forgotten next.
        for s in [&mut weights, &mut again] {
            s.update(1, 7.0);
        }
        assert_eq!(again, weights);
    }
}

#[test]
fn a_damaged_state_is_an_error() {
    let weights = warm();
    let (losses, counts) = weights.state();
    let refused = |steps: usize, losses: Vec<f32>, counts: &[f32]| {
        let error = LossSecondMoment::from_state(steps, losses, counts).unwrap_err().to_string();
        assert!(error.contains("timesteps"), "{error}");
    };
    let losses = losses.to_vec();
    refused(STEPS + 1, losses.clone(), &counts);
    refused(0, losses.clone(), &counts);
    refused(0, vec![], &[]);
    refused(STEPS, vec![], &counts);
    refused(STEPS, losses[1..].to_vec(), &counts);
    refused(STEPS, losses.clone(), &counts[1..]);
    for count in [-1.0, 0.5, HISTORY as f32 + 1.0, f32::NAN, f32::INFINITY, 1e30] {
        let mut counts = counts.clone();
        counts[2] = count;
        refused(STEPS, losses.clone(), &counts);
    }
    // One of these would make all probabilities NaN.
    for loss in [f32::NAN, f32::INFINITY] {
        let mut losses = losses.clone();
        losses[4] = loss;
        refused(STEPS, losses, &counts);
    }
}
