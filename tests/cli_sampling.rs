//! The commands that draw: cascades, guidance, sweeps, latents.

#[path = "cli/support.rs"]
mod support;

use std::path::Path;
use std::sync::OnceLock;

use demist::output::image::read_png_text;
use demist::output::npz::{Samples, load_samples, save_samples};
use support::{
    Outcome, Place, SIDE, TINY_CLASSIFIER, cats_and_dogs, classifier, network, pixels, png, shared,
    shared_unet,
};

/// A file that comes with the program: tiny networks hardly depend on their input.
fn shipped(name: &str) -> String {
    format!("{}/assets/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A conditional network of small images.
fn small() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "small", &["--image-size", "8"])
}

/// A conditional super-resolution network from these to 16 pixels.
fn enlarger() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "enlarger", &["--small-size", "8"])
}

/// A network that knows images with and without a class.
fn label_dropped() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "dropped", &["--label-dropout", "0.5"])
}

fn unconditional() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "unconditional", &["--unconditional"])
}

fn cosine_classifier() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    let args = [&["train-classifier", "--noise-schedule", "cosine"], &TINY_CLASSIFIER[..]].concat();
    shared(&CELL, "cosine", &args)
}

fn grey() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    shared_unet(&CELL, "grey", &["--channels", "1"])
}

fn sample<'a>(file: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [&["sample", file, "--steps", "2"], more].concat()
}

/// The archive that `sample` writes.
fn archive(place: &Place, file: &str, more: &[&str]) -> Samples {
    place.run(&[&sample(file, more)[..], &["-o", "drawn.npz"]].concat()).expect_success();
    load_samples(&place.path("drawn.npz")).unwrap()
}

/// Size of a picture that says how it was made.
fn picture(path: &Path, command: &str) -> (u32, u32) {
    let texts = read_png_text(path).unwrap();
    let made = |(k, v): &(String, String)| k == "Comment" && v.contains(command);
    assert!(texts.iter().any(made), "{texts:?}");
    let image = image::open(path).unwrap();
    (image.width(), image.height())
}

/// The number before ` unit` on the line of `stdout` that begins with `name`.
fn number(outcome: &Outcome, name: &str, unit: &str) -> f64 {
    let line = outcome.stdout.lines().find(|l| l.starts_with(name)).unwrap();
    let before = line.split_once(unit).unwrap().0.trim();
    before.rsplit(' ').next().unwrap().parse().unwrap()
}

#[test]
fn a_cascade_is_its_stages_one_after_the_other() {
    let place = Place::new();
    let wanted = ["--class", "dog,cat", "-n", "1", "--seed", "7"];
    let up = ["--upsample", enlarger()];
    let cascade = archive(&place, small(), &[&wanted[..], &up].concat());
    assert_eq!(cascade.shape, [2, SIDE, SIDE, 3]);
    assert_eq!(cascade.labels, Some(vec![1, 0]));
    let singly = archive(&place, small(), &[&wanted[..], &up, &["--batch", "1"]].concat());
    assert_eq!(cascade, singly, "the batch size matters");

    // The second stage draws its own noise, and takes labels from the archive.
    let base = archive(&place, small(), &wanted);
    assert_eq!(base.shape, [2, 8, 8, 3]);
    std::fs::rename(place.path("drawn.npz"), place.path("base.npz")).unwrap();
    let second = archive(&place, enlarger(), &["--low-res", "base.npz", "--seed", "8"]);
    assert_eq!(cascade, second);

    let fewer = [&wanted[..], &up, &["--upsample-steps", "3"]].concat();
    assert_ne!(cascade.images, archive(&place, small(), &fewer).images);
    let grid = [&sample(small(), &wanted)[..], &up, &["-o", "grid.png"]].concat();
    place.run(&grid).expect_success();
    assert!(picture(&place.path("grid.png"), "--upsample").1 > 2 * SIDE as u32);
}

