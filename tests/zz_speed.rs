mod harness;
use demist::graph::*;
use demist::ops::{Conv2d, conv2d};
use demist::runtime::*;
use harness::*;
#[test]
fn t() {
    let (gpu, pipes) = device();
    println!("{}", gpu.summary);
    for (n, h, c, co) in [(4, 32, 64, 64), (4, 16, 128, 128), (16, 16, 32, 32), (16, 8, 64, 64)] {
        let mut g = Graph::new();
        let x = g.input("x", &[n, h, h, c], DType::F32);
        let y = conv2d(&mut g, x, Conv2d::k3(co), None, None).unwrap();
        let s = g.input("s", &[n, h, h, co], DType::F32);
        let fl = 2.0 * (n * h * h * c * co * 9) as f64;
        for which in 0..4 {
            let mut lower = Lower::new(&g, &gpu.caps);
            lower.forward().unwrap();
            let mut keep = vec![y];
            if which > 0 {
                lower
                    .backward(&[(y, s)], if which > 1 { &[] } else { std::slice::from_ref(&x) })
                    .unwrap();
                if which == 1 {
                    keep = vec![lower.grad(x).unwrap()];
                } else {
                    keep.clear()
                }
            }
            let plan = Plan::new(&g, lower, &keep, PlanOptions::default()).unwrap();
            let plan = if which == 1 {
                let mut p = plan;
                p.dispatches.retain(|d| d.kernel.name == "conv2d_dx");
                p
            } else if which == 2 {
                let mut p = plan;
                p.dispatches.retain(|d| d.kernel.name == "conv2d_dw");
                p
            } else if which == 3 {
                let mut p = plan;
                p.dispatches.retain(|d| d.kernel.name == "sum_splits");
                p
            } else {
                plan
            };
            let layout = ParamLayout::new(&g.params, gpu.caps.max_binding);
            let flat =
                FlatBuffers::new(gpu, &layout, &[FlatKind::Weights, FlatKind::Grads]).unwrap();
            let names: Vec<_> = plan
                .dispatches
                .iter()
                .map(|d| format!("{}{:?}x{}", d.kernel.name, d.defines, d.groups))
                .collect();
            let t0 = std::time::Instant::now();
            let prog = Program::compile(gpu, pipes, plan, &flat, Default::default()).unwrap();
            prog.run(gpu).unwrap();
            gpu.wait().unwrap();
            let first = t0.elapsed();
            let mut ts = vec![];
            for _ in 0..10 {
                let t = std::time::Instant::now();
                prog.run(gpu).unwrap();
                gpu.wait().unwrap();
                ts.push(t.elapsed().as_secs_f64());
            }
            ts.sort_by(f64::total_cmp);
            println!(
                "{n}x{h}x{h} {c}->{co} {names:?}: median {:.2} ms min {:.2} {:.2} GFLOP/s (first {:.2}s)",
                ts[5] * 1e3,
                ts[0] * 1e3,
                fl / ts[5] / 1e9,
                first.as_secs_f64()
            );
        }
    }
}
