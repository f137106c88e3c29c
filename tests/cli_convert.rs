//! Networks from and to other programs: `import`, `export`, and training that
//! starts from a network (`train --init`).

#[path = "cli/support.rs"]
mod support;

use std::path::Path;
use std::sync::OnceLock;

use demist::checkpoint::{NetworkInfo, TensorFile, read_network};
use demist::diffusion::{MeanType, NoiseSchedule, VarType};
use demist::output::npz::load_samples;
use support::{
    Outcome, Place, SIDE, TINY, atlas, cats_and_dogs, classifier, network, png, shared_unet,
    trained,
};

/// A network of which shapes tell little: two rows of classes and one for none,
/// an odd process.
fn odd() -> &'static str {
    static CELL: OnceLock<String> = OnceLock::new();
    let process = ["--noise-schedule", "cosine", "--diffusion-steps", "200", "--predict-xstart"];
    let more = ["--label-dropout", "0.3", "--learn-log-variance", "--rescale-timesteps"];
    shared_unet(&CELL, "odd", &[&process[..], &more].concat())
}

fn golden(name: &str) -> String {
    format!("{}/tests/golden/pt/{name}", env!("CARGO_MANIFEST_DIR"))
}

/// A network without its configuration.
fn read(path: &Path) -> (NetworkInfo, TensorFile) {
    let (info, mut file) = read_network(path).unwrap();
    file.metadata.clear();
    (info, file)
}

/// The `import` command that `export` says leads back.
fn way_back(outcome: &Outcome) -> Vec<String> {
    let line = outcome.stdout.lines().find_map(|l| l.strip_prefix("way back:   demist "));
    line.unwrap().split(' ').map(str::to_owned).collect()
}

#[test]
fn a_pytorch_checkpoint_is_imported_and_drawn_from() {
    let place = Place::new();
    let file = golden("model_fp32.pt");
    let import = ["import", &file, "--image-size", "8", "--num-heads", "2"];
    let outcome = place.run(&import).expect_success();
    for part in ["wrote       network.safetensors (143 tensors)", "8x8 pixels", "2 heads"] {
        assert!(outcome.stdout.contains(part), "{part}: {outcome:#?}");
    }
    let info = place.run(&["info", "network.safetensors"]).expect_success().stdout;
    for part in ["imported    from", "conditional on 4 classes", "LearnedRange"] {
        assert!(info.contains(part), "{part}: {info}");
    }
    let sample = ["sample", "network.safetensors", "--steps", "2"];
    let drawn = |more: &[&str]| {
        place.run(&[&sample[..], more, &["-o", "drawn.npz"]].concat()).expect_success();
        load_samples(&place.path("drawn.npz")).unwrap()
    };
    let samples = drawn(&["--class", "3,0", "-n", "1"]);
    assert_eq!((samples.shape, samples.labels.clone()), ([2, 8, 8, 3], Some(vec![3, 0])));
    assert_eq!(samples, drawn(&["--class", "3,0", "-n", "1"]));
    // Classes without names are numbers.
    place.refuse(&[&sample[..], &["--class", "4"]].concat(), &["`4`", "0 to 3"]);

    let half = [&import[..], &["--half", "-o", "half.safetensors"]].concat();
    place.run(&half).expect_success();
    let size = |name: &str| std::fs::metadata(place.path(name)).unwrap().len();
    assert!(size("half.safetensors") < size("network.safetensors") * 6 / 10);
    // The classes of a set of as many are these.
    atlas(&place.folder("four"), &["a", "b", "c", "d"]);
    let four = ["evaluate", "half.safetensors", "four/atlas.png"];
    place.run(&four).expect_success();
}

