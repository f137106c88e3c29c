//! Tuning: its file, its measurement, that lowerings and commands take it, and the
//! cache folder with the compiled kernels.

mod harness;

#[path = "cli/support.rs"]
mod support;

use demist::engine::bench::{Case, Direction, Effort, Report, TimeKind, WORKLOADS, subjects};
use demist::engine::caps::Caps;
use demist::engine::gpu::Gpu;
use demist::engine::graph::{CHOICES, DType, Graph, Lower, Plan, PlanOptions, Storage, Why};
use demist::engine::ops::{Conv2d, conv2d};
use demist::engine::runtime::{Context, Pipelines};
use demist::engine::tuning::{Cache, DeviceKey, Tuning, TuningFile};
use demist::model::model_preset;
use demist::{Error, Result};
use harness::device;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use support::{Outcome, Place, finish, network};

fn key(driver: &str) -> DeviceKey {
    DeviceKey { adapter: "An adapter".into(), driver: driver.into(), backend: "vulkan".into() }
}

fn tuning(entries: &[(&str, &[usize], &str)]) -> Tuning {
    let mut tuning = Tuning::default();
    entries.iter().for_each(|(op, shape, name)| tuning.set(op, shape, name));
    tuning
}

/// As little as measures anything.
fn least() -> Effort {
    Effort { budget: Duration::from_micros(1), time: TimeKind::Elapsed }
}

// --- the file ----------------------------------------------------------------

