//! What is measured, not how fast it is: workloads, forced variants, reports,
//! ceilings, profiles, and the commands around them.

mod harness;

#[path = "cli/support.rs"]
mod support;

use demist::engine::bench::{
    Bound, Case, CaseResult, Ceilings, Direction, Effort, Limit, Profile, Report, Standing,
    TimeKind, Variant, WORKLOADS, Work, Workload, bind, chrome_trace, compare, measure,
    split_label, variants,
};
use demist::engine::caps::Caps;
use demist::engine::gpu::Gpu;
use demist::engine::graph::{CHOICES, Graph, Lower, Plan, PlanOptions, Tuning, Why, bucket};
use demist::engine::ops::{Conv2d, conv2d};
use demist::engine::runtime::{Clock, Context, Pipelines};
use demist::model::ModelConfig;
use harness::{device, rel_err};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use support::Place;

fn workload(id: &str) -> &'static Workload {
    WORKLOADS.iter().find(|w| w.id == id).unwrap()
}

fn caps(software: bool) -> Caps {
    Caps { software, max_binding: 1 << 40, max_buffer: 1 << 40, ..Caps::default() }
}

fn context() -> Context<'static> {
    let (gpu, pipelines) = device();
    Context { gpu, pipelines }
}

/// The device with timestamps, where it has them.
fn timed_device() -> Context<'static> {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    let (gpu, pipelines) = DEVICE.get_or_init(|| {
        let selector = std::env::var("DEMIST_DEVICE").ok();
        (Gpu::open_for_measuring(selector.as_deref()).unwrap(), Pipelines::new())
    });
    Context { gpu, pipelines }
}

/// As little as measures anything.
fn least() -> Effort {
    Effort { budget: Duration::from_micros(1), time: TimeKind::Elapsed }
}

// --- workloads ---------------------------------------------------------------

#[test]
fn all_workloads_plan_without_a_device() {
    for w in &WORKLOADS {
        for (direction, half, software) in w
            .directions
            .iter()
            .flat_map(|d| [(d, false, true), (d, false, false), (d, true, false)])
        {
            let case = w.case(*direction, half).unwrap();
            let planned = case.plan(&caps(software), &[]).unwrap();
            let what = format!("{} {direction} {half} {software}", w.id);
            let report = planned.plan.report();
            assert!(report.flops > 0 && report.dispatches > 0, "{what}");
            assert!(!planned.results.is_empty(), "{what}");
            assert!(case.bytes(&planned.plan) > report.slots, "{what}");
            let updates = planned.plan.dispatches.iter().any(|d| d.kernel.name == "adamw");
            assert_eq!(updates, *direction == Direction::Step, "{what}");
            for c in &planned.plan.choices {
                assert!(CHOICES.contains(&c.op), "{what}: {}", c.op);
                let names: BTreeSet<_> = c.candidates.iter().collect();
                assert_eq!(names.len(), c.candidates.len(), "{what}: {c:?}");
                assert_eq!((c.chosen, c.why), (c.rule, Why::Rule), "{what}: {c:?}");
            }
        }
    }
}

/// Counted by other systems that measured the same workloads.
#[test]
fn workloads_are_what_other_systems_measure() {
    for (id, parameters, gflop) in [
        ("W1", 36_928, 0.302),
        ("W2", 147_584, 0.302),
        ("W5", 1_372_614, 2.54),
        ("W6", 1_372_614, 3.0 * 2.54),
        ("W7", 7_994_182, 14.6),
    ] {
        let w = workload(id);
        let case = w.case(w.directions[0], false).unwrap();
        assert_eq!(case.parameters(), parameters, "{id}");
        let planned = case.plan(&caps(false), &[]).unwrap();
        let counted = planned.plan.report().flops as f64 / 1e9;
        assert!((counted / gflop - 1.0).abs() < 0.06, "{id}: {counted} GFLOP, not {gflop}");
    }
}

