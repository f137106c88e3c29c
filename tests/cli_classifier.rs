//! Training classifiers, and judging networks on images: `train-classifier`,
//! `evaluate` and `nll`.

#[path = "cli/support.rs"]
mod support;

use std::sync::OnceLock;

use demist::checkpoint::{read_info, read_network};
use demist::model::ModelConfig;
use demist::output::npz::save_samples;
use support::{
    Outcome, Place, SIDE, TINY_CLASSIFIER, atlas, cats_and_dogs, classifier, finish, idx, network,
    pixels, png, shared_unet,
};

fn enlarger() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "enlarger", &["--small-size", "8"])
}

fn unconditional() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "unconditional", &["--unconditional"])
}

fn train<'a>(steps: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let fixed = ["train-classifier", cats_and_dogs(), "--out", "run", "--steps", steps];
    [&fixed[..], &TINY_CLASSIFIER[..], more].concat()
}

/// The line of `outcome` that begins with `name`.
#[track_caller]
fn line<'a>(outcome: &'a Outcome, name: &str) -> &'a str {
    let line = outcome.stdout.lines().find(|l| l.starts_with(name));
    line.unwrap_or_else(|| panic!("no line {name}: {outcome:#?}"))
}

#[test]
fn the_best_classifier_is_kept_and_a_resumed_one_is_the_same() {
    let place = Place::new();
    let validation = ["--validation", cats_and_dogs(), "--eval-every", "1"];
    let outcome = place.run(&train("2", &validation)).expect_success();
    let first = line(&outcome, "step 1: validation loss");
    assert!(first.contains("acc@1") && first.ends_with(", the best so far"), "{first}");
    line(&outcome, "run/best.safetensors");
    let best = read_info(&place.path("run/best.safetensors")).unwrap();
    assert!(best.progress.best_loss.is_some());
    let ModelConfig::Encoder(model) = &best.model else { panic!("no classifier") };
    assert_eq!((model.image_size, model.in_channels, model.out_channels), (SIDE, 3, 2));
    assert_eq!(best.data.classes, ["cat", "dog"]);
    let rows = std::fs::read_to_string(place.path("run/evaluation.csv")).unwrap();
    assert_eq!(rows.lines().count(), 3, "{rows}");

    let resume = ["train-classifier", cats_and_dogs(), "--out", "run", "--resume", "--steps"];
    place.run(&[&resume[..], &["3"]].concat()).expect_success();
    let whole: Vec<&str> =
        train("3", &[]).iter().map(|a| if *a == "run" { "whole" } else { *a }).collect();
    place.run(&whole).expect_success();
    let read = |run: &str| read_network(&place.path(run).join("state.safetensors")).unwrap();
    let ((info, resumed), (_, whole)) = (read("run"), read("whole"));
    assert_eq!(info.progress.step, 3);
    assert!(resumed.tensors == whole.tensors, "the states differ");

    let again = place.run(&[&resume[..], &["3"]].concat()).expect_success();
    line(&again, "the run has 3 steps already");
    // Each kind of run goes on with its own command.
    place.refuse(&["train", cats_and_dogs(), "--out", "run", "--resume"], &["train-classifier"]);
    place.copied_run("unet");
    let other = ["train-classifier", cats_and_dogs(), "--out", "unet", "--resume"];
    place.refuse(&other, &["unet", "continue it with train"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_tells_how_to_go_on_with_a_classifier() {
    let place = Place::new();
    atlas(&place.folder("other set"), &["cat", "dog"]);
    let more = ["--log-every", "1", "--validation", "other set/atlas.png"];
    // The command is not the first word.
    let args = [&["--device", "0"], &train("1000000", &more)[..]].concat();
    let child = place.command(&args).spawn().unwrap();
    let begun = std::time::Instant::now();
    let rows = || std::fs::read_to_string(place.path("run/metrics.csv")).unwrap_or_default();
    while rows().lines().count() < 2 && begun.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let outcome = finish(child).expect_success();
    let said = line(&outcome, "stopped and saved");
    let command = said.split_once("continue with: demist ").unwrap().1;
    let expected = format!(
        "train-classifier {} --out run --resume --validation 'other set/atlas.png'",
        cats_and_dogs()
    );
    assert_eq!(command, expected);
    let step = read_info(&place.path("run/state.safetensors")).unwrap().progress.step;
    let steps = (step + 1).to_string();
    let resume = ["train-classifier", cats_and_dogs(), "--out", "run", "--resume"];
    let more = ["--validation", "other set/atlas.png", "--steps", &steps];
    place.run(&[&resume[..], &more].concat()).expect_success();
    let info = read_info(&place.path("run/network.safetensors")).unwrap();
    assert_eq!(info.progress.step, step + 1);
}

#[test]
fn classifiers_of_all_kinds_train() {
    let place = Place::new();
    for (out, more) in [
        ("adaptive", &["--classifier-pool", "adaptive", "--flip"][..]),
        ("spatial", &["--classifier-pool", "spatial", "--clean"]),
        ("second", &["--classifier-pool", "spatial_v2", "--random-crop", "--half"]),
        ("attention", &["--classifier-attention-resolutions", "16,8", "--dropout", "0.1"]),
    ] {
        let fixed = ["train-classifier", cats_and_dogs(), "--out", out, "--steps", "1"];
        place.run(&[&fixed[..], &TINY_CLASSIFIER[..], more].concat()).expect_success();
        let network = format!("{out}/network.safetensors");
        let info = place.run(&["info", &network]).expect_success();
        assert!(line(&info, "classifier").contains("16x16 pixels, 3 channels, 2 classes"));
        line(&info, "training    batch 1:");
    }
    // A classifier starts from another, but for the classes.
    atlas(&place.folder("three"), &["cat", "dog", "cow"]);
    let fixed = ["train-classifier", "three/atlas.png", "--out", "three/run", "--steps", "1"];
    let more = ["--batch-size", "2", "--init", classifier()];
    let outcome = place.run(&[&fixed[..], &more].concat()).expect_success();
    assert!(outcome.stderr.contains("begins anew"), "{outcome:#?}");
    let info = read_info(&place.path("three/run/network.safetensors")).unwrap();
    assert_eq!((info.model.classes(), info.data.classes.len()), (Some(3), 3));
}

#[test]
fn train_classifier_refuses_what_is_none() {
    let place = Place::new();
    png(&place.path("one/cat_1.png"), SIDE, 3, 1);
    atlas(&place.folder("other"), &["cat", "cow"]);
    let fixed = ["train-classifier", "one", "--out", "run"];
    place.refuse(&fixed, &["at least 2 classes", "1"]);
    for (more, mentions) in [
        (&["--classifier-width", "48"][..], &["multiple of 32"][..]),
        (&["--classifier-depth", "0"], &["num_res_blocks"]),
        (&["--classifier-attention-resolutions", "7"], &["attention resolution 7"]),
        (&["--preset", "64x64_diffusion"], &["`64x64_diffusion`", "64x64_classifier"]),
        (&["--preset", "64x64_classifier"], &["64 pixels", "--image-size 64"]),
        (&["--init", network()], &["network.safetensors", "a classifier is needed"]),
        (&["--init", classifier(), "--classifier-width", "64"], &["--classifier-width"]),
        (&["--validation", "missing"], &["missing", "cannot read"]),
        (&["--validation", "other/atlas.png"], &["cat, cow", "cat, dog"]),
        (&["--dropout", "1"], &["dropout 1"]),
        (&["--ema-rate", "0.9,2"], &["ema rate 2"]),
        (&["--memory", "1KiB"], &["needs at least", "1.00 KiB"]),
    ] {
        let fixed = ["train-classifier", cats_and_dogs(), "--out", "run"];
        place.refuse(&[&fixed[..], more].concat(), mentions);
        assert!(!place.path("run").exists(), "{more:?}");
    }
    let outcome = place.run(&train("2", &["--classifier-pool", "max"]));
    assert_eq!(outcome.code, Some(2), "{outcome:#?}");
    assert!(outcome.stderr.contains("spatial_v2"), "{outcome:#?}");
}

#[test]
fn evaluate_prints_the_measures_of_each_kind() {
    let place = Place::new();
    let evaluate = |file, more: &[&str]| {
        place.run(&[&["evaluate", file, cats_and_dogs()], more].concat()).expect_success()
    };
    let outcome = evaluate(network(), &[]);
    line(&outcome, "4 images");
    assert!(line(&outcome, "mse").contains("by quarter of the timesteps: "));
    // The batch does not change what an image is evaluated with.
    let number = |o: &Outcome| line(o, "loss").split_whitespace().nth(1).unwrap().parse::<f64>();
    let [whole, parts] = [outcome, evaluate(network(), &["--batch", "3"])].map(|o| number(&o));
    assert!((whole.unwrap() - parts.unwrap()).abs() < 1e-4);

    let outcome = evaluate(classifier(), &[]);
    for name in ["clean", "noised"] {
        let line = line(&outcome, name);
        assert!(line.contains("top-1") && line.contains("top-5 100.00 %"), "{line}");
    }
    let outcome = evaluate(enlarger(), &["-n", "2", "--steps", "2"]);
    assert!(line(&outcome, "bilinear").ends_with("dB PSNR from 8x8"));
    assert!(line(&outcome, "network").ends_with("dB PSNR, 2 steps"));

    // An unconditional network needs no classes.
    png(&place.path("plain/a.png"), SIDE, 3, 1);
    place.run(&["evaluate", unconditional(), "plain"]).expect_success();
    let samples = pixels(3, 2 * SIDE * SIDE * 3);
    let save = |name: &str, labels: Option<&[i64]>| {
        save_samples(&place.path(name), &samples, [2, SIDE, SIDE, 3], labels).unwrap();
    };
    save("labelled.npz", Some(&[0, 1]));
    save("bare.npz", None);
    place.run(&["evaluate", classifier(), "labelled.npz"]).expect_success();
    png(&place.path("cows/cow_1.png"), SIDE, 3, 1);
    png(&place.path("cows/dog_1.png"), SIDE, 3, 2);
    for (file, data, mentions) in [
        (classifier(), "bare.npz", &["bare.npz", "arr_1", "2 classes"][..]),
        (classifier(), "plain", &["plain", "does not tell classes"]),
        (network(), "cows", &["cows", "class cow", "cat, dog"]),
        (network(), "missing", &["missing", "cannot read"]),
        ("missing", "plain", &["missing", "cannot read"]),
        ("plain", "plain", &["plain", "a folder"]),
    ] {
        place.refuse(&["evaluate", file, data], mentions);
    }
    let refuse = |more: &[&str], mentions: &[&str]| {
        place.refuse(&[&["evaluate", enlarger(), cats_and_dogs()], more].concat(), mentions);
    };
    refuse(&["--steps", "foo"], &["\"foo\""]);
    refuse(&["-n", "0"], &["--count"]);
    refuse(&["--batch", "0"], &["--batch"]);
}

#[test]
fn nll_prints_totals_and_writes_tables_and_a_plot() {
    let place = Place::new();
    let nll = |more: &[&str]| {
        let fixed = ["nll", network(), cats_and_dogs(), "--steps", "4"];
        place.run(&[&fixed[..], more].concat()).expect_success()
    };
    let outcome = nll(&[]);
    line(&outcome, "4 images, 4 timesteps, seed 0");
    let total = line(&outcome, "total");
    let bits: f64 = total.split_whitespace().nth(1).unwrap().parse().unwrap();
    assert!(bits > 0.0 && total.contains("bits/dim (standard error "), "{total}");
    for name in ["prior", "last term", "mse", "x0-mse", "nll/nll.csv", "nll/nll.png"] {
        line(&outcome, name);
    }
    let read = |name: &str| std::fs::read_to_string(place.path(name)).unwrap();
    let steps = read("nll/nll.csv");
    assert!(steps.starts_with("step,timestep,vb,mse,xstart_mse\n"), "{steps}");
    assert_eq!((steps.lines().count(), read("nll/images.csv").lines().count()), (5, 5));
    let totals = read("nll/images.csv");
    let totals: Vec<f64> =
        totals.lines().skip(1).map(|l| l.split(',').nth(1).unwrap().parse().unwrap()).collect();
    let mean = totals.iter().sum::<f64>() / 4.0;
    assert!((mean - bits).abs() < 1e-3, "{mean} {bits}");
    assert_eq!(image::open(place.path("nll/nll.png")).unwrap().width(), 900);
    // The same seed scores the same, in any batch.
    assert_eq!(line(&nll(&["--batch", "3", "-o", "again"]), "total"), total);
    assert_ne!(line(&nll(&["--seed", "1", "-o", "again"]), "total"), total);

    std::fs::write(place.path("file"), "").unwrap();
    idx(&place.folder("grey"));
    for (file, data, more, mentions) in [
        (classifier(), cats_and_dogs(), &[][..], &["a diffusion network is needed"][..]),
        (enlarger(), cats_and_dogs(), &[], &["super-resolution"]),
        (network(), "grey", &[], &["0", "cat, dog"]),
        (network(), "missing", &[], &["missing", "cannot read"]),
        (network(), cats_and_dogs(), &["--steps", "foo"], &["\"foo\""]),
        (network(), cats_and_dogs(), &["-n", "0"], &["--count"]),
        (network(), cats_and_dogs(), &["-o", "file"], &["file", "cannot create"]),
        (network(), cats_and_dogs(), &["-o", "nll.png"], &["nll.png", "folder"]),
    ] {
        place.refuse(&[&["nll", file, data], more].concat(), mentions);
    }
}
