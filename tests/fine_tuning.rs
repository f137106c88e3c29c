//! Starting from a network that exists: what is read from which file, what is
//! taken over, and what begins anew.

mod common;
mod harness;
mod tiny;

use demist::Error;
use demist::checkpoint::{Imported, read_any, read_network};
use demist::model::{Hints, ModelConfig, UNetConfig, initialise, model_params};
use demist::recipe::TrainConfig;
use demist::train::{RunOptions, StopFlag, train};
use std::path::{Path, PathBuf};
use tiny::{bits, context, encoder, file_bits, halves, info, run_options, short, unet};

fn training(steps: u64) -> TrainConfig {
    TrainConfig {
        batch_size: 2,
        micro_batch: 2,
        lr: 1e-2,
        ema_rates: vec![0.5, 0.9],
        ema_warmup: false,
        steps,
        ..Default::default()
    }
}

fn run(model: &ModelConfig, steps: u64, options: &RunOptions) -> demist::Result<()> {
    let info = info(model.clone(), short(8), training(steps));
    let stop = StopFlag::default();
    train(context(), halves(), info, options, &stop, &mut |_| Ok(())).map(|_| ())
}

/// A run of three steps.
fn base(model: &ModelConfig) -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    run(model, 3, &run_options(root.path())).unwrap();
    root
}

fn read(path: &Path) -> Imported {
    read_any(path, None, &Hints::default()).unwrap()
}

fn with_prefix(path: &Path, prefix: &str) -> Vec<(String, Vec<u32>)> {
    let strip = |(name, v): (String, Vec<u32>)| Some((name.strip_prefix(prefix)?.to_owned(), v));
    file_bits(path).into_iter().filter_map(strip).collect()
}

fn tensors(network: &Imported) -> Vec<(String, Vec<u32>)> {
    let all = network.tensors.tensors.iter();
    all.map(|(name, t)| (name.clone(), bits(&t.to_f32().unwrap()))).collect()
}

#[test]
fn own_files_are_read_by_what_they_hold() {
    for model in [ModelConfig::UNet(unet()), ModelConfig::Encoder(encoder())] {
        let root = base(&model);
        let file = |name: &str| root.path().join(name);
        let network = read(&file("network.safetensors"));
        assert_eq!((&network.model, &network.diffusion), (&model, &short(8)));
        assert_eq!(network.preset, None);
        assert!(tensors(&network) == file_bits(&file("network.safetensors")));
        // Of a state the first average.
        let state = read(&file("state.safetensors"));
        assert!(tensors(&state) == with_prefix(&file("state.safetensors"), "ema."));
        assert_eq!(state, network);
        let second = read(&file("network_ema_0.9.safetensors"));
        assert!(tensors(&second) != tensors(&network));
    }
    let missing = read_any(Path::new("no such file"), None, &Hints::default());
    assert!(matches!(missing, Err(Error::Io { .. })), "{missing:?}");
}

#[test]
fn checkpoints_of_pytorch_start_a_run() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pt");
    let hints = Hints { image_size: Some(8), num_heads: Some(2), ..Hints::default() };
    let network = read_any(&folder.join("model_fp32.pt"), None, &hints).unwrap();
    let (values, fresh) = network.initial(&network.model, 0).unwrap();
    assert!(fresh.is_empty(), "{fresh:?}");
    let params = model_params(&network.model).unwrap();
    for (p, value) in params.iter().zip(&values) {
        let stored = network.tensors.tensors[&p.name].to_f32().unwrap();
        assert!(bits(&p.to_device(&stored)) == bits(value), "{}", p.name);
    }
}

#[test]
fn what_fits_is_taken_over_and_the_rest_is_named() {
    let model = unet();
    let root = base(&ModelConfig::UNet(model.clone()));
    let network = read(&root.path().join("network.safetensors"));
    let label = ["label_emb.weight"];
    let out = ["out.2.weight", "out.2.bias"];
    let cases: [(&[&str], UNetConfig); 5] = [
        (&[], model.clone()),
        (&label, UNetConfig { num_classes: Some(3), ..model.clone() }),
        (&label, UNetConfig { null_class: true, ..model.clone() }),
        (&[], UNetConfig { num_classes: None, ..model.clone() }),
        (&out, UNetConfig { out_channels: 6, ..model.clone() }),
    ];
    for (wanted, other) in cases {
        let other = ModelConfig::UNet(other);
        let (values, fresh) = network.initial(&other, 7).unwrap();
        assert_eq!(fresh, wanted, "{other:?}");
        let params = model_params(&other).unwrap();
        let drawn = initialise(&params, 7);
        for ((p, value), drawn) in params.iter().zip(&values).zip(&drawn) {
            // The rows that both have are the file's, further ones are drawn.
            let mut want = p.to_file(drawn);
            let stored = network.tensors.tensors[&p.name].to_f32().unwrap();
            let common = want.len().min(stored.len());
            want[..common].copy_from_slice(&stored[..common]);
            assert!(bits(value) == bits(&p.to_device(&want)), "{}", p.name);
        }
    }
    let others = [
        ModelConfig::UNet(UNetConfig { model_channels: 64, ..model }),
        ModelConfig::Encoder(demist::model::EncoderConfig { model_channels: 64, ..encoder() }),
    ];
    for other in others {
        let error = network.initial(&other, 7).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{error:?}");
        assert!(error.to_string().contains("another network"), "{error}");
    }
}

#[test]
fn a_run_begins_with_what_it_is_given() {
    let model = ModelConfig::UNet(unet());
    let root = base(&model);
    let network = read(&root.path().join("network.safetensors"));
    let (values, _) = network.initial(&model, 0).unwrap();
    let place = tempfile::tempdir().unwrap();
    let options =
        RunOptions { initial: Some(values.clone()), ..run_options(&place.path().join("tuned")) };
    // Without a step, all sets are what was given, and the moments are zero.
    run(&model, 0, &options).unwrap();
    let state = options.folder.as_ref().unwrap().join("state.safetensors");
    for prefix in ["weights.", "ema.", "ema1."] {
        assert!(with_prefix(&state, prefix) == tensors(&network), "{prefix}");
    }
    let moments = with_prefix(&state, "exp_avg");
    assert!(!moments.is_empty() && moments.iter().all(|(_, v)| v.iter().all(|v| *v == 0)));
    let (saved, _) = read_network(&state).unwrap();
    assert_eq!((saved.progress.step, saved.progress.images_seen), (0, 0));

    // With steps, it differs from a run that begins at random.
    run(&model, 2, &options).unwrap();
    let tuned = with_prefix(&state, "weights.");
    let plain = run_options(&place.path().join("plain"));
    run(&model, 2, &plain).unwrap();
    assert!(
        tuned != with_prefix(&plain.folder.as_ref().unwrap().join("state.safetensors"), "weights.")
    );
    assert!(tuned != tensors(&network));

    // Values of another network.
    let mut short = values.clone();
    short.pop();
    let mut odd = values;
    odd[3].push(0.0);
    for wrong in [short, odd] {
        let options = RunOptions { initial: Some(wrong), ..options.clone() };
        let error = run(&model, 1, &options).unwrap_err();
        assert!(matches!(error, Error::Shape { .. }), "{error:?}");
    }
}