#[test]
fn import_refuses_what_is_no_network() {
    let place = Place::new();
    let model = golden("model_fp32.pt");
    place.folder("empty");
    std::fs::write(place.path("text.pt"), "no checkpoint, whatever its name says").unwrap();
    let bytes = std::fs::read(&model).unwrap();
    std::fs::write(place.path("half.pt"), &bytes[..bytes.len() / 2]).unwrap();
    std::fs::copy(&model, place.path("self.pt")).unwrap();
    let hints = ["--image-size", "8", "--num-heads", "2"];
    for (file, more, mentions) in [
        ("missing", &[][..], &["missing", "cannot read"][..]),
        ("empty", &[], &["empty", "config.json"]),
        ("text.pt", &[], &["text.pt"]),
        ("half.pt", &hints[..], &["half.pt"]),
        (network(), &[], &["network.safetensors", "already"]),
        (&golden("kinds_zip.pt"), &[], &["kinds_zip.pt", "no network"]),
        (&golden("config.json"), &[], &["config.json"]),
        (&model, &[], &["model_fp32.pt", "--image-size"]),
        (&model, &["--image-size", "7"], &["image_size 7"]),
        (&model, &["--image-size", "0"], &["image_size 0"]),
        (&model, &["--image-size", "8", "--num-heads", "3"], &["3 heads"]),
        (&model, &["--preset", "foo"], &["`foo`", "64x64_diffusion"]),
        (&model, &["--preset", "64x64_diffusion"], &["does not fit", "time_embed.0.weight"]),
        (&model, &["--image-size", "8", "-o", "nowhere/x"], &["nowhere"]),
        ("self.pt", &["--image-size", "8", "-o", "self.pt"], &["self.pt", "--out"]),
    ] {
        place.refuse(&[&["import", file], more].concat(), mentions);
        assert!(!place.path("network.safetensors").exists(), "{file} {more:?}");
    }
    assert_eq!(std::fs::read(place.path("self.pt")).unwrap(), bytes);
    // Other commands say what to do with such a file.
    for command in ["info", "sample"] {
        place.refuse(&[command, &model], &["model_fp32.pt", "demist import"]);
    }
    let run = trained().to_str().unwrap();
    place.refuse(&["sample", run], &["a folder", "network.safetensors"]);
}

#[test]
fn what_is_exported_comes_back_the_same() {
    let place = Place::new();
    for (name, file) in [("plain", network()), ("odd", odd()), ("classifier", classifier())] {
        let out = format!("{name}.safetensors");
        let outcome = place.run(&["export", file, "-o", &out]).expect_success();
        assert!(outcome.stdout.contains("load_state_dict"), "{outcome:#?}");
        let back = format!("{name}_back.safetensors");
        let command = [way_back(&outcome), vec!["-o".into(), back.clone()]].concat();
        place.run(&command).expect_success();
        let ((ours, before), (theirs, after)) = (read(Path::new(file)), read(&place.path(&back)));
        assert!(before.tensors == after.tensors, "{name}: the tensors differ");
        assert_eq!(ours.diffusion.diffusion_steps, theirs.diffusion.diffusion_steps, "{name}");
        assert_eq!(ours.model.classes(), theirs.model.classes(), "{name}");
        if let Ok(model) = theirs.model.unet() {
            let first = ours.model.unet().unwrap();
            assert_eq!((model.null_class, model.small_size), (first.null_class, None), "{name}");
        }
        // The same network: it draws, or judges, the same.
        let result = |file: &str| {
            let command = if name == "classifier" { "evaluate" } else { "sample" };
            let data = if name == "classifier" { vec![cats_and_dogs()] } else { vec![] };
            let options = ["--steps", "2", "-n", "2"];
            let args = [&[command, file], &data[..], &options].concat();
            let printed = place.run(&args).expect_success().stdout;
            let picture = place.path("samples.png");
            let pixels = picture.exists().then(|| image::open(&picture).unwrap().into_rgb8());
            (printed, pixels.map(image::ImageBuffer::into_raw))
        };
        assert_eq!(result(file), result(&back), "{name}");
    }
    let (info, _) = read(&place.path("odd_back.safetensors"));
    let d = info.diffusion;
    assert_eq!((d.noise_schedule, d.mean_type), (NoiseSchedule::Cosine, MeanType::XStart));
    assert_eq!((d.var_type, d.rescale_timesteps), (VarType::Learned, true));

    std::fs::copy(network(), place.path("self.safetensors")).unwrap();
    std::fs::write(place.path("file"), "").unwrap();
    let state = trained().join("state.safetensors");
    for (file, more, mentions) in [
        ("self.safetensors", &["-o", "self.safetensors"][..], &["self", "--out"][..]),
        (state.to_str().unwrap(), &["-o", "x"], &["state.safetensors", "network.safetensors"]),
        (network(), &["-o", "nowhere/x"], &["nowhere"]),
        (classifier(), &["-o", "x", "--format", "diffusers"], &["network", "a classifier"]),
        (network(), &["-o", "file", "--format", "diffusers"], &["file", "cannot create"]),
        ("missing", &["-o", "x"], &["missing", "cannot read"]),
    ] {
        place.refuse(&[&["export", file], more].concat(), mentions);
        assert!(!place.path("x").exists(), "{file} {more:?}");
    }
}

