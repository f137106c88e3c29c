// One element's part of the variational bound, in nats, and its derivatives
// (mathematics in vlb.rs). Wants p.predicts_x0 and p.clip. `a` and `b` are an
// image's coefficients: 1 at t = 0, sqrt(1/abar), sqrt(1/abar - 1), coef1 |
// coef2, 1/s, offset and slope of d.

struct Term {
    value: vec4<f32>,
    // Derivative by the predicted image.
    by_px0: vec4<f32>,
    // Derivative by the logarithm of the variance.
    by_d: vec4<f32>,
}

// exp(-w) - 1 + w = w^2/2 - w^3/6 + ... for small w, where it would cancel.
fn exp_rest(w: vec4<f32>) -> vec4<f32> {
    let tail = 1.0 - w / 4.0 * (1.0 - w / 5.0 * (1.0 - w / 6.0 * (1.0 - w / 7.0)));
    return 0.5 * w * w * (1.0 - w / 3.0 * tail);
}

fn small(w: vec4<f32>) -> vec4<bool> {
    return abs(w) < vec4<f32>(0.4);
}

// 1 - exp(-w), given e = exp(-w).
fn one_minus_exp(w: vec4<f32>, e: vec4<f32>) -> vec4<f32> {
    return select(1.0 - e, w - exp_rest(w), small(w));
}

fn softplus(v: vec4<f32>) -> vec4<f32> {
    return max(v, vec4<f32>(0.0)) + log(1.0 + exp(-abs(v)));
}

// The network's idea of the clean image, not yet clamped.
fn predict(a: vec4<f32>, x_t: vec4<f32>, out: vec4<f32>) -> vec4<f32> {
    if p.predicts_x0 != 0u {
        return out;
    }
    return a.y * x_t - a.z * out;
}

fn clamped(px0: vec4<f32>) -> vec4<f32> {
    if p.clip != 0u {
        return clamp(px0, vec4<f32>(-1.0), vec4<f32>(1.0));
    }
    return px0;
}

// t > 0: KL of the posterior from the model's step.
fn divergence(a: vec4<f32>, b: vec4<f32>, x0: vec4<f32>, px0: vec4<f32>, d: vec4<f32>) -> Term {
    let e = exp(-d);
    let weight = a.w * b.y;
    let r = weight * (x0 - px0);
    let rest = select(e - 1.0 + d, exp_rest(d), small(d));
    return Term(0.5 * (rest + e * r * r), -weight * e * r, 0.5 * (one_minus_exp(d, e) - e * r * r));
}

const SLOPE: f32 = 1.5957691216057308;      // sqrt(8 / pi)
const CUBE: f32 = 0.044715;
const FLOOR: f32 = -27.631021115928547;     // log(1e-12)

fn logit(u: vec4<f32>) -> vec4<f32> {
    return SLOPE * u * (1.0 + CUBE * u * u);
}

fn logit_slope(u: vec4<f32>) -> vec4<f32> {
    return SLOPE * (1.0 + 3.0 * CUBE * u * u);
}

// t = 0: minus the logarithm of the probability of the image's level. Ten
// standard deviations lie far past the floor.
fn level(a: vec4<f32>, b: vec4<f32>, x0: vec4<f32>, x_t: vec4<f32>, px0: vec4<f32>, d: vec4<f32>) -> Term {
    let zero = vec4<f32>(0.0);
    let far = vec4<f32>(10.0);
    let inverse = b.y * exp(-0.5 * d);
    let centred = x0 - (a.w * px0 + b.x * x_t);
    let upper = clamp(inverse * (centred + 1.0 / 255.0), -far, far);
    let lower = clamp(inverse * (centred - 1.0 / 255.0), -far, far);
    let width = min(inverse * (2.0 / 255.0), 2.0 * far);
    let squares = upper * upper + upper * lower + lower * lower;
    let w = SLOPE * width * (1.0 + CUBE * squares);
    let e = exp(-w);
    let between = one_minus_exp(w, e);

    // The lowest level has no lower edge, the highest no upper one.
    let has_lower = x0 >= vec4<f32>(-0.999);
    let has_upper = x0 <= vec4<f32>(0.999);
    let inner = has_lower & has_upper;
    let log_p = -select(zero, softplus(-logit(upper)), has_upper)
        - select(zero, softplus(logit(lower)), has_lower)
        + select(zero, log(between), inner);

    let at_upper = select(zero, sigmoid4(-logit(upper)) * logit_slope(upper), has_upper);
    let at_lower = select(zero, sigmoid4(logit(lower)) * logit_slope(lower), has_lower);
    let q = select(zero, SLOPE * width * e / between, inner);
    let by_centre = inverse * (at_upper - at_lower + q * 3.0 * CUBE * (upper + lower));
    let by_log_inverse = at_upper * upper - at_lower * lower + q * (1.0 + 3.0 * CUBE * squares);
    let kept = log_p >= vec4<f32>(FLOOR);
    return Term(
        -max(log_p, vec4<f32>(FLOOR)),
        select(zero, a.w * by_centre, kept),
        select(zero, 0.5 * by_log_inverse, kept),
    );
}

// The term at the image's timestep; `px0` is clamped if asked.
fn term(a: vec4<f32>, b: vec4<f32>, x0: vec4<f32>, x_t: vec4<f32>, px0: vec4<f32>, v: vec4<f32>) -> Term {
    let d = b.z + b.w * v;
    if a.x != 0.0 {
        return level(a, b, x0, x_t, px0, d);
    }
    return divergence(a, b, x0, px0, d);
}