#[test]
fn a_tuning_survives_its_file_and_is_for_one_device_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let cache = Cache::at(folder.path().join("not/yet/there"));
    let path = cache.tuning(&key("Mesa 1"));
    assert_eq!(TuningFile::read(&path, &key("Mesa 1")).unwrap(), None);
    let entries: [(&str, &[usize], &str); 2] =
        [("conv2d", &[1024, 64, 3], "tile8x8"), ("attention", &[8, 64], "rows2x1")];
    let written = TuningFile::new(key("Mesa 1"), tuning(&entries));
    written.write(&path).unwrap();
    assert_eq!(TuningFile::read(&path, &key("Mesa 1")).unwrap(), Some(written.clone()));
    assert_eq!(TuningFile::read(&path, &key("Mesa 2")).unwrap(), None);
    assert_ne!(cache.tuning(&key("Mesa 2")), path);

    let text = std::fs::read_to_string(&path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["adapter"], "An adapter");
    assert_eq!(json["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(json["tuning"]["conv2d"]["1024x64x3"], "tile8x8");
    // Another version may write what this one cannot read.
    let other =
        text.replace(env!("CARGO_PKG_VERSION"), "99.0.0").replace("\"conv2d\": {", "\"x\": [{");
    let other = other.replacen('}', "}]", 2).replacen("}]", "}", 1);
    serde_json::from_str::<serde_json::Value>(&other).unwrap();
    std::fs::write(&path, other).unwrap();
    assert_eq!(TuningFile::read(&path, &key("Mesa 1")).unwrap(), None);
}

#[test]
fn what_is_no_tuning_file_is_an_error_that_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.json");
    let good = TuningFile::new(key("Mesa 1"), tuning(&[("conv2d", &[1], "tile8x8")]));
    good.write(&path).unwrap();
    let text = std::fs::read_to_string(&path).unwrap();
    let cut = |end: usize| text.as_bytes()[..end].to_vec();
    let version = env!("CARGO_PKG_VERSION");
    let texts = [
        Vec::new(),
        cut(1),
        cut(text.len() / 2),
        b"[]".to_vec(),
        b"{\"version\": 1}".to_vec(),
        format!("{{\"version\": \"{version}\"}}").into_bytes(),
        text.replace("\"tile8x8\"", "8").into_bytes(),
        vec![0xff; 100],
        "[".repeat(100_000).into_bytes(),
    ];
    for bytes in texts {
        std::fs::write(&path, &bytes).unwrap();
        let error = TuningFile::read(&path, &key("Mesa 1")).unwrap_err().to_string();
        assert!(error.contains("t.json") && error.contains("no tuning file"), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    // A folder of that name cannot be read, which is no fault of a file.
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    assert_eq!(TuningFile::read(&path, &key("Mesa 1")).unwrap(), None);
}

#[test]
fn newer_entries_replace_older_ones_and_leave_the_others() {
    let mut all = tuning(&[("conv2d", &[1], "a"), ("conv2d", &[2], "b"), ("attention", &[1], "c")]);
    all.merge(tuning(&[("conv2d", &[2], "d"), ("conv2d_dx", &[2], "e")]));
    let found: Vec<_> = all.iter().collect();
    let expected = [
        ("attention", "1", "c"),
        ("conv2d", "1", "a"),
        ("conv2d", "2", "d"),
        ("conv2d_dx", "2", "e"),
    ];
    assert_eq!(found, expected);
    assert_eq!(all.len(), 4);
}

// --- lowering ----------------------------------------------------------------

fn plan(caps: &Caps) -> Plan {
    let mut g = Graph::new();
    let x = g.input("x", &[2, 8, 8, 16], DType::F32);
    let y = conv2d(&mut g, x, Conv2d::k3(32), None, None).unwrap();
    let mut lower = Lower::new(&g, caps);
    lower.forward(&g).unwrap();
    Plan::new(&g, lower, &[y], PlanOptions::default()).unwrap()
}

#[test]
fn every_lowering_takes_what_its_capabilities_are_tuned_to() {
    let by_rule = plan(&Caps::default());
    let choice = by_rule.choices[0].clone();
    assert_eq!((choice.chosen, choice.why), (choice.rule, Why::Rule));
    for (i, name) in choice.candidates.iter().enumerate() {
        let table = tuning(&[(choice.op, &choice.shape, name)]);
        let tuned = plan(&Caps { tuning: Some(Arc::new(table)), ..Caps::default() });
        assert_eq!((tuned.choices[0].chosen, tuned.choices[0].why), (i, Why::Tuned));
        let same = tuned.dispatches[0].defines == by_rule.dispatches[0].defines;
        assert_eq!(same, i == choice.rule, "{name}");
    }
    let unknown = tuning(&[(choice.op, &choice.shape, "tile9x9"), ("conv9d", &[1], "x")]);
    let plan = plan(&Caps { tuning: Some(Arc::new(unknown)), ..Caps::default() });
    assert_eq!((plan.choices[0].chosen, plan.choices[0].why), (choice.rule, Why::Rule));
}

// --- measuring ---------------------------------------------------------------

#[test]
fn a_node_alone_has_the_operands_of_the_whole() {
    let mut g = Graph::new();
    g.half = true;
    let x = g.input("x", &[2, 8, 8, 16], DType::F32);
    let u = conv2d(&mut g, x, Conv2d::k3(32), None, None).unwrap();
    let y = conv2d(&mut g, u, Conv2d::k1(32), None, Some(u)).unwrap();
    let (alone, out) = g.isolate(1);
    assert_eq!((alone.nodes.len(), alone.params.len()), (1, 2));
    assert_eq!((alone.shape(out), alone.dtype(out)), (g.shape(y), DType::F16));
    let inputs = &alone.nodes[0].inputs;
    assert_eq!(inputs[0], inputs[3], "the input is the residual too");
    assert_eq!(alone.storage(inputs[0]), Storage::Pinned);
    assert_eq!(alone.shape(inputs[0]), [2, 8, 8, 32]);
    assert_eq!((alone.storage(inputs[1]), alone.dtype(inputs[1])), (Storage::Param(0), DType::F16));
    assert_eq!(alone.params[1].shape, [32]);
}

#[test]
fn a_networks_shapes_are_found_once_and_forward_of_both_directions() {
    let model = model_preset("64x64_diffusion").unwrap();
    let case = |d| Case::network(&model, 1, d, false).unwrap();
    let caps = Caps { max_binding: 1 << 40, max_buffer: 1 << 40, ..Caps::default() };
    let of = |d| {
        let all = subjects(&[case(d)], &caps).unwrap();
        let names: Vec<_> = all.iter().map(|s| (s.choice.op, s.choice.shape.clone())).collect();
        let once: BTreeSet<_> = names.iter().cloned().collect();
        assert_eq!(once.len(), names.len());
        assert!(all.iter().all(|s| s.choice.candidates.len() > 1));
        once
    };
    let (forward, both) = (of(Direction::Forward), of(Direction::Backward));
    assert!(forward.is_subset(&both) && forward.len() < both.len());
    let ops: BTreeSet<_> = both.iter().map(|(op, _)| *op).collect();
    assert_eq!(ops, tunable(&caps));
    // A classifier has a backward walk, too.
    let encoder = model_preset("64x64_classifier").unwrap();
    let case = Case::network(&encoder, 1, Direction::Backward, true).unwrap();
    assert!(subjects(&[case], &caps).unwrap().iter().any(|s| s.choice.op == "conv2d_dx"));
}

/// All choices but those that take two nodes, and what a driver's rules do not come to.
fn tunable(caps: &Caps) -> BTreeSet<&'static str> {
    let products = !caps.software || caps.uniform_loads;
    let two_nodes = ["norm_conv", "conv_moments"];
    let unasked = |op: &str| match op {
        "gemm_dw" => !products,
        "conv2d_split" => caps.software,
        _ => two_nodes.contains(&op),
    };
    CHOICES.into_iter().filter(|op| !unasked(op)).collect()
}

fn measure_small(ctx: Context, time: TimeKind) {
    // Convolutions that add up directly and by Winograd's filters.
    let shapes = [
        ("W1", [1, 8, 8, 16]),
        ("W1", [1, 16, 16, 16]),
        ("W3", [1, 32, 32, 64]),
        ("W4", [1, 4, 4, 96]),
    ];
    let mut ops = BTreeSet::new();
    for (id, shape) in shapes {
        let w = WORKLOADS.iter().find(|w| w.id == id).unwrap();
        let case = w.case_on(shape, Direction::Backward, false).unwrap().unwrap();
        for subject in subjects(&[case], &ctx.gpu.caps).unwrap() {
            assert!(subject.bytes(&ctx.gpu.caps).unwrap() > 0);
            let effort = Effort { time, ..least() };
            let measured = subject.measure(ctx, effort, &mut || Ok(())).unwrap().unwrap();
            assert_eq!(measured.ms.len(), subject.choice.candidates.len());
            let known: Vec<f64> = measured.ms.iter().map(|ms| ms.unwrap()).collect();
            assert!(known.iter().all(|ms| ms.is_finite() && *ms >= 0.0), "{measured:?}");
            assert!(known.iter().any(|ms| *ms > 0.0), "{measured:?}");
            let [winner, rule] = [measured.winner, subject.choice.rule].map(|i| known[i]);
            assert!(winner <= rule, "{measured:?}");
            ops.insert(subject.choice.op);
        }
    }
    assert_eq!(ops, tunable(&ctx.gpu.caps));
}

#[test]
fn every_choice_is_measured_by_every_clock() {
    let (gpu, pipelines) = device();
    measure_small(Context { gpu, pipelines }, TimeKind::Elapsed);
    let selector = std::env::var("DEMIST_DEVICE").ok();
    let (gpu, pipelines) =
        (Gpu::open_for_measuring(selector.as_deref()).unwrap(), Pipelines::new());
    measure_small(Context { gpu: &gpu, pipelines: &pipelines }, TimeKind::Elapsed);
    measure_small(Context { gpu: &gpu, pipelines: &pipelines }, TimeKind::Processor);
}

#[test]
fn measuring_ignores_older_tuning_and_can_be_interrupted() {
    let (gpu, pipelines) = device();
    let ctx = Context { gpu, pipelines };
    let case = WORKLOADS[0].case_on([1, 8, 8, 16], Direction::Forward, false).unwrap().unwrap();
    let rule = subjects(std::slice::from_ref(&case), &gpu.caps).unwrap().remove(0).choice;
    let other = rule.candidates[usize::from(rule.rule == 0)];
    let table = Arc::new(tuning(&[(rule.op, &rule.shape, other)]));
    let caps = Caps { tuning: Some(table), ..gpu.caps.clone() };
    let subject = subjects(&[case], &caps).unwrap().remove(0);
    assert_eq!(subject.choice, rule);
    for runs in [0, 1, 5] {
        let mut asked = 0;
        let outcome = subject.measure(ctx, least(), &mut || {
            asked += 1;
            if asked > runs { Err(Error::Interrupted) } else { Ok(()) }
        });
        assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
        assert_eq!(asked, runs + 1);
    }
}

// --- compiled kernels --------------------------------------------------------

/// Some launches of a network, none of which is compiled yet.
fn launches(gpu: &Gpu) -> Plan {
    let case = WORKLOADS[0].case_on([1, 8, 8, 32], Direction::Backward, false).unwrap().unwrap();
    case.plan(&gpu.caps, &[]).unwrap().plan
}

#[test]
fn who_waits_for_kernels_is_told_and_can_stop() {
    let gpu = &device().0;
    let plan = launches(gpu);
    let mut pipelines = Pipelines::new();
    let told: Arc<Mutex<Vec<(usize, usize)>>> = Arc::default();
    let sink = told.clone();
    pipelines.on_progress(move |c| {
        assert!(c.elapsed < Duration::from_secs(100));
        sink.lock().unwrap().push((c.done, c.total));
        Ok(())
    });
    pipelines.make_ready(gpu, &plan.dispatches).unwrap();
    let seen = std::mem::take(&mut *told.lock().unwrap());
    let total = pipelines.len();
    assert!(total >= 3, "{total}");
    assert_eq!(seen.last(), Some(&(total, total)));
    assert_eq!(seen.iter().filter(|s| s.0 == total).count(), 1, "{seen:?}");
    assert!(seen.windows(2).all(|s| s[0].0 <= s[1].0 && s[0].1 == total), "{seen:?}");
    assert!((0..=total).skip(1).all(|n| seen.iter().any(|s| s.0 == n)), "{seen:?}");
    // Nothing is left to be told of.
    pipelines.make_ready(gpu, &plan.dispatches).unwrap();
    assert!(told.lock().unwrap().is_empty());

    let stop: fn(demist::engine::runtime::Compiling) -> Result<()> = |_| Err(Error::Interrupted);
    let mut stopped = Pipelines::new();
    stopped.on_progress(stop);
    let outcome = stopped.make_ready(gpu, &plan.dispatches);
    assert!(matches!(outcome, Err(Error::Interrupted)), "{outcome:?}");
    stopped.on_progress(|_| Ok(()));
    stopped.make_ready(gpu, &plan.dispatches).unwrap();
    assert_eq!(stopped.len(), total);
}

#[test]
fn compiled_kernels_are_kept_and_a_damaged_file_does_no_harm() {
    let gpu = &device().0;
    let plan = launches(gpu);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("new/kernels.gz");
    let compile = || {
        let pipelines = Pipelines::kept_in(gpu, &path);
        pipelines.make_ready(gpu, &plan.dispatches).unwrap();
        pipelines.len()
    };
    let count = compile();
    assert_eq!(path.exists(), gpu.summary.features.contains(&"pipeline-cache"));
    if path.exists() {
        let kept = std::fs::read(&path).unwrap();
        assert_eq!(compile(), count);
        for damaged in [b"nonsense".to_vec(), kept[..kept.len() / 2].to_vec(), Vec::new()] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(compile(), count);
            // What was wrong is written anew.
            assert!(std::fs::read(&path).unwrap().starts_with(&kept[..2]));
        }
    }
}

