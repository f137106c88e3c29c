//! The program from outside: what it makes, and that every bad input ends in
//! one line that names the fault.

#[path = "cli/support.rs"]
mod support;

use demist::checkpoint::{TensorFile, read_info, read_network};
use demist::output::image::read_png_text;
use demist::output::npz::load_samples;
use support::{
    Outcome, Place, SIDE, TINY, atlas, cats_and_dogs, finish, idx, network, png, trained,
    truncated_png,
};

fn sample<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["sample", file, "--steps", "2"], more].concat()
}

// --- what it makes -----------------------------------------------------------

#[test]
fn devices_lists_an_adapter() {
    let out = Place::new().run(&["devices"]).expect_success().stdout;
    assert!(out.starts_with("0: ") && out.contains("(default)"), "{out}");
    for word in ["driver", "features", "limits"] {
        assert!(out.contains(word), "{out}");
    }
}

/// The network that a training left, after a check of its files.
fn trained_on(place: &Place, out: &str, outcome: Outcome) -> demist::checkpoint::NetworkInfo {
    let outcome = outcome.expect_success();
    assert!(outcome.stdout.contains("2 steps, 4 images seen"), "{outcome:#?}");
    for file in ["state.safetensors", "metrics.csv", "loss.png"] {
        assert!(place.path(out).join(file).is_file(), "{file}");
    }
    let (info, file) = read_network(&place.path(out).join("network.safetensors")).unwrap();
    for (name, tensor) in &file.tensors {
        assert!(tensor.to_f32().unwrap().iter().all(|v| v.is_finite()), "{name}");
    }
    assert_eq!((info.progress.step, info.progress.images_seen), (2, 4));
    info
}

#[test]
fn trains_on_subfolders_in_rgb() {
    let place = Place::new();
    for (i, name) in ["cat/a.png", "cat/b.png", "dog/deep/c.png"].iter().enumerate() {
        png(&place.path("data").join(name), SIDE, 3, i);
    }
    let info = trained_on(&place, "run", place.train("data", "run", "2", &["--flip"]));
    assert_eq!(info.data.classes, ["cat", "dog"]);
    assert_eq!((info.model.in_channels(), info.model.classes()), (3, Some(2)));
}

#[test]
fn trains_on_prefixes_in_grey_and_draws_samples() {
    let place = Place::new();
    for (i, name) in ["cat_1.png", "dog_1.png", "dog_2.png"].iter().enumerate() {
        png(&place.path("data").join(name), SIDE, 1, i);
    }
    let more = ["--sample-every", "2", "--diffusion-steps", "4", "--noise-schedule", "cosine"];
    let args = [&["train", "data", "--out", "run", "--steps", "2"], &TINY[..6], &more].concat();
    let info = trained_on(&place, "run", place.run(&args));
    assert_eq!(info.data.classes, ["cat", "dog"]);
    assert_eq!((info.model.in_channels(), info.model.unet().unwrap().out_channels), (1, 1));
    let grid = place.path("run/samples/step_0000002.png");
    assert!(image::open(&grid).unwrap().width() > 8 * SIDE as u32);
}

#[test]
fn trains_on_idx_without_classes() {
    let place = Place::new();
    idx(&place.folder("data"));
    let info = trained_on(&place, "run", place.train("data", "run", "2", &["--unconditional"]));
    assert_eq!((info.model.in_channels(), info.model.classes()), (1, None));
    assert_eq!(info.data.classes.len(), 10);
    let network = "run/network.safetensors";
    place.run(&sample(network, &["-n", "1"])).expect_success();
    place.refuse(&sample(network, &["--class", "3"]), &["not conditional"]);
}