#[test]
fn a_classifier_runs_forward_but_takes_no_such_training_step() {
    let model = demist::model::model_preset("64x64_classifier").unwrap();
    assert!(matches!(model, ModelConfig::Encoder(_)));
    let case = Case::network(&model, 1, Direction::Forward, false).unwrap();
    assert!(case.plan(&caps(false), &[]).unwrap().plan.report().flops > 0);
    assert!(Case::network(&model, 1, Direction::Step, false).is_err());
}

// --- choices -----------------------------------------------------------------

fn planned(describe: impl FnOnce(&mut Lower)) -> demist::Result<Plan> {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 8, 8, 16], demist::engine::graph::DType::F32);
    let y = conv2d(&mut g, x, Conv2d::k3(32), None, None).unwrap();
    let mut lower = Lower::new(&g, &caps(true));
    lower.force("conv3x3", "direct");
    describe(&mut lower);
    lower.forward(&g)?;
    Plan::new(&g, lower, &[y], PlanOptions::default())
}

fn tile(plan: &Plan) -> [i64; 2] {
    let d = &plan.dispatches[0];
    ["TM", "TN"].map(|name| d.kernel.define(&d.defines, name))
}

#[test]
fn forced_comes_before_tuned_before_the_rule() {
    let key = [bucket(2 * 8 * 8), 16, 32, 3, 1, 32];
    let mut tuning = Tuning::default();
    tuning.set("conv2d", &key, "tile4x8");
    let table = Arc::new(tuning.clone());

    let plan = planned(|_| ()).unwrap();
    assert_eq!((tile(&plan), plan.choices[1].why), ([4, 4], Why::Rule));
    assert_eq!(plan.choices[1].shape, key);

    let plan = planned(|l| l.tune(table.clone())).unwrap();
    assert_eq!((tile(&plan), plan.choices[1].why), ([4, 8], Why::Tuned));

    let plan = planned(|l| {
        l.tune(table.clone());
        l.force("conv2d", "tile16x8");
    })
    .unwrap();
    assert_eq!((tile(&plan), plan.choices[1].why), ([16, 8], Why::Forced));
    assert_eq!(plan.choices[1].name(), "tile16x8");

    // What a table has for other shapes, or of variants that are gone, is ignored.
    tuning.set("conv2d", &key, "tile3x5");
    tuning.set("conv2d", &[1], "tile8x8");
    let plan = planned(|l| l.tune(Arc::new(tuning.clone()))).unwrap();
    assert_eq!((tile(&plan), plan.choices[1].why), ([4, 4], Why::Rule));
    let text = serde_json::to_string(&tuning).unwrap();
    assert_eq!(serde_json::from_str::<Tuning>(&text).unwrap(), tuning);
    assert_eq!((tuning.len(), tuning.get("conv2d", &[1])), (2, Some("tile8x8")));
}

#[test]
fn forcing_what_does_not_exist_is_an_error_that_lists_what_does() {
    let refused = |op: &str, name: &str| {
        let error = planned(|l| l.force(op, name)).unwrap_err();
        assert!(matches!(error, demist::Error::Config(_)), "{error:?}");
        error.to_string()
    };
    let text = refused("conv2d", "tile5x5");
    for word in ["conv2d", "tile5x5", "tile16x8", "tile8x8", "tile4x8", "tile4x4"] {
        assert!(text.contains(word), "{text}");
    }
    let text = refused("conv", "tile4x4");
    assert!(CHOICES.iter().all(|op| text.contains(op)), "{text}");
    // A plan without the op has nothing to say about it.
    assert!(planned(|l| l.force("attention", "rows1x1")).is_ok());
}

