mod harness;
use demist::ops::{Conv2d, conv2d};
use harness::*;
#[test]
fn t() {
    for (n, h, w, ci, co, k, s) in [
        (3, 17, 13, 33, 5, 3, 1),
        (2, 8, 8, 32, 64, 3, 1),
        (1, 1, 1, 4, 4, 3, 1),
        (2, 8, 8, 16, 32, 3, 2),
        (2, 7, 5, 3, 32, 3, 2),
        (2, 6, 6, 32, 64, 1, 1),
    ] {
        Case {
            name: format!("conv {n} {h} {w} {ci} {co} {k} {s}"),
            inputs: vec![vec![n, h, w, ci]],
            integers: vec![],
            build: Box::new(move |g, x, _| {
                conv2d(
                    g,
                    x[0],
                    Conv2d { cout: co, kernel: k, stride: s, ..Conv2d::k3(co) },
                    None,
                    None,
                )
            }),
            tolerance: 1e-5,
            differentiable: true,
            twin: Box::new(move |a| {
                let pad = k / 2;
                let oh = (h + 2 * pad - k) / s + 1;
                let ow = (w + 2 * pad - k) / s + 1;
                let (x, wt, b) = (&a.inputs[0], &a.params[0], &a.params[1]);
                let mut y = vec![0f64; n * oh * ow * co];
                let mut dx = vec![0f64; x.len()];
                let mut dw = vec![0f64; wt.len()];
                let mut db = vec![0f64; co];
                for i in 0..n {
                    for oy in 0..oh {
                        for ox in 0..ow {
                            for o in 0..co {
                                let yi = ((i * oh + oy) * ow + ox) * co + o;
                                y[yi] += b[o] as f64;
                                let d = a.dy[yi] as f64;
                                db[o] += d;
                                for r in 0..k {
                                    for q in 0..k {
                                        let iy = (oy * s + r) as isize - pad as isize;
                                        let ix = (ox * s + q) as isize - pad as isize;
                                        if iy < 0 || ix < 0 || iy >= h as isize || ix >= w as isize
                                        {
                                            continue;
                                        }
                                        for c in 0..ci {
                                            let xi =
                                                ((i * h + iy as usize) * w + ix as usize) * ci + c;
                                            let wi = ((r * k + q) * ci + c) * co + o;
                                            y[yi] += x[xi] as f64 * wt[wi] as f64;
                                            dx[xi] += d * wt[wi] as f64;
                                            dw[wi] += d * x[xi] as f64;
                                        }
                                    }
                                }
                            }
                        }
                    }
                }
                let f = |v: Vec<f64>| v.into_iter().map(|v| v as f32).collect::<Vec<_>>();
                Twin { y: f(y), input_grads: vec![f(dx)], param_grads: vec![f(dw), f(db)] }
            }),
        }
        .check();
    }
}