#[test]
fn training_skips_broken_images_by_name() {
    let place = Place::new();
    for name in ["a.png", "b.png"] {
        png(&place.path("data").join(name), SIDE, 3, 1);
    }
    truncated_png(&place.path("data/broken.png"));
    std::fs::write(place.path("data/text.jpg"), "not an image").unwrap();
    let outcome = place.train("data", "run", "2", &[]).expect_success();
    let lines: Vec<&str> = outcome.stderr.lines().filter(|l| l.starts_with("skipped ")).collect();
    assert_eq!(lines.len(), 2, "{outcome:#?}");
    assert!(lines[0].contains("broken.png") && lines[1].contains("text.jpg"), "{outcome:#?}");
    let data = "data: 2 images of 16x16x3 in 1 classes (unlabelled), 2 skipped";
    assert!(outcome.stderr.lines().any(|l| l == data), "{outcome:#?}");
    assert_eq!(read_info(&place.path("run/network.safetensors")).unwrap().data.images, 2);
}

#[test]
fn sample_writes_a_grid_an_archive_or_a_folder() {
    let place = Place::new();
    let each = |out, batch| {
        let more = ["--class", "dog,0", "-n", "2", "--batch", batch, "--seed", "7", "-o", out];
        place.run(&sample(network(), &more)).expect_success()
    };
    assert!(each("grid.png", "3").stdout.contains("wrote grid.png"));
    let grid = place.path("grid.png");
    assert!(image::open(&grid).unwrap().width() > 2 * SIDE as u32);
    let texts = read_png_text(&grid).unwrap();
    assert!(texts.iter().any(|(k, v)| k == "Comment" && v.contains("--seed 7")), "{texts:?}");

    each("four.npz", "4");
    each("single.npz", "1");
    let samples = load_samples(&place.path("four.npz")).unwrap();
    assert_eq!(samples.shape, [4, SIDE, SIDE, 3]);
    assert_eq!(samples.labels, Some(vec![1, 1, 0, 0]));
    assert_eq!(samples, load_samples(&place.path("single.npz")).unwrap(), "batch size matters");

    each("folder", "4");
    let mut names: Vec<String> = std::fs::read_dir(place.path("folder"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["cat_00002.png", "cat_00003.png", "dog_00000.png", "dog_00001.png"]);
    let first = image::open(place.path("folder/dog_00000.png")).unwrap().into_rgb8().into_raw();
    assert_eq!(first, samples.images[..SIDE * SIDE * 3]);
}

#[test]
fn sample_reads_a_runs_state_and_draws_random_classes() {
    let place = Place::new();
    let state = trained().join("state.safetensors");
    for (file, out) in [(state.to_str().unwrap(), "a.npz"), (network(), "b.npz")] {
        let more = ["-n", "3", "--sampler", "ddpm", "--no-clip", "-o", out];
        place.run(&sample(file, &more)).expect_success();
    }
    let drawn = load_samples(&place.path("a.npz")).unwrap();
    assert_eq!(drawn.labels.as_ref().map(Vec::len), Some(3));
    assert_eq!(drawn, load_samples(&place.path("b.npz")).unwrap());
}

#[test]
fn class_names_from_a_file_do_not_leave_the_folder() {
    let place = Place::new();
    let evil = place.changed_config("evil.safetensors", r#""cat""#, r#""../../evil/é""#);
    place.run(&sample(&evil, &["--class", "0", "-n", "1", "-o", "in/side"])).expect_success();
    let names: Vec<_> = std::fs::read_dir(place.path("in/side")).unwrap().collect();
    assert_eq!(names.len(), 1, "{names:?}");
    let name = names[0].as_ref().unwrap().file_name().into_string().unwrap();
    assert!(name.ends_with("evil_é_00000.png"), "{name}");
}

#[test]
fn info_describes_files_and_presets() {
    let place = Place::new();
    let file = place.run(&["info", network(), "--batch", "2"]).expect_success().stdout;
    for part in ["2 steps, 4 images seen", "cat, dog", "parameters", "inference", "training"] {
        assert!(file.contains(part), "{part} is not in {file}");
    }
    let preset = place.run(&["info", "256x256_diffusion"]).expect_success().stdout;
    assert!(preset.contains("parameters  553838086 in 567 tensors"), "{preset}");
    for part in ["% of the largest live set", "launches, largest binding", "recompute   all 6"] {
        assert!(preset.contains(part), "{part} is not in {preset}");
    }
    let within = |budget| place.run(&["info", "64x64_diffusion", "--memory", budget]);
    let some = within("5.75GiB").expect_success().stdout;
    assert!(some.contains("2 of 4 levels, the largest first, for 5.75 GiB: peak 5.7"), "{some}");
    let none = within("8GiB").expect_success().stdout;
    assert!(none.contains("recompute   nothing, for 8.00 GiB"), "{none}");
    within("1GiB").expect_error("the budget is 1.00 GiB", &["at least", "smaller"]);
    place.refuse(&["info", "no_such"], &["no_such", "no such file", "64x64_diffusion"]);
    for batch in ["0", "18446744073709551615", "10000000000000"] {
        place.refuse(&["info", network(), "--batch", batch], &["batch"]);
    }
}

#[test]
fn a_resumed_run_computes_what_an_uninterrupted_one_does() {
    let place = Place::new();
    place.copied_run("run");
    let data = cats_and_dogs();
    let resumed = place
        .run(&["train", data, "--out", "run", "--resume", "--steps", "4", "--sample-every", "0"])
        .expect_success();
    assert!(resumed.stdout.contains("4 steps, 8 images seen"), "{resumed:#?}");
    place.train(data, "whole", "4", &[]).expect_success();
    let read = |run: &str| read_network(&place.path(run).join("state.safetensors")).unwrap();
    let ((info, resumed), (_, whole)) = (read("run"), read("whole"));
    assert_eq!((info.progress.step, info.progress.images_seen), (4, 8));
    assert!(resumed.tensors == whole.tensors, "the states differ");
    let rows = std::fs::read_to_string(place.path("run/metrics.csv")).unwrap();
    let steps: Vec<&str> = rows.lines().filter_map(|l| l.split(',').next()).collect();
    assert_eq!(steps, ["step", "2", "4"]);
}

#[cfg(unix)]
#[test]
fn ctrl_c_saves_and_the_run_can_go_on() {
    let place = Place::new();
    let fixed = ["train", cats_and_dogs(), "--out", "run", "--steps", "1000000"];
    let child = place.command(&[&fixed, &TINY[..], &["--log-every", "1"]].concat()).spawn();
    let child = child.unwrap();
    let begun = std::time::Instant::now();
    let rows = || std::fs::read_to_string(place.path("run/metrics.csv")).unwrap_or_default();
    while rows().lines().count() < 2 && begun.elapsed().as_secs() < 60 {
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    let kill = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status();
    assert!(kill.unwrap().success());
    let outcome = finish(child).expect_success();
    assert!(outcome.stderr.contains("stopping after this step"), "{outcome:#?}");
    assert!(outcome.stdout.contains("--out run --resume"), "{outcome:#?}");
    let step = read_info(&place.path("run/state.safetensors")).unwrap().progress.step;
    assert!((1..1_000_000).contains(&step), "{step}");

    let steps = (step + 1).to_string();
    let more = ["--resume", "--steps", &steps, "--sample-every", "0"];
    place.run(&[&["train", cats_and_dogs(), "--out", "run"], &more[..]].concat()).expect_success();
    let info = read_info(&place.path("run/network.safetensors")).unwrap();
    assert_eq!(info.progress.step, step + 1);
}

#[test]
fn a_closed_pipe_is_no_panic() {
    let place = Place::new();
    let mut child = place.command(&["info", network()]).spawn().unwrap();
    drop(child.stdout.take());
    finish(child).expect_success();
}

#[cfg(unix)]
#[test]
fn arguments_need_not_be_utf8() {
    use std::os::unix::ffi::OsStrExt;
    let place = Place::new();
    let out = std::ffi::OsStr::from_bytes(b"fol\xffder");
    let mut command = place.command(&sample(network(), &["-n", "1", "-o"]));
    finish(command.arg(out).spawn().unwrap()).expect_success();
    assert!(place.path("").join(out).is_dir());
}

// --- what it refuses ---------------------------------------------------------

#[test]
fn usage_errors_name_the_argument() {
    let place = Place::new();
    for (args, mention) in [
        (&["train"][..], "<DATA>"),
        (&["sample", "x", "--lr", "1"], "--lr"),
        (&["train", "x", "--lr", "fast"], "--lr"),
        (&["train", "x", "--steps", "-1"], "-1"),
        (&["sample", "x", "--sampler", "magic"], "--sampler"),
        (&["train", "x", "--noise-schedule", "foo"], "--noise-schedule"),
        (&["paint"], "paint"),
    ] {
        let outcome = place.run(args);
        // The parser's own code, as in most programs.
        assert_eq!(outcome.code, Some(2), "{outcome:#?}");
        assert!(outcome.stderr.starts_with("error: "), "{outcome:#?}");
        assert!(outcome.stderr.contains(mention), "{outcome:#?}");
    }
}

#[test]
fn train_refuses_data_that_cannot_be_used() {
    let place = Place::new();
    place.folder("empty");
    truncated_png(&place.path("broken/only.png"));
    png(&place.path("sizes/a.png"), 16, 3, 0);
    png(&place.path("sizes/b.png"), 32, 3, 0);
    std::fs::write(place.path("notes.txt"), "hello").unwrap();
    atlas(&place.folder("none"), &[]);
    idx(&place.folder("unlabelled"));
    std::fs::remove_file(place.path("unlabelled/train-labels-idx1-ubyte")).unwrap();
    atlas(&place.folder("json"), &["cat"]);
    std::fs::write(place.path("json/atlas.json"), "{").unwrap();
    for (data, mentions) in [
        ("missing", &["missing", "cannot read"][..]),
        ("empty", &["empty", "no .png"]),
        ("broken", &["only.png", "none of the 1 images"]),
        ("sizes", &["a.png is 16x16", "b.png is 32x32", "--image-size"]),
        ("notes.txt", &["notes.txt", "not a data set"]),
        ("none/atlas.png", &["atlas.png", "no images"]),
        ("unlabelled", &["train-labels-idx1-ubyte", "missing"]),
        ("json/atlas.png", &["atlas.json", "not an atlas"]),
    ] {
        place.refuse(&["train", data, "--out", "run"], mentions);
        assert!(!place.path("run").exists(), "{data}");
    }
}

#[test]
fn train_refuses_impossible_options() {
    let place = Place::new();
    let huge = "18446744073709551615";
    for (option, value, mention) in [
        ("--lr", "nan", "learning rate"),
        ("--lr", "-1", "learning rate"),
        ("--steps", "0", "--steps"),
        ("--batch-size", "0", "batch"),
        ("--batch-size", "100000000", "the device allows"),
        ("--batch-size", huge, "the device allows"),
        ("--micro-batch", "0", "batch"),
        ("--micro-batch", "3", "micro-batches of 3"),
        ("--ema-rate", "1", "ema rate 1"),
        ("--weight-decay", "-1", "weight decay"),
        ("--max-grad-norm", "nan", "gradient norm"),
        ("--dropout", "1", "dropout 1"),
        ("--dropout", "-0.5", "dropout -0.5"),
        ("--num-channels", "48", "multiple of 32"),
        ("--num-channels", "0", "model_channels"),
        ("--num-channels", huge, "model_channels"),
        ("--channel-mult", "1,1,1,1,1,1", "halved 5 times"),
        ("--channel-mult", "nan", "multiple of 32"),
        ("--channel-mult", "1e30", "channels"),
        ("--num-res-blocks", "0", "num_res_blocks"),
        ("--num-res-blocks", huge, "num_res_blocks"),
        ("--num-heads", "0", "0 heads"),
        ("--num-heads", "5", "5 heads"),
        ("--num-head-channels", "0", "num_head_channels"),
        ("--num-head-channels", "48", "num_head_channels"),
        ("--attention-resolutions", "7", "attention resolution 7"),
        ("--attention-resolutions", "0", "attention resolution 0"),
        ("--attention-resolutions", "1", "attention resolution 1"),
        ("--diffusion-steps", "1", "diffusion_steps is 1"),
        ("--diffusion-steps", "20", "diffusion_steps is 20"),
        ("--preset", "foo", "`foo`"),
        ("--preset", "64x64_diffusion", "--image-size 64"),
        ("--time-limit", "0", "time limit of 0"),
        ("--time-limit", "nan", "time limit of NaN"),
        ("--time-limit", "1e300", "time limit"),
        ("--channels", "2", "2 channels"),
        ("--image-size", "0", "image size 0"),
        ("--image-size", "100000", "image size 100000"),
        ("--device", "no such card", "`no such card`"),
    ] {
        let fixed = ["train", cats_and_dogs(), "--out", "run", option, value];
        place.refuse(&fixed, &[mention]);
        assert!(!place.path("run").exists(), "{option} {value}");
    }
}

#[test]
fn train_refuses_run_folders_that_do_not_fit() {
    let place = Place::new();
    place.copied_run("run");
    std::fs::write(place.path("file"), "").unwrap();
    let data = cats_and_dogs();
    place.refuse(&["train", data, "--out", "run"], &["run", "--resume"]);
    place.refuse(&["train", data, "--out", "new", "--resume"], &["new", "no run"]);
    // The folder cannot be made, whatever the user's rights.
    for out in ["file", "file/below"] {
        place.refuse(&["train", data, "--out", out], &[out, "cannot create"]);
    }
    atlas(&place.folder("other"), &["cat", "cow"]);
    let resume = ["--out", "run", "--resume", "--steps", "4"];
    let other = [&["train", "other/atlas.png"], &resume[..]].concat();
    place.refuse(&other, &["classes cat, dog", "cat, cow"]);
    // A network is not all of a run; half a state is none.
    let state = place.path("run/state.safetensors");
    std::fs::copy(network(), &state).unwrap();
    let again = [&["train", data], &resume[..]].concat();
    place.refuse(&again, &["state.safetensors", "weights."]);
    let bytes = std::fs::read(&state).unwrap();
    std::fs::write(&state, &bytes[..bytes.len() / 2]).unwrap();
    place.refuse(&again, &["state.safetensors", "not a sound safetensors file"]);
}

#[test]
fn demo_refuses_before_it_trains() {
    let place = Place::new();
    place.copied_run("run");
    for seconds in ["nan", "-1", "1e300"] {
        place.refuse(&["demo", "--seconds", seconds], &["time limit"]);
    }
    place.refuse(&["demo", "--assets", "nowhere"], &["nowhere", "faces16.safetensors"]);
    place.refuse(&["demo", "--out", "run"], &["run", "no demo"]);
    std::fs::create_dir_all(place.path("assets")).unwrap();
    std::fs::copy(network(), place.path("assets/faces16.safetensors")).unwrap();
    place.refuse(&["demo", "--sample-steps", "0"], &["respacing"]);
}

#[test]
fn sample_refuses_files_that_are_no_networks() {
    let place = Place::new();
    let bytes = std::fs::read(network()).unwrap();
    std::fs::write(place.path("half.safetensors"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::write(place.path("text.safetensors"), "not a network at all").unwrap();
    place.folder("folder");
    place.changed_network("bare.safetensors", |file| file.metadata.clear());
    place.changed_network("prose.safetensors", |file| {
        file.metadata.insert("demist".into(), "no JSON".into());
    });
    for (file, mention) in [
        ("missing.safetensors", "cannot read"),
        ("half.safetensors", "not a sound safetensors file"),
        ("text.safetensors", "not a sound safetensors file"),
        ("folder", "a folder"),
        ("bare.safetensors", "no demist configuration"),
        ("prose.safetensors", "configuration cannot be read"),
    ] {
        place.refuse(&["sample", file], &[file, mention]);
        if file != "missing.safetensors" {
            place.refuse(&["info", file], &[file, mention]);
        }
    }
}

#[test]
fn sample_refuses_tensors_that_do_not_fit_the_configuration() {
    let place = Place::new();
    let deeper = place.changed_config("deeper", r#""num_res_blocks":1"#, r#""num_res_blocks":2"#);
    place.refuse(&sample(&deeper, &[]), &["deeper", "does not fit its configuration"]);
    let name = "time_embed.0.bias";
    let reshaped = place.changed_network("reshaped", |file: &mut TensorFile| {
        file.tensors.get_mut(name).unwrap().shape = vec![2, 64];
    });
    place.refuse(&sample(&reshaped, &[]), &["reshaped", name, "[2, 64]", "[128]"]);
    let short = place.changed_network("short", |file| {
        file.tensors.remove(name);
    });
    place.refuse(&sample(&short, &[]), &["short", name, "is missing"]);
}

#[test]
fn configurations_are_not_trusted() {
    let place = Place::new();
    for (from, to, mention) in [
        (r#""image_size":16"#, r#""image_size":4611686018427387904"#, "image_size"),
        (r#""model_channels":32"#, r#""model_channels":1e99"#, "1e+99"),
        (r#""model_channels":32"#, r#""model_channels":320000000"#, "model_channels"),
        (r#""num_head_channels":32"#, r#""num_head_channels":0"#, "num_head_channels"),
        (r#""num_classes":2"#, r#""num_classes":1"#, "2 class names for 1 classes"),
        (r#""num_classes":2"#, r#""num_classes":4000000000"#, "num_classes"),
        (r#""channel_mult":[1.0,1.0]"#, r#""channel_mult":[]"#, "channel_mult"),
        (r#""diffusion_steps":1000"#, r#""diffusion_steps":0"#, "diffusion_steps"),
        (r#""diffusion_steps":1000"#, r#""diffusion_steps":99999999999"#, "diffusion_steps"),
        (r#""batch_size":2"#, r#""batch_size":0"#, "batch"),
        (r#""model":"#, r#""modal":"#, "model"),
    ] {
        let file = place.changed_config("changed.safetensors", from, to);
        place.refuse(&sample(&file, &[]), &[mention]);
        place.refuse(&["info", &file], &[mention]);
    }
    // A network of other images than can be written is one all the same.
    let five = place.changed_config("five", r#""in_channels":3"#, r#""in_channels":5"#);
    place.refuse(&sample(&five, &[]), &["5 channels"]);
}

#[test]
fn sample_refuses_impossible_options() {
    let place = Place::new();
    std::fs::write(place.path("file"), "").unwrap();
    place.folder("folder.png");
    let huge = "18446744073709551615";
    for (more, mentions) in [
        (&["--class", "cow"][..], &["`cow`", "cat, dog"][..]),
        (&["--class", "2"], &["`2`", "cat, dog"]),
        (&["-n", "0"], &["--count"]),
        (&["--batch", "0"], &["--batch"]),
        (&["-n", "1000000", "--batch", "1000000"], &["needs", "the device allows"]),
        (&["-n", huge, "--batch", huge], &["--count"]),
        (&["-n", huge, "--class", "all"], &["--count"]),
        (&["--eta", "2"], &["eta is 2"]),
        (&["--eta", "-1"], &["eta is -1"]),
        (&["--eta", "nan"], &["eta is NaN"]),
        (&["--steps", "foo"], &["\"foo\""]),
        (&["--steps", "ddim999"], &["ddim999"]),
        (&["--steps", "1"], &["\"1\"", "at least 2"]),
        (&["--steps", "1001"], &["\"1001\"", "1000"]),
        (&["--steps", ",,"], &["\",,\""]),
        (&["--out", "nowhere/grid.png"], &["nowhere"]),
        (&["--out", "file"], &["file", "cannot create"]),
        (&["--out", "file/grid.png"], &["file"]),
        (&["--out", "folder.png"], &["folder.png", "is a folder"]),
        (&["--device", "no such card"], &["`no such card`", "0: "]),
        (&["--device", "99"], &["`99`"]),
    ] {
        place.refuse(&[&["sample", network()], more].concat(), mentions);
        assert!(!place.path("samples.png").exists(), "{more:?}");
    }
}

#[test]
fn without_an_adapter_there_is_one_clear_line() {
    let place = Place::new();
    std::fs::write(place.path("none.json"), "{}").unwrap();
    for args in [&["devices"][..], &["sample", network()], &["train", cats_and_dogs()]] {
        let mut command = place.command(args);
        for variable in ["VK_DRIVER_FILES", "VK_ICD_FILENAMES"] {
            command.env(variable, place.path("none.json"));
        }
        let outcome = finish(command.env("WGPU_BACKEND", "vulkan").spawn().unwrap());
        outcome.expect_error(&format!("{args:?}"), &["no GPU adapter found", "Vulkan driver"]);
    }
}