#[test]
fn small_images_come_from_archives_folders_and_pictures() {
    let place = Place::new();
    let bytes = pixels(3, 3 * 8 * 8 * 3);
    let save = |name: &str, labels: Option<&[i64]>| {
        save_samples(&place.path(name), &bytes, [3, 8, 8, 3], labels).unwrap();
    };
    save("labelled.npz", Some(&[1, 0, 1]));
    save("bare.npz", None);
    save("other.npz", Some(&[0, 1, 2]));
    save_samples(&place.path("none.npz"), &[], [0, 8, 8, 3], None).unwrap();
    let from = |images, more: &[&str]| {
        archive(&place, enlarger(), &[&["--low-res", images], more].concat())
    };
    let own = from("labelled.npz", &[]);
    assert_eq!((own.shape[0], own.labels.clone()), (3, Some(vec![1, 0, 1])));
    assert_eq!(from("labelled.npz", &["-n", "2"]).labels, Some(vec![1, 0]));
    // One class for all takes the place of the labels.
    let dogs = from("labelled.npz", &["--class", "dog"]);
    assert_eq!(dogs.labels, Some(vec![1; 3]));
    assert_eq!(dogs, from("bare.npz", &["--class", "dog"]));
    assert_eq!(from("bare.npz", &[]).labels.map(|l| l.len()), Some(3));

    png(&place.path("set/dog/a.png"), 8, 3, 1);
    png(&place.path("set/cat/b.png"), 8, 3, 2);
    let mut labels = from("set", &[]).labels.unwrap();
    labels.sort();
    assert_eq!(labels, [0, 1]);
    assert_eq!(from("set/dog/a.png", &["--class", "0"]).labels, Some(vec![0]));

    let refuse = |images, more: &[&str], mentions: &[&str]| {
        let args = [&sample(enlarger(), &["--low-res", images])[..], more].concat();
        place.refuse(&args, mentions);
    };
    refuse("bare.npz", &["--class", "dog,cat"], &["one --class"]);
    refuse("other.npz", &[], &["other.npz", "label 2"]);
    refuse("none.npz", &[], &["none.npz", "no images"]);
    save_samples(&place.path("large.npz"), &pixels(1, 768), [1, 16, 16, 3], None).unwrap();
    refuse("large.npz", &[], &["16x16x3", "8x8x3"]);
    std::fs::write(place.path("text.npz"), "no archive").unwrap();
    refuse("text.npz", &[], &["text.npz", "not a usable .npz archive"]);
    place.folder("empty");
    refuse("empty", &[], &["empty", "no .png"]);
    refuse("missing.npz", &[], &["missing.npz", "cannot read"]);
    place.refuse(&sample(enlarger(), &[]), &["8 pixels", "--low-res"]);
    place.refuse(&sample(network(), &["--low-res", "bare.npz"]), &["super-resolution"]);
}

#[test]
fn cascades_that_do_not_fit_are_refused_before_the_work() {
    let place = Place::new();
    let broken = {
        let mut file = demist::checkpoint::TensorFile::read(Path::new(enlarger())).unwrap();
        file.tensors.remove("out.2.bias");
        file.write(&place.path("broken.safetensors")).unwrap();
        "broken.safetensors"
    };
    for (base, more, mentions) in [
        (network(), &["--upsample", enlarger()][..], &["8 pixels", "16"][..]),
        (small(), &["--upsample", network()], &["network.safetensors", "super-resolution"]),
        (small(), &["--upsample", classifier()], &["network.safetensors", "a classifier"]),
        (small(), &["--upsample", "missing"], &["missing", "cannot read"]),
        (small(), &["--upsample", broken], &["broken", "out.2.bias is missing"]),
        (small(), &["--upsample", enlarger(), "--upsample-steps", "0"], &["\"0\"", "at least 2"]),
        (small(), &["--upsample", enlarger(), "--strip", "2"], &["--strip", "--upsample"]),
    ] {
        place.refuse(&sample(base, more), mentions);
    }
    // The first network has no classes for the second.
    static CELL: OnceLock<String> = OnceLock::new();
    let base = shared_unet(&CELL, "classless", &["--image-size", "8", "--unconditional"]);
    place.refuse(&sample(base, &["--upsample", enlarger()]), &["one of 2 classes", "of none"]);
    assert!(!place.path("samples.png").exists());
}