#[test]
fn variants_are_named_in_full_or_by_candidate() {
    let case = workload("W1").case(Direction::Backward, false).unwrap();
    let plan = case.plan(&caps(true), &[]).unwrap().plan;
    let of = |text: &str| Variant::parse(text, &plan).map(|v| v.name());
    assert_eq!(of("conv2d=tile8x8").unwrap(), "conv2d=tile8x8");
    assert_eq!(of("tile16x4").unwrap(), "conv2d_dw=tile16x4");
    let all = of("tile4x4").unwrap();
    for op in ["conv2d", "gemm", "conv2d_dw", "conv2d_dx", "gemm_dx"] {
        assert!(all.split(',').any(|v| v == format!("{op}=tile4x4")), "{all}");
    }
    let text = of("conv2d=tile16x4").unwrap_err().to_string();
    assert!(text.contains("tile16x4") && text.contains("conv2d=tile16x8"), "{text}");
    let others: Vec<String> = Variant::others(&plan).iter().map(Variant::name).collect();
    // The filters and the tiles of their products run anyway; the direct sum's do not.
    assert_eq!(others.len(), variants(&plan).len() - 6, "{others:?}");
    assert!(!others.contains(&"conv3x3=winograd4".to_owned()), "{others:?}");
    assert!(others.contains(&"conv2d=tile16x8".to_owned()), "{others:?}");
}

fn results(case: &Case, variant: &Variant) -> Vec<Vec<f32>> {
    let ctx = context();
    let planned = variant.plan(case, &ctx.gpu.caps).unwrap();
    let prepared = case.prepare(ctx, planned).unwrap();
    prepared.run(ctx.gpu).unwrap();
    prepared.results(ctx.gpu).unwrap()
}

/// Compares every candidate of an op with what is taken by default.
fn candidates_agree(id: &str, shape: [usize; 4], at_least: usize) {
    let case = workload(id).case_on(shape, Direction::Backward, false).unwrap().unwrap();
    let plan = case.plan(&context().gpu.caps, &[]).unwrap().plan;
    let wanted = results(&case, &Variant::default());
    assert!(wanted.iter().all(|v| v.iter().any(|x| *x != 0.0)), "{id}: a result is zero");
    let others = Variant::others(&plan);
    assert!(others.len() >= at_least, "{id}: only {} variants", others.len());
    for variant in others {
        for (i, (got, want)) in results(&case, &variant).iter().zip(&wanted).enumerate() {
            let e = rel_err(got, want);
            assert!(e < 1e-5, "{id} {}: result {i} differs by {e:.1e}", variant.name());
        }
    }
}

#[test]
fn every_candidate_of_a_convolution_agrees() {
    candidates_agree("W1", [1, 9, 7, 64], 11);
    candidates_agree("W2", [1, 5, 6, 128], 11);
}

#[test]
fn every_candidate_of_a_group_norm_agrees() {
    candidates_agree("W3", [2, 32, 33, 128], 10);
}

#[test]
fn every_candidate_of_attention_agrees() {
    candidates_agree("W4", [1, 5, 7, 3 * 128], 12);
    // Heads that are streamed in slices.
    candidates_agree("W4", [1, 5, 7, 3 * 4 * 48], 3);
    candidates_agree("W4", [1, 5, 7, 3 * 4 * 80], 3);
}

// --- ceilings and percent ----------------------------------------------------

fn ceilings() -> Ceilings {
    Ceilings {
        fma_gflops: 100.0,
        fma_f16_gflops: None,
        coop_gflops: Some(400.0),
        copy_gbs: 10.0,
        storage_gloads: 1.0,
        workgroup_gloads: 0.5,
        dispatch_us: 100.0,
    }
}

#[test]
fn the_binding_ceiling_by_hand() {
    let coop_flops = 0;
    let of =
        |flops, bytes, dispatches| bind(Work { flops, coop_flops, bytes, dispatches }, &ceilings());
    let close = |b: Bound, limit, ms: f64| b.limit == limit && (b.ms - ms).abs() < 1e-9;
    // 2 GFLOP at 100 GFLOP/s are 20 ms; 50 MB at 10 GB/s are 5; 3 launches 0.3.
    assert!(close(of(2_000_000_000, 50_000_000, 3), Limit::Arithmetic, 20.0));
    assert!(close(of(200_000_000, 50_000_000, 3), Limit::Memory, 5.0));
    assert!(close(of(200_000_000, 50_000_000, 70), Limit::Launches, 7.0));
    // 1.2 of 2 GFLOP on matrices, at 400 GFLOP/s, take 3 ms; the others 8.
    let (flops, coop_flops) = (2_000_000_000, 1_200_000_000);
    let work = Work { flops, coop_flops, ..Work::default() };
    assert!(close(bind(work, &ceilings()), Limit::Arithmetic, 11.0));
}

