//! The options of `train` beyond the plain run: objectives, conditioning,
//! averages, validation, memory and precision.

#[path = "cli/support.rs"]
mod support;

use std::collections::BTreeSet;

use demist::checkpoint::{NetworkInfo, read_info, read_network};
use demist::diffusion::{LossType, MeanType, TimestepWeights, VarType};
use support::{Outcome, Place, TINY, atlas, cats_and_dogs, png};

fn train(place: &Place, out: &str, more: &[&str]) -> Outcome {
    let fixed = ["train", cats_and_dogs(), "--out", out];
    // Whoever wants samples says so.
    let tiny = if more.contains(&"--sample-every") { &TINY[..6] } else { &TINY[..] };
    place.run(&[&fixed[..], tiny, more].concat())
}

/// A run of two steps, and what its network says.
fn trained(place: &Place, out: &str, more: &[&str]) -> NetworkInfo {
    let outcome = train(place, out, &[&["--steps", "2"], more].concat()).expect_success();
    assert!(outcome.stdout.contains("2 steps, 4 images seen"), "{outcome:#?}");
    let (info, file) = read_network(&place.path(out).join("network.safetensors")).unwrap();
    for (name, tensor) in &file.tensors {
        assert!(tensor.to_f32().unwrap().iter().all(|v| v.is_finite()), "{name}");
    }
    info
}

/// The columns of a run's metrics.
fn columns(place: &Place, out: &str) -> BTreeSet<String> {
    let text = std::fs::read_to_string(place.path(out).join("metrics.csv")).unwrap();
    text.lines().next().unwrap().split(',').map(str::to_owned).collect()
}

#[test]
fn objectives_are_what_the_file_says() {
    let place = Place::new();
    for (out, more, (mean, variance, loss)) in [
        (
            "hybrid",
            &["--learn-sigma", "--rescale-learned-sigmas"][..],
            (MeanType::Epsilon, VarType::LearnedRange, LossType::RescaledMse),
        ),
        (
            "bound",
            &["--learn-log-variance", "--use-kl", "--loss-second-moment"],
            (MeanType::Epsilon, VarType::Learned, LossType::RescaledKl),
        ),
        (
            "image",
            &["--predict-xstart", "--sigma-small"],
            (MeanType::XStart, VarType::FixedSmall, LossType::Mse),
        ),
    ] {
        let info = trained(&place, out, more);
        let d = &info.diffusion;
        assert_eq!((d.mean_type, d.var_type, d.loss_type), (mean, variance, loss), "{out}");
        let outputs = if variance.is_learned() { 6 } else { 3 };
        assert_eq!(info.model.unet().unwrap().out_channels, outputs, "{out}");
        let has = |name: &str| columns(&place, out).iter().any(|c| c.starts_with(name));
        assert_eq!(has("vb"), variance.is_learned(), "{out}");
        assert_eq!(has("mse"), loss != LossType::RescaledKl, "{out}");
        // It draws.
        let network = format!("{out}/network.safetensors");
        let sample = ["sample", &network, "--steps", "2", "--sampler", "ddpm", "-n", "1"];
        place.run(&sample).expect_success();
    }
    let info = read_info(&place.path("bound/network.safetensors")).unwrap();
    assert_eq!(info.training.timestep_weights, TimestepWeights::LossSecondMoment);
    let both = train(&place, "both", &["--learn-sigma", "--learn-log-variance"]);
    assert_eq!(both.code, Some(2), "{both:#?}");
    assert!(both.stderr.contains("--learn-log-variance"), "{both:#?}");
}

#[test]
fn a_history_of_losses_and_half_precision_survive_a_resume() {
    let place = Place::new();
    let more = ["--loss-second-moment", "--half", "--lr-warmup", "3"];
    let data = cats_and_dogs();
    train(&place, "whole", &[&["--steps", "4"], &more[..]].concat()).expect_success();
    let stopped = train(&place, "run", &[&["--images", "4"], &more[..]].concat()).expect_success();
    assert!(stopped.stdout.contains("2 steps, 4 images seen"), "{stopped:#?}");
    let resume =
        ["train", data, "--out", "run", "--resume", "--images", "8", "--sample-every", "0"];
    place.run(&resume).expect_success();
    let read = |run: &str| read_network(&place.path(run).join("state.safetensors")).unwrap();
    let ((info, resumed), (_, whole)) = (read("run"), read("whole"));
    assert_eq!((info.progress.step, info.training.half), (4, true));
    for name in ["sampler.losses", "sampler.counts", "loss_scale"] {
        assert!(resumed.tensors[name] == whole.tensors[name], "{name}");
    }
}