#[test]
fn a_classifier_guides_and_lends_its_classes() {
    let place = Place::new();
    let wanted = ["--class", "dog", "-n", "2", "--sampler", "ddpm"];
    let plain = archive(&place, network(), &wanted);
    let guided = |scale| {
        let more = ["--classifier", classifier(), "--classifier-scale", scale];
        archive(&place, network(), &[&wanted[..], &more].concat())
    };
    let strong = guided("50");
    assert_eq!(plain, guided("0"));
    assert_ne!(plain.images, strong.images);
    assert_eq!(strong, guided("50"));
    // Without a rule, a classifier guides DDPM.
    let more = ["--classifier", classifier(), "--classifier-scale", "50"];
    let unsaid = archive(&place, network(), &[&wanted[..4], &more].concat());
    assert_eq!(strong, unsaid);

    let more = ["--classifier", classifier(), "--class", "cat,dog", "-n", "1"];
    assert_eq!(archive(&place, unconditional(), &more).labels, Some(vec![0, 1]));
    for (file, classifier, mentions) in [
        (network(), network(), &["network.safetensors", "a classifier is needed"][..]),
        (network(), "missing", &["missing", "cannot read"]),
        (network(), cosine_classifier(), &["noise schedule", "Cosine", "Linear"]),
        (small(), classifier(), &["image size is 16", "8"]),
        (grey(), classifier(), &["channel count is 3", "1"]),
        (classifier(), classifier(), &["a diffusion network is needed"]),
    ] {
        place.refuse(&sample(file, &["--classifier", classifier]), mentions);
    }
    for scale in ["nan", "inf", "1e38"] {
        let more = ["--classifier", classifier(), "--classifier-scale", scale];
        place.refuse(&sample(network(), &more), &["--classifier-scale"]);
    }
    let alone = place.run(&sample(network(), &["--classifier-scale", "2"]));
    assert_eq!(alone.code, Some(2), "{alone:#?}");
    place.refuse(&sample(unconditional(), &["--class", "dog"]), &["not conditional"]);
}

#[test]
fn a_label_dropped_network_guides_itself() {
    let place = Place::new();
    let drawn = |weight| {
        let more = ["--class", "all", "-n", "2", "--guidance", weight];
        archive(&place, label_dropped(), &more)
    };
    let plain = archive(&place, label_dropped(), &["--class", "cat,dog", "-n", "2"]);
    assert_eq!(plain.labels, Some(vec![0, 0, 1, 1]));
    assert_eq!(plain, drawn("1"));
    let strong = drawn("20");
    assert_ne!(plain.images, strong.images);
    assert_eq!(strong, drawn("20"));
    for file in [network(), unconditional()] {
        place.refuse(&sample(file, &["--guidance", "2"]), &["--label-dropout"]);
    }
    place.refuse(&sample(label_dropped(), &["--guidance", "nan"]), &["--guidance"]);
}

#[test]
fn a_strip_shows_the_way_and_half_precision_comes_close() {
    let place = Place::new();
    let more = ["--class", "cat", "-n", "2", "--strip", "5", "-o", "strip.png"];
    place.run(&sample(network(), &more)).expect_success();
    // Two steps have two columns.
    let (width, height) = picture(&place.path("strip.png"), "--strip 5");
    assert!(width > 2 * SIDE as u32 && height > 2 * SIDE as u32);
    for out in ["strip.npz", "folder"] {
        let more = ["--strip", "2", "-o", out];
        place.refuse(&sample(network(), &more), &["--strip", ".png"]);
        assert!(!place.path(out).exists());
    }
    place.refuse(&sample(network(), &["-o", "faces.jpg"]), &["faces.jpg", ".png", ".npz"]);

    let full = archive(&place, &shipped("faces16.safetensors"), &["-n", "2"]);
    let half = archive(&place, &shipped("faces16.safetensors"), &["-n", "2", "--half"]);
    let apart = full.images.iter().zip(&half.images).map(|(a, b)| u32::from(a.abs_diff(*b)));
    let mean = f64::from(apart.sum::<u32>()) / full.images.len() as f64;
    assert!(full.labels == half.labels && mean > 0.0 && mean < 2.0, "{mean}");
}

#[test]
fn a_sweep_is_a_picture_of_classes_and_scales() {
    let place = Place::new();
    let sweep = |file, more: &[&str]| place.run(&[&["sweep", file, "--steps", "2"], more].concat());
    sweep(label_dropped(), &["--scales", "0,1,4,9"]).expect_success();
    let (width, height) = picture(&place.path("sweep.png"), "--scales 0,1,4,9");
    assert!(width > 4 * SIDE as u32 && height > 2 * SIDE as u32);
    let first = std::fs::read(place.path("sweep.png")).unwrap();
    sweep(label_dropped(), &["--scales", "0,1,4,9"]).expect_success();
    assert_eq!(first, std::fs::read(place.path("sweep.png")).unwrap());

    let more = ["--classifier", classifier(), "--class", "dog", "--scales", "0,5", "-o", "c.png"];
    sweep(unconditional(), &more).expect_success();
    picture(&place.path("c.png"), "--classifier");

    for (file, more, mentions) in [
        (network(), &[][..], &["--label-dropout", "--classifier"][..]),
        (unconditional(), &[], &["classes"]),
        (classifier(), &[], &["a diffusion network is needed"]),
        (enlarger(), &["--classifier", classifier()], &["8 pixels"]),
        (label_dropped(), &["--class", "cow"], &["`cow`", "cat, dog"]),
        (label_dropped(), &["--scales", "nan"], &["--scales NaN"]),
        (label_dropped(), &["-o", "sweep.npz"], &["sweep.npz", ".png"]),
        (label_dropped(), &["-o", "nowhere/sweep.png"], &["nowhere"]),
        (network(), &["--classifier", cosine_classifier()], &["noise schedule"]),
    ] {
        place.refuse(&[&["sweep", file, "--steps", "2"], more].concat(), mentions);
    }
}