#[test]
fn ceilings_are_positive_and_finite() {
    let ctx = timed_device();
    let c = Ceilings::measure(ctx, least()).unwrap();
    assert_eq!(c.fma_f16_gflops.is_some(), ctx.gpu.has_f16());
    assert_eq!(c.coop_gflops.is_some(), ctx.gpu.caps.coop.is_some());
    let optional = [c.fma_f16_gflops, c.coop_gflops].into_iter().flatten();
    let always = [c.fma_gflops, c.copy_gbs, c.storage_gloads, c.workgroup_gloads, c.dispatch_us];
    for rate in always.into_iter().chain(optional) {
        assert!(rate.is_finite() && rate > 0.0, "{c:?}");
    }
}

#[test]
fn measuring_counts_its_runs() {
    let mut runs = 0;
    let timing = measure(context().gpu, least(), || {
        runs += 1;
        Ok(())
    })
    .unwrap();
    assert!(timing.rounds >= 1 && timing.min_ms <= timing.median_ms, "{timing:?}");
    let warm_up = runs - timing.rounds * timing.queued;
    assert!((1..=2).contains(&warm_up), "{runs} runs, {timing:?}");
    let failing = measure(context().gpu, least(), || Err(demist::Error::Interrupted));
    assert!(failing.is_err());
}

// --- reports -----------------------------------------------------------------

fn result(workload: &str, variant: &str, median_ms: f64) -> CaseResult {
    CaseResult {
        workload: workload.into(),
        op: "conv2d".into(),
        direction: Direction::Backward,
        half: false,
        variant: variant.into(),
        chosen: "conv2d=tile8x8".into(),
        chosen_by: Why::Tuned,
        shape: vec![4, 32, 32, 64],
        median_ms,
        min_ms: 0.75 * median_ms,
        rounds: 7,
        gflop: 0.5,
        gflops: 500.0 / median_ms,
        standing: Some(Standing {
            gbs: 1.25,
            percent: 33.0,
            bound_by: Limit::Memory,
            dispatches: 4,
        }),
        shares: Vec::new(),
    }
}

fn report(cases: Vec<CaseResult>) -> Report {
    let gpu = context().gpu;
    Report { cases, ..Report::new(&gpu.summary, TimeKind::Elapsed, ceilings()) }
}

#[test]
fn a_report_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("report.json");
    let written = report(vec![result("W1", "default", 2.0), result("W1", "conv2d=tile4x4", 3.0)]);
    written.write(&path).unwrap();
    assert_eq!(Report::read(&path).unwrap(), written);
    let json: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let case = &json["cases"][0];
    for (key, value) in [("direction", "backward"), ("chosen_by", "tuned"), ("bound_by", "memory")]
    {
        assert_eq!(case[key], value, "{case}");
    }
    let date = json["date"].as_str().unwrap();
    assert!(date.len() == 20 && date.ends_with('Z') && date >= "2024", "{date}");

    std::fs::write(&path, "{\"version\": 1}").unwrap();
    let text = Report::read(&path).unwrap_err().to_string();
    assert!(text.contains("report.json") && text.contains("no report"), "{text}");
}