#[test]
fn a_diffusers_folder_comes_back_the_same() {
    let place = Place::new();
    static CELL: OnceLock<String> = OnceLock::new();
    let more = ["--no-scale-shift-norm", "--no-resblock-updown", "--unconditional"];
    let file = shared_unet(&CELL, "plain", &more);
    place.run(&["export", file, "--format", "diffusers", "-o", "folder"]).expect_success();
    place.run(&["import", "folder", "-o", "back.safetensors"]).expect_success();
    let ((_, before), (_, after)) = (read(Path::new(file)), read(&place.path("back.safetensors")));
    assert!(before.tensors == after.tensors, "the tensors differ");
    let drawn = |file: &str| {
        place.run(&["sample", file, "--steps", "2", "-o", "drawn.npz"]).expect_success();
        load_samples(&place.path("drawn.npz")).unwrap()
    };
    assert_eq!(drawn(file), drawn("back.safetensors"));
}

/// Trains for a step in `out` from the network `init`.
fn start(place: &Place, data: &str, out: &str, init: &str, more: &[&str]) -> Outcome {
    let fixed = ["train", data, "--out", out, "--init", init, "--steps", "1"];
    place.run(&[&fixed[..], &TINY[4..], more].concat())
}

#[test]
fn training_starts_from_a_network() {
    let place = Place::new();
    let weights = |out: &str| read(&place.path(out).join("network.safetensors"));
    // At a rate of next to nothing, what comes out is what went in.
    let still = ["--lr", "1e-12"];
    let state = trained().join("state.safetensors");
    start(&place, cats_and_dogs(), "state", state.to_str().unwrap(), &still).expect_success();
    let (_, before) = read(Path::new(network()));
    let (info, after) = weights("state");
    for (name, tensor) in &after.tensors {
        let (a, b) = (tensor.to_f32().unwrap(), before.tensors[name].to_f32().unwrap());
        assert!(a.iter().zip(b.iter()).all(|(a, b)| (a - b).abs() < 1e-6), "{name}");
    }
    assert_eq!((info.progress.step, info.data.classes.len()), (1, 2));

    // The data tell the size of the images that a checkpoint leaves open.
    for (i, name) in ["a/1.png", "b/2.png"].iter().enumerate() {
        png(&place.path("small").join(name), 8, 3, i);
    }
    let file = golden("model_fp32.pt");
    let heads = ["--lr", "1e-12", "--num-heads", "2"];
    let outcome = start(&place, "small", "golden", &file, &heads).expect_success();
    let anew: Vec<&str> = outcome.stderr.lines().filter(|l| l.ends_with("begins anew")).collect();
    assert_eq!(anew.len(), 1, "{outcome:#?}");
    assert!(anew[0].starts_with("label_emb.weight "), "{outcome:#?}");
    let (info, _) = weights("golden");
    assert_eq!((info.model.image_size(), info.model.classes()), (8, Some(2)));
    assert_eq!(info.diffusion.var_type, VarType::LearnedRange);

    // Other outputs begin anew; the row for no class stays.
    let outcome = start(&place, cats_and_dogs(), "outputs", odd(), &["--sigma-small"]);
    let outcome = outcome.expect_success();
    assert!(outcome.stderr.contains("out.2.weight is not all in the file"), "{outcome:#?}");
    assert!(!outcome.stderr.contains("label_emb"), "{outcome:#?}");
    let (info, _) = weights("outputs");
    let model = info.model.unet().unwrap();
    assert_eq!((model.out_channels, model.null_class, model.image_size), (3, true, SIDE));
}

#[test]
fn networks_that_do_not_fit_are_not_started_from() {
    let place = Place::new();
    place.copied_run("run");
    for (init, more, mentions) in [
        ("missing", &[][..], &["missing", "cannot read"][..]),
        (&golden("kinds_zip.pt"), &[], &["kinds_zip.pt", "no network"]),
        (classifier(), &[], &["network.safetensors", "a diffusion network is needed"]),
        (network(), &["--num-channels", "64"], &["--num-channels contradicts"]),
        (network(), &["--channel-mult", "1"], &["--channel-mult contradicts"]),
        (network(), &["--small-size", "8"], &["--small-size contradicts"]),
        (network(), &["--num-heads", "2"], &["--num-heads contradicts"]),
        (network(), &["--attention-resolutions", "16"], &["--attention-resolutions contradicts"]),
        (network(), &["--no-resblock-updown"], &["--no-resblock-updown contradicts"]),
        (network(), &["--channels", "1"], &["3 channels", "--channels"]),
        (network(), &["--preset", "64x64_diffusion"], &["no preset"]),
    ] {
        let fixed = ["train", cats_and_dogs(), "--out", "new", "--init", init];
        place.refuse(&[&fixed[..], more].concat(), mentions);
        assert!(!place.path("new").exists(), "{init} {more:?}");
    }
    let both = ["train", cats_and_dogs(), "--out", "run", "--resume", "--init", network()];
    let outcome = place.run(&both);
    assert_eq!(outcome.code, Some(2), "{outcome:#?}");
}