#[test]
fn images_become_latents_and_images_again() {
    let place = Place::new();
    let invert = |steps, more: &[&str]| {
        let (faces, images) = (shipped("faces16.safetensors"), shipped("faces16_test.png"));
        let fixed = ["invert", &faces, &images, "-n", "2", "--steps", steps];
        place.run(&[&fixed[..], more].concat()).expect_success()
    };
    let coarse = invert("4", &[]);
    picture(&place.path("inverted.png"), "invert");
    let fine = invert("20", &["-o", "latents.npz"]);
    // Smaller steps follow the path better.
    let [coarse, fine] = [coarse, fine].map(|o| number(&o, "round trip", "dB"));
    assert!(fine > coarse + 1.0, "{coarse} dB, {fine} dB");
    let bytes = std::fs::read(place.path("latents.npz")).unwrap();
    let holds = |name: &[u8]| bytes.windows(name.len()).any(|w| w == name);
    assert!(holds(b"latents.npy") && holds(b"(2, 16, 16, 3,"));

    png(&place.path("one.png"), SIDE, 3, 4);
    let one = ["invert", network(), "one.png", "--steps", "2"];
    place.refuse(&one, &["one.png", "2 classes", "--class"]);
    place.run(&[&one[..], &["--class", "dog"]].concat()).expect_success();
    for (file, more, mentions) in [
        (network(), &["--class", "cow"][..], &["`cow`", "cat, dog"][..]),
        (unconditional(), &["--class", "cat"], &["not conditional"]),
        (classifier(), &[], &["a diffusion network is needed"]),
        (enlarger(), &[], &["8 pixels"]),
        (network(), &["-o", "latents"], &["latents", ".npz"]),
        (network(), &["-n", "0"], &["--count"]),
        (network(), &["--steps", "1"], &["at least 2"]),
    ] {
        let fixed = ["invert", file, cats_and_dogs()];
        place.refuse(&[&fixed[..], more].concat(), mentions);
    }
    place.refuse(&["invert", network(), "missing"], &["missing", "cannot read"]);
}

#[test]
fn latents_and_images_are_interpolated() {
    let place = Place::new();
    let ends = ["--from", "1", "--to", "2", "--steps", "2", "--frames", "3"];
    let run = |file, more: &[&str]| {
        place.run(&[&["interpolate", file], &ends[..], more].concat()).expect_success();
    };
    run(network(), &["--class", "cat,dog"]);
    let path = place.path("interpolation.png");
    let (width, height) = picture(&path, "--from 1 --to 2");
    assert!(width > 3 * SIDE as u32 && height > 2 * SIDE as u32);
    let first = std::fs::read(&path).unwrap();
    run(network(), &["--class", "cat,dog"]);
    assert_eq!(first, std::fs::read(&path).unwrap());
    run(unconditional(), &["-o", "plain.png"]);

    png(&place.path("one.png"), SIDE, 3, 4);
    let images = ["--from", "one.png", "--to", "3", "--steps", "2", "--class", "cat"];
    place.run(&[&["interpolate", network()], &images[..]].concat()).expect_success();
    for (file, from, more, mentions) in [
        (network(), "1", &[][..], &["--class", "cat, dog"][..]),
        (network(), "1", &["--class", "cow"], &["`cow`"]),
        (network(), "missing.png", &["--class", "cat"], &["`missing.png`", "number"]),
        (network(), "4294967296", &["--class", "cat"], &["`4294967296`", "4294967295"]),
        (unconditional(), "1", &["--class", "cat"], &["not conditional"]),
        (unconditional(), "1", &["--frames", "1"], &["--frames"]),
        (unconditional(), "1", &["--frames", "18446744073709551615"], &["--frames"]),
        (unconditional(), "1", &["-o", "x.npz"], &["x.npz", ".png"]),
        (classifier(), "1", &[], &["a diffusion network is needed"]),
        (enlarger(), "1", &["--class", "cat"], &["8 pixels"]),
    ] {
        let fixed = ["interpolate", file, "--from", from, "--to", "2"];
        place.refuse(&[&fixed[..], more].concat(), mentions);
    }
}