#[test]
fn reports_are_compared_case_by_case() {
    let a = report(vec![result("W1", "default", 2.0), result("W2", "default", 5.0)]);
    let b = report(vec![result("W1", "default", 3.0), result("W1", "conv2d=tile4x4", 4.0)]);
    let rows = compare(&a, &b);
    let found: Vec<_> = rows.iter().map(|r| (r.name.as_str(), r.a_ms, r.b_ms, r.ratio())).collect();
    let name = |w: &str| format!("{w} conv2d forward and backward");
    assert_eq!(
        found,
        [
            (name("W1").as_str(), Some(2.0), Some(3.0), Some(1.5)),
            (name("W2").as_str(), Some(5.0), None, None),
            (format!("{} conv2d=tile4x4", name("W1")).as_str(), None, Some(4.0), None),
        ]
    );
}

/// What `benches/compare` wrote about PyTorch on all workloads but the large ones.
const PYTORCH: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/bench_pytorch.json");

#[test]
fn reports_of_another_system_have_the_same_cases() {
    let theirs = Report::read(Path::new(PYTORCH)).unwrap();
    assert_eq!((theirs.program.as_str(), theirs.ceilings), ("PyTorch", None));
    assert!(theirs.driver.starts_with("torch "), "{}", theirs.driver);
    let light = WORKLOADS.iter().filter(|w| !w.heavy);
    let ours: Vec<_> = light.flat_map(|w| w.directions.iter().map(move |d| (w, *d))).collect();
    assert_eq!(theirs.cases.len(), ours.len());
    for (case, (workload, direction)) in theirs.cases.iter().zip(&ours) {
        let own = workload.case(*direction, false).unwrap();
        let name = case.name();
        assert_eq!(name, format!("{} {} {direction}", workload.id, workload.op));
        assert_eq!((&case.shape, case.standing), (&own.shape, None), "{name}");
    }

    let place = Place::new();
    report(vec![result("W1", "default", 2.0)]).write(&place.path("own.json")).unwrap();
    let args = ["bench", "--compare", PYTORCH, "own.json"];
    let out = place.run(&args).expect_success().stdout;
    let ratio = format!("{:.3}", 2.0 / theirs.cases[1].median_ms);
    let row = out.lines().find(|l| l.starts_with("W1 conv2d forward and backward")).unwrap();
    assert!(row.ends_with(&ratio), "{row}");
    assert!(out.contains("PyTorch 2.") && out.contains("demist 0."), "{out}");
}

/// The counts by which `benches/compare` makes GFLOP/s of another system's times. Ours
/// depend a little on how a device splits sums.
#[test]
fn flops_of_other_systems_are_ours() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/compare/flops.json");
    let text = std::fs::read_to_string(path).unwrap();
    let mut listed: BTreeMap<String, f64> = serde_json::from_str(&text).unwrap();
    for w in &WORKLOADS {
        for direction in w.directions {
            let name = format!("{} {} {direction}", w.id, w.op);
            let theirs = listed.remove(&name).unwrap();
            let case = w.case(*direction, false).unwrap();
            let ours = case.plan(&caps(false), &[]).unwrap().plan.report().flops as f64;
            assert!((theirs / ours - 1.0).abs() < 0.005, "{name}: {theirs}, not {ours}");
        }
    }
    assert!(listed.is_empty(), "{listed:?}");
}

// --- profiles ----------------------------------------------------------------

#[test]
fn labels_split_at_the_last_colon() {
    assert_eq!(
        split_label("input_blocks.1.0:conv2d.backward"),
        ("input_blocks.1.0", "conv2d.backward")
    );
    assert_eq!(split_label(":silu"), ("", "silu"));
    assert_eq!(split_label("silu"), ("", "silu"));
}

/// The events of a trace file that have a duration.
fn events(path: &Path) -> Vec<serde_json::Value> {
    let trace: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let all = trace["traceEvents"].as_array().unwrap().clone();
    all.into_iter().filter(|e| e["ph"] == "X").collect()
}