#[test]
fn averages_validation_and_memory() {
    let place = Place::new();
    let averages = ["--ema-rate", "0.5,0.9", "--validation", cats_and_dogs(), "--eval-every", "1"];
    let memory = ["--eval-images", "2", "--memory", "1GiB", "--random-crop", "--flip"];
    let fixed = ["--steps", "2"];
    let args = [&fixed[..], &averages, &memory].concat();
    let outcome = train(&place, "run", &args).expect_success();
    assert!(outcome.stderr.contains("memory: ") && outcome.stderr.contains("of 1.00 GiB"));
    for part in ["step 1: validation loss", "step 2: validation loss", "run/best.safetensors"] {
        assert!(outcome.stdout.contains(part), "{part}: {outcome:#?}");
    }
    let info = read_info(&place.path("run/best.safetensors")).unwrap();
    assert_eq!(info.training.ema_rates, [0.5, 0.9]);
    let (_, state) = read_network(&place.path("run/state.safetensors")).unwrap();
    let (_, first) = read_network(&place.path("run/network.safetensors")).unwrap();
    let (_, second) = read_network(&place.path("run/network_ema_0.9.safetensors")).unwrap();
    let name = "out.2.bias";
    assert!(state.tensors[&format!("ema.{name}")] == first.tensors[name]);
    assert!(state.tensors[&format!("ema1.{name}")] == second.tensors[name]);

    // Less memory recomputes; the least is told where it does not do.
    place.refuse(
        &[&["train", cats_and_dogs(), "--out", "no"], &TINY[..], &["--memory", "1MiB"]].concat(),
        &["needs at least", "1.00 MiB"],
    );
    for memory in ["0", "lots", "1 parsec"] {
        let outcome = train(&place, "no", &["--memory", memory]);
        assert_eq!(outcome.code, Some(2), "{outcome:#?}");
        assert!(outcome.stderr.contains("--memory"), "{outcome:#?}");
    }
    assert!(!place.path("no").exists());
}

#[test]
fn classes_can_be_left_out_and_small_images_be_given() {
    let place = Place::new();
    let info = trained(&place, "dropped", &["--label-dropout", "0.5"]);
    let model = info.model.unet().unwrap();
    assert_eq!((model.num_classes, model.null_class), (Some(2), true));
    let said = place.run(&["info", "dropped/network.safetensors"]).expect_success().stdout;
    assert!(said.contains("2 classes, or on none (classifier-free guidance)"), "{said}");

    let info = trained(&place, "enlarger", &["--small-size", "8", "--sample-every", "2"]);
    assert_eq!(info.model.unet().unwrap().small_size, Some(8));
    assert!(place.path("enlarger/samples/step_0000002.png").is_file());
    let said = place.run(&["info", "enlarger/network.safetensors", "--half"]).expect_success();
    assert!(said.stdout.contains("enlarges images of 8x8 pixels"), "{said:#?}");

    // Without classes, a validation set may have any.
    atlas(&place.folder("other"), &["ape", "bee", "cow"]);
    let more = ["--unconditional", "--validation", "other/atlas.png", "--eval-images", "2"];
    trained(&place, "unconditional", &more);

    png(&place.path("plain/a.png"), 16, 3, 0);
    for (data, more, mentions) in [
        ("plain", &["--label-dropout", "0.1"][..], &["--label-dropout", "classes"][..]),
        (cats_and_dogs(), &["--label-dropout", "0.1", "--unconditional"], &["--unconditional"]),
        (cats_and_dogs(), &["--label-dropout", "1"], &["label dropout 1"]),
        (cats_and_dogs(), &["--label-dropout", "nan"], &["label dropout NaN"]),
        (cats_and_dogs(), &["--small-size", "0"], &["small_size 0"]),
        (cats_and_dogs(), &["--small-size", "32"], &["small_size 32"]),
        (cats_and_dogs(), &["--images", "0"], &["--steps"]),
        (cats_and_dogs(), &["--ema-rate", "0.9,nan"], &["ema rate NaN"]),
        (cats_and_dogs(), &["--ema-rate", "0,0,0,0,0,0,0,0,0"], &["9 EMA rates", "1 to 8"]),
        (cats_and_dogs(), &["--validation", "missing"], &["missing", "cannot read"]),
        (cats_and_dogs(), &["--validation", "other/atlas.png"], &["ape, bee, cow", "cat, dog"]),
        (cats_and_dogs(), &["--preset", "64x64_classifier"], &["`64x64_classifier`", "iddpm"]),
    ] {
        place.refuse(&[&["train", data, "--out", "no"], more].concat(), mentions);
        assert!(!place.path("no").exists(), "{more:?}");
    }
}