#[test]
fn kernels_compile_where_nothing_can_be_kept() {
    let gpu = &device().0;
    let file = tempfile::NamedTempFile::new().unwrap();
    // A file is no folder.
    let pipelines = Pipelines::kept_in(gpu, &file.path().join("kernels.gz"));
    pipelines.make_ready(gpu, &launches(gpu).dispatches).unwrap();
    assert!(!pipelines.is_empty());
}

// --- commands ----------------------------------------------------------------

fn run_in(place: &Place, cache: &str, args: &[&str]) -> Outcome {
    finish(place.command(args).env("DEMIST_CACHE", cache).spawn().unwrap())
}

fn files(folder: &Path, start: &str) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let paths = entries.map(|e| e.unwrap().path());
    paths.filter(|p| p.file_name().unwrap().to_str().unwrap().starts_with(start)).collect()
}

#[test]
fn tune_keeps_what_all_commands_then_take() {
    let place = Place::new();
    let ask = |args: &[&str]| run_in(&place, "cache", args).expect_success();
    let tune = ["tune", network(), "--batch", "1", "--seconds", "0.001"];

    // Nothing yet.
    assert!(ask(&["tune", "--print"]).stdout.contains("nothing is kept"));
    let dry = ask(&[&tune[..], &["--dry-run"]].concat()).stdout;
    assert!(dry.contains("shapes have something faster") && !dry.contains("wrote"), "{dry}");
    assert!(files(&place.path("cache"), "tuning-").is_empty());
    let explained = ask(&["info", network(), "--explain"]).stdout;
    assert!(explained.contains("(rule)") && !explained.contains("(tuned)"), "{explained}");

    let told = ask(&tune);
    assert!(told.stdout.contains("wrote cache") && told.stderr.contains("measuring "), "{told:?}");
    let rows = told.stdout.lines().filter(|l| l.starts_with("conv2d ")).count();
    assert!(rows > 3, "{told:?}");
    let [path] = &files(&place.path("cache"), "tuning-")[..] else { panic!("no file, or several") };
    let text = std::fs::read_to_string(path).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["tuning"]["conv2d"].as_object().unwrap().len(), rows);
    assert!(json["tuning"].get("conv2d_dx").is_none(), "{text}");
    let kept = ask(&["tune", "--print"]).stdout;
    assert_eq!(kept.matches("conv2d of ").count(), rows, "{kept}");

    // What is kept stays when more is measured.
    ask(&["tune", network(), "--batch", "2", "--train", "--seconds", "0.001"]);
    let more: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    assert!(more["tuning"]["conv2d"].as_object().unwrap().len() > rows);
    assert!(more["tuning"].get("conv2d_dx").is_some(), "{more}");

    let explained = ask(&["info", network(), "--explain"]);
    assert!(explained.stderr.contains("tuned for "), "{explained:?}");
    let (inference, training) = explained.stdout.split_once("variants of training").unwrap();
    assert!(inference.contains("(tuned)"), "{inference}");
    // Where there is nothing to choose, or to measure, the rule does.
    let by_rule = inference.lines().filter(|l| l.contains("(rule)"));
    // Tiles of a way that only became the faster one by tuning were not asked about.
    let nested = ["norm_conv", "conv_moments", "conv2d of", "gemm of"];
    let mut by_rule = by_rule.filter(|l| !nested.iter().any(|op| l.contains(op)));
    assert!(by_rule.all(|l| l.ends_with("candidates: none")), "{inference}");
    assert!(training.contains("conv2d_dx of "), "{training}");
    let plain = ask(&["info", network(), "--explain", "--no-tuning"]).stdout;
    assert!(plain.contains("(rule)") && !plain.contains("(tuned)"), "{plain}");
    let profile = ask(&["profile", network(), "--batch", "1", "--explain"]).stdout;
    assert!(profile.contains("(tuned)"), "{profile}");
    let sample = ask(&["sample", network(), "-n", "1", "--steps", "3", "--out", "x.png"]);
    assert!(sample.stderr.contains("tuned for "), "{sample:?}");

    let bench = ["bench", "--workload", "W3", "--seconds", "0.01", "--json"];
    ask(&[&bench[..], &["tuned.json"]].concat());
    ask(&[&bench[..], &["plain.json", "--no-tuning"]].concat());
    let tuned = |name: &str| Report::read(&place.path(name)).unwrap().tuned;
    assert!(tuned("tuned.json") && !tuned("plain.json"));
}