#[test]
fn every_clock_times_every_launch() {
    let ctx = timed_device();
    let case = workload("W3").case_on([1, 8, 8, 64], Direction::Backward, false).unwrap().unwrap();
    let planned = case.plan(&ctx.gpu.caps, &[]).unwrap();
    let prepared = case.prepare(ctx, planned).unwrap();
    prepared.run(ctx.gpu).unwrap();
    let wanted = prepared.results(ctx.gpu).unwrap();
    let clocks = match Clock::of(ctx.gpu) {
        Clock::BetweenDispatches => {
            vec![Clock::BetweenDispatches, Clock::AroundPasses, Clock::Host]
        }
        Clock::AroundPasses => vec![Clock::AroundPasses, Clock::Host],
        Clock::Host => vec![Clock::Host],
    };
    for clock in clocks {
        let spans = prepared.program.run_timed(ctx.gpu, clock).unwrap();
        assert_eq!(spans.len(), prepared.program.plan().dispatches.len(), "{clock}");
        assert_eq!(spans[0].start, 0, "{clock}");
        assert!(spans.iter().any(|s| s.nanos > 0), "{clock}: {spans:?}");
        assert_eq!(prepared.results(ctx.gpu).unwrap(), wanted, "{clock} changes results");
    }
    // A device that was opened without timestamps says so.
    let plain = context();
    assert_eq!(Clock::of(plain.gpu), Clock::Host);
    let prepared = case.prepare(plain, case.plan(&plain.gpu.caps, &[]).unwrap()).unwrap();
    assert!(prepared.program.run_timed(plain.gpu, Clock::Host).is_ok());
    for clock in [Clock::BetweenDispatches, Clock::AroundPasses] {
        let error = prepared.program.run_timed(plain.gpu, clock).unwrap_err();
        assert!(matches!(error, demist::Error::Device(_)), "{error}");
    }
}

#[test]
fn a_profile_adds_up_and_its_trace_is_in_order() {
    let ctx = timed_device();
    let case = workload("W1").case_on([1, 8, 8, 64], Direction::Backward, false).unwrap().unwrap();
    let prepared = case.prepare(ctx, case.plan(&ctx.gpu.caps, &[]).unwrap()).unwrap();
    let spans = prepared.program.run_timed(ctx.gpu, Clock::of(ctx.gpu)).unwrap();
    let mut profile = Profile::of(&prepared.program, &spans);
    let once = profile.len();
    profile.append(Profile::of(&prepared.program, &spans));
    assert_eq!(profile.len(), 2 * once);
    for rows in [profile.by_op(), profile.by_kernel(), profile.by_layer()] {
        assert_eq!(rows.iter().map(|r| r.launches).sum::<usize>(), 2 * once);
        let sums = [rows.iter().map(|r| r.ms).sum::<f64>(), rows.iter().map(|r| r.share).sum()];
        assert!((sums[0] - profile.ms()).abs() < 1e-9 && (sums[1] - 1.0).abs() < 1e-9, "{sums:?}");
        assert!(rows.windows(2).all(|w| w[0].ms >= w[1].ms));
    }
    let names: BTreeSet<String> = profile.by_op().into_iter().map(|r| r.name).collect();
    assert_eq!(names, ["conv2d", "conv2d.backward"].map(str::to_owned).into());

    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("trace.json");
    chrome_trace(&path, "a convolution", &profile).unwrap();
    let events = events(&path);
    assert_eq!(events.len(), 2 * once);
    let number = |e: &serde_json::Value, key: &str| e[key].as_f64().unwrap();
    assert!(events.iter().all(|e| number(e, "dur") >= 0.0 && number(e, "ts") >= 0.0));
    assert!(events.windows(2).all(|w| number(&w[0], "ts") <= number(&w[1], "ts")));
}

// --- the commands ------------------------------------------------------------

