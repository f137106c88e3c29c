//! Running sums of a loss's terms against their CPU twin, over several runs.

mod harness;

use demist::engine::graph::{DType, Graph, Lower, ParamLayout, Plan, PlanOptions};
use demist::engine::ops::{LOSS_STATS, loss_stats};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Program};
use demist::reference::loss_stats as twin;
use harness::{device, rel_err, values};

fn check(n: usize, weighted: bool) {
    let (gpu, pipelines) = device();
    let mut graph = Graph::new();
    let term = graph.input("term", &[n], DType::F32);
    let weights = weighted.then(|| graph.input("weights", &[n], DType::F32));
    let quartile = graph.input("quartile", &[n], DType::U32);
    let mut lower = Lower::new(&graph, &gpu.caps);
    let sums = lower.pinned("sums", &[LOSS_STATS], DType::F32);
    loss_stats(&mut lower, term, weights, quartile, sums).unwrap();
    let plan = Plan::new(&graph, lower, &[sums], PlanOptions::default()).unwrap();
    let flat = FlatBuffers::new(gpu, &ParamLayout::new(&[], 1024), &[]).unwrap();
    let options = CompileOptions { poison: true, ..Default::default() };
    let program = Program::compile(Context { gpu, pipelines }, plan, &flat, options).unwrap();

    let mut want = [0.5, 0.0, -1.0, 0.0, 2.0];
    program.write(gpu, sums, &want).unwrap();
    for round in 0..3 {
        let (terms, w) = (values(round, n), values(round + 9, n));
        // The last quarter stays empty in the first round, and 4 is none.
        let quarters: Vec<u32> = (0..n as u32).map(|i| (i * 7 + round) % (3 + round)).collect();
        program.write(gpu, term, &terms).unwrap();
        program.write(gpu, quartile, &quarters).unwrap();
        if let Some(id) = weights {
            program.write(gpu, id, &w).unwrap();
        }
        program.run(gpu).unwrap();
        twin::forward(&terms, weighted.then_some(&w), &quarters, &mut want);
        let got = program.read(gpu, &[sums]).unwrap().remove(0);
        let e = rel_err(&got, &want);
        // Seen on llvmpipe: 5e-7.
        assert!(e < 2e-6, "{n} terms, weighted {weighted}, round {round}: {e:.2e}");
        if round == 0 {
            assert_eq!(got[4], 2.0);
        }
    }
}

#[test]
fn matches_its_twin() {
    for n in [1, 5, 64, 200, 3000] {
        for weighted in [false, true] {
            check(n, weighted);
        }
    }
}

#[test]
fn impossible_operands_are_errors() {
    let (gpu, _) = device();
    let mut graph = Graph::new();
    let term = graph.input("term", &[8], DType::F32);
    let quartile = graph.input("quartile", &[8], DType::U32);
    let few = graph.input("few", &[7], DType::F32);
    let square = graph.input("square", &[2, 4], DType::F32);
    let mut lower = Lower::new(&graph, &gpu.caps);
    let sums = lower.pinned("sums", &[LOSS_STATS], DType::F32);
    assert!(loss_stats(&mut lower, term, None, quartile, sums).is_ok());
    assert!(loss_stats(&mut lower, term, Some(few), quartile, sums).is_err());
    assert!(loss_stats(&mut lower, few, None, quartile, sums).is_err());
    assert!(loss_stats(&mut lower, square, None, square, sums).is_err());
    assert!(loss_stats(&mut lower, term, None, quartile, few).is_err());
}