#[test]
fn a_corrupt_tuning_warns_once_and_a_stale_one_is_silent() {
    let place = Place::new();
    let folder = place.folder("cache");
    let path = Cache::at(folder).tuning(&device().0.summary.key());
    let info = || run_in(&place, "cache", &["info", network(), "--explain"]).expect_success();
    let warnings = |o: &Outcome| o.stderr.matches("no tuning file").count();

    std::fs::write(&path, "{").unwrap();
    let outcome = info();
    assert_eq!(warnings(&outcome), 1, "{outcome:?}");
    assert!(!outcome.stdout.contains("(tuned)"), "{outcome:?}");
    let print = run_in(&place, "cache", &["tune", "--print"]);
    print.expect_error("a corrupt file", &["no tuning file"]);

    std::fs::write(&path, r#"{"version": "0.0.1", "tuning": 7}"#).unwrap();
    let outcome = info();
    assert_eq!(warnings(&outcome), 0, "{outcome:?}");
    assert!(!outcome.stdout.contains("(tuned)"), "{outcome:?}");
}

#[test]
fn without_a_cache_folder_nothing_is_read_or_written() {
    let place = Place::new();
    let mentions = ["cache folder", "DEMIST_CACHE", "--dry-run"];
    place.refuse(&["tune", network()], &mentions);
    place.refuse(&["tune", "--print"], &mentions);
    let tune = ["tune", network(), "--batch", "1", "--seconds", "0.001", "--dry-run"];
    place.run(&tune).expect_success();
    place.refuse(&["tune", "nothing.safetensors", "--dry-run"], &["nothing.safetensors"]);
    place.refuse(&["tune", network(), "--dry-run", "--seconds", "0"], &["0 seconds a shape"]);
    place.refuse(&["tune", network(), "--dry-run", "--batch", "0"], &["at least 1"]);
    let left: Vec<_> = std::fs::read_dir(place.path("")).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[cfg(unix)]
#[test]
fn ctrl_c_ends_tuning_and_keeps_what_was_measured() {
    use std::io::{BufRead, BufReader, Read};
    let place = Place::new();
    let args = ["tune", network(), "--batch", "1", "--seconds", "1000"];
    let mut child = place.command(&args).env("DEMIST_CACHE", "cache").spawn().unwrap();
    let mut errors = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.starts_with("measuring") {
        line.clear();
        assert!(errors.read_line(&mut line).unwrap() > 0, "it ended early");
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let outcome = finish(child).expect_success();
    errors.read_to_string(&mut line).unwrap();
    assert!(line.contains("stopping after this step"), "{line}");
    assert!(outcome.stdout.contains("stopped: "), "{outcome:?}");
    let measured = !outcome.stdout.contains("stopped: 0 of");
    assert_eq!(files(&place.path("cache"), "tuning-").len(), usize::from(measured));
}