#[test]
fn bench_writes_report_and_chart_and_compares() {
    let place = Place::new();
    let args = ["bench", "--workload", "w3", "--seconds", "0.05", "--json", "x.json"];
    let more = ["--chart", "y.png", "--explain"];
    let out = place.run(&[&args[..], &more].concat()).expect_success().stdout;
    for word in ["ceilings", "GFLOP/s", "W3 group_norm forward and backward", "group_norm_stats"] {
        assert!(out.contains(word), "{out}");
    }
    let report = Report::read(&place.path("x.json")).unwrap();
    assert_eq!(report.cases.len(), 2);
    for case in &report.cases {
        let beside = case.standing.unwrap();
        let times = [case.median_ms, case.min_ms, case.gflops, beside.gbs, beside.percent];
        assert!(times.iter().all(|v| v.is_finite() && *v > 0.0), "{case:?}");
        assert_eq!((case.variant.as_str(), case.chosen_by), ("default", Why::Rule));
    }
    assert!(image::open(place.path("y.png")).unwrap().width() > 400);

    let out = place.run(&["bench", "--compare", "x.json", "x.json"]).expect_success().stdout;
    assert_eq!(out.matches("1.000").count(), 2, "{out}");
}

#[test]
fn bench_forces_variants_in_half_precision() {
    let place = Place::new();
    let args = ["bench", "--op", "conv2d", "--workload", "W1", "--variant", "conv2d=tile8x8"];
    let more = ["--half", "--seconds", "0.01", "--json", "x.json"];
    place.run(&[&args[..], &more].concat()).expect_success();
    let report = Report::read(&place.path("x.json")).unwrap();
    assert_eq!(report.cases.len(), 2);
    for case in report.cases {
        assert!(case.half && case.chosen.contains("conv2d=tile8x8"), "{case:?}");
        assert_eq!((case.variant.as_str(), case.chosen_by), ("conv2d=tile8x8", Why::Forced));
    }
}

#[test]
fn bench_refuses_what_there_is_not() {
    let place = Place::new();
    let refuse = |args: &[&str], mentions: &[&str]| {
        place.refuse(&[&["bench"], args].concat(), mentions);
    };
    refuse(&["--workload", "W10"], &["W10", "W9"]);
    refuse(&["--op", "pooling"], &["pooling", "group_norm"]);
    refuse(&["--op", "conv2d", "--workload", "W4"], &["none of these"]);
    refuse(&["--workload", "W4", "--variant", "tile4x4"], &["tile4x4", "attention=rows2x1"]);
    refuse(&["--seconds", "-1"], &["-1 seconds"]);
    refuse(&["--compare", "a.json", "b.json"], &["a.json"]);
    let mut command = place.command(&["info", "64x64_diffusion"]);
    command.env("DEMIST_VARIANT", "conv2d=tile7x7");
    let outcome = support::finish(command.spawn().unwrap());
    outcome.expect_error("DEMIST_VARIANT", &["conv2d", "tile7x7", "tile8x8"]);
}

#[test]
fn profile_of_the_shipped_network() {
    let place = Place::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/faces16.safetensors");
    let file = file.to_str().unwrap();
    let args = ["profile", file, "--batch", "1", "--trace", "t.json", "--layers", "999"];
    let out = place.run(&args).expect_success().stdout;
    for word in ["clock", "attention", "group_norm_stats", "middle_block.1"] {
        assert!(out.contains(word), "{word}: {out}");
    }
    let forward = events(&place.path("t.json"));
    assert!(forward.iter().all(|e| e["dur"].as_f64().unwrap() >= 0.0));
    assert!(forward.iter().any(|e| e["args"]["layer"] == "middle_block.1"), "{forward:?}");

    let args = ["profile", file, "--batch", "2", "--train", "--trace", "s.json"];
    let out = place.run(&args).expect_success().stdout;
    for word in ["training step", "conv2d.backward", "adamw", "q_sample", "mse"] {
        assert!(out.contains(word), "{word}: {out}");
    }
    assert!(events(&place.path("s.json")).len() > 2 * forward.len());
    place.refuse(&["profile", "nothing.safetensors"], &["nothing.safetensors", "64x64_diffusion"]);
    place.refuse(&["profile", file, "--batch", "0"], &["at least 1"]);
}
