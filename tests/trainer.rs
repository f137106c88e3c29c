//! The front door for training and classifying, as a program that embeds the library
//! uses it, and that it does what a run in a folder does.

mod common;
mod harness;
mod tiny;

use demist::checkpoint::read_info;
use demist::data::Dataset;
use demist::model::{EncoderConfig, ModelConfig, UNetConfig};
use demist::recipe::TrainConfig;
use demist::train::{RunOptions, StopFlag, train};
use demist::{
    Classes, Classifier, Device, DeviceOptions, DrawRequest, EvaluationRequest, Generator, Network,
    Prepared, Trainer, TrainerOptions, block_on,
};
use std::ops::ControlFlow::{Break, Continue};
use std::path::Path;
use std::sync::OnceLock;
use tiny::{
    CLASSES, LEN, SIDE, batch, context, encoder, file_bits, halves, info, run_options, short, unet,
};

const STEPS: u64 = 4;

fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| block_on(Device::open(DeviceOptions::default())).unwrap())
}

fn training() -> TrainConfig {
    TrainConfig { batch_size: 4, micro_batch: 2, lr: 1e-3, steps: STEPS, ..Default::default() }
}

fn options(model: ModelConfig) -> TrainerOptions {
    TrainerOptions {
        model: Some(model),
        diffusion: Some(short(8)),
        training: training(),
        ..Default::default()
    }
}

fn trainer(model: ModelConfig) -> Trainer {
    block_on(Trainer::new(device(), halves(), options(model))).unwrap()
}

fn saved(trainer: &Trainer, path: &Path) -> Vec<(String, Vec<u32>)> {
    block_on(trainer.save(path)).unwrap();
    file_bits(path)
}

#[test]
fn steps_compute_what_a_run_in_a_folder_does() {
    let root = tempfile::tempdir().unwrap();
    for (name, model) in
        [("unet", ModelConfig::UNet(unet())), ("encoder", ModelConfig::Encoder(encoder()))]
    {
        let folder = root.path().join(name);
        let (described, stop) = (info(model.clone(), short(8), training()), StopFlag::default());
        let options = run_options(&folder);
        train(context(), halves(), described, &options, &stop, &mut |_| Ok(())).unwrap();

        let mut straight = trainer(model.clone());
        let mut seen = Vec::new();
        let losses = block_on(straight.train(STEPS, &mut |step| {
            seen.push((step.done, step.progress.images_seen));
            Continue(())
        }));
        let losses = losses.unwrap().unwrap();
        assert_eq!(seen, [(1, 4), (2, 8), (3, 12), (4, 16)]);
        assert!(losses.loss > 0.0 && losses.finite && losses.step == STEPS, "{losses:?}");
        assert_eq!(block_on(straight.losses()).unwrap(), None, "no step since");
        let ours = saved(&straight, &root.path().join("ours.safetensors"));
        assert_eq!(ours, file_bits(&folder.join("network.safetensors")), "{name}");

        // Stopped by the watcher, saved, and gone on with in another process.
        let mut stopped = trainer(model);
        let stop =
            |step: &demist::TrainerStep| if step.done == 2 { Break(()) } else { Continue(()) };
        block_on(stopped.train(STEPS, &mut { stop })).unwrap();
        assert_eq!(stopped.info().progress.step, 2);
        let state = root.path().join("state.safetensors");
        block_on(stopped.save_state(&state)).unwrap();
        let prepared = Prepared::resumed(read_info(&state).unwrap(), &state);
        let mut resumed = block_on(Trainer::begin(device(), halves(), prepared)).unwrap();
        block_on(resumed.train(2, &mut |_| Continue(()))).unwrap();
        let again = saved(&resumed, &root.path().join("again.safetensors"));
        assert_eq!(again, ours, "{name} resumed");
    }
}

#[test]
fn a_run_without_a_folder_writes_nothing_and_learns_the_same() {
    let root = tempfile::tempdir().unwrap();
    let model = ModelConfig::UNet(unet());
    let mut alone = trainer(model.clone());
    let mut wrote = 0;
    let options = RunOptions { validation: Some(halves()), ..RunOptions::default() };
    let outcome = alone
        .run(&options, &StopFlag::default(), &mut |event| {
            wrote += usize::from(matches!(event, demist::train::Event::Wrote(_)));
            Ok(())
        })
        .unwrap();
    assert_eq!((outcome.progress.step, wrote), (STEPS, 0));
    assert!(outcome.evaluation.is_some());
    let mut other = trainer(model);
    block_on(other.train(STEPS, &mut |_| Continue(()))).unwrap();
    let [one, two] = [&alone, &other].map(|t| saved(t, &root.path().join("n.safetensors")));
    assert_eq!(one, two);
}

#[test]
fn what_was_trained_draws_and_starts_another_training() {
    let root = tempfile::tempdir().unwrap();
    let mut first = trainer(ModelConfig::UNet(unet()));
    block_on(first.train(2, &mut |_| Continue(()))).unwrap();
    let network = block_on(first.network()).unwrap();
    let request = DrawRequest { classes: Classes::All, steps: "2".into(), ..Default::default() };
    let drawn = block_on(Generator::new(device(), network).unwrap().draw(&request)).unwrap();
    assert_eq!(drawn.class_names, ["left", "right"]);

    let path = root.path().join("first.safetensors");
    let bits = saved(&first, &path);
    let again =
        TrainerOptions { training: training(), ..TrainerOptions::start_from(&path).unwrap() };
    let prepared = again.prepare(&halves()).unwrap();
    assert_eq!(prepared.fresh().len(), 0);
    assert_eq!(prepared.info.model, first.info().model);
    assert_eq!(prepared.info.diffusion, short(8));
    let second = block_on(Trainer::begin(device(), halves(), prepared)).unwrap();
    assert_eq!(saved(&second, &root.path().join("second.safetensors")), bits);
}

#[test]
fn images_in_memory_are_trained_on_by_a_network_that_suits_them() {
    let pixels: Vec<u8> = (0..12 * 8 * 8).map(|i| (i % 251) as u8).collect();
    let images = Dataset::from_pixels(pixels.clone(), 8, 1, Vec::new(), Vec::new()).unwrap();
    assert_eq!((images.len(), images.classes().len()), (12, 1));
    assert_eq!(images.image(1).unwrap(), pixels[64..128]);
    let prepared = TrainerOptions::default().prepare(&images).unwrap();
    let model = prepared.info.model.unet().unwrap();
    assert_eq!((model.image_size, model.in_channels, model.out_channels), (8, 1, 1));
    assert_eq!(model.num_classes, None);

    let two = ["a", "b"].map(String::from).to_vec();
    let labels: Vec<u32> = (0..12).map(|i| i % 2).collect();
    let labelled = Dataset::from_pixels(pixels.clone(), 8, 1, labels, two.clone()).unwrap();
    let prepared = TrainerOptions::default().prepare(&labelled).unwrap();
    assert_eq!(prepared.info.model.classes(), Some(2));
    assert_eq!(prepared.info.data.classes, two);

    for (size, labels, classes, expected) in [
        (7, vec![], vec![], "are no images of 7x7x1"),
        (8, vec![0; 11], two.clone(), "12 images with 11 labels"),
        (8, vec![2; 12], two.clone(), "label 2 of 2 classes"),
        (0, vec![], vec![], "image size 0 is out of range"),
    ] {
        let error = Dataset::from_pixels(pixels.clone(), size, 1, labels, classes).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
    }
}

#[test]
fn what_cannot_be_trained_is_refused_without_a_device() {
    let refusal = |model: ModelConfig, training: TrainConfig| {
        let options = TrainerOptions { model: Some(model), training, ..Default::default() };
        options.prepare(&halves()).unwrap_err().to_string()
    };
    let other_size = ModelConfig::UNet(UNetConfig { image_size: 16, ..unet() });
    assert!(refusal(other_size, training()).contains("images of 16x16x3, these are of 8x8x3"));
    let other_classes = ModelConfig::Encoder(EncoderConfig { out_channels: 5, ..encoder() });
    assert!(refusal(other_classes, training()).contains("knows 5 classes, the images are of 2"));
    let odd = TrainConfig { batch_size: 3, micro_batch: 2, ..training() };
    assert!(refusal(ModelConfig::UNet(unet()), odd).contains("does not divide"));
}

#[test]
fn a_classifier_tells_what_evaluation_measures() {
    let mut learner = trainer(ModelConfig::Encoder(encoder()));
    block_on(learner.train(2, &mut |_| Continue(()))).unwrap();
    let network = block_on(learner.network()).unwrap();
    let mut classifier = Classifier::new(device(), network.clone()).unwrap();
    let (images, labels) = batch(6);
    let probabilities = block_on(classifier.probabilities(&images)).unwrap();
    assert_eq!(probabilities.len(), 6);
    for p in &probabilities {
        assert_eq!(p.len(), CLASSES);
        assert!((p.iter().sum::<f32>() - 1.0).abs() < 1e-5, "{p:?}");
    }
    // Of a clean image, -log p is the loss that an evaluation tells.
    let mut done = Vec::new();
    let request = EvaluationRequest {
        images: images.clone(),
        labels: labels.clone(),
        noised: false,
        batch: 4,
        ..Default::default()
    };
    let evaluation = block_on(network.evaluate(device(), &request, &mut |n| {
        done.push(n);
        Ok(())
    }));
    let own: Vec<f64> = probabilities
        .iter()
        .zip(&labels)
        .map(|(p, label)| -f64::from(p[*label as usize]).ln())
        .collect();
    let loss = evaluation.unwrap().loss();
    assert!((loss - tiny::mean(&own)).abs() < 1e-4, "{loss} {own:?}");
    assert_eq!(done, [4, 6]);

    // An image's probabilities depend on it and on its timestep, not on the batch.
    let one = block_on(classifier.probabilities(&images[LEN..2 * LEN])).unwrap();
    let close = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-5);
    assert!(close(&one[0], &probabilities[1]), "{one:?} {probabilities:?}");
    let [early, late] = [0, 7]
        .map(|t| block_on(classifier.probabilities_at(&images[..LEN], &[t])).unwrap().remove(0));
    assert!(close(&early, &probabilities[0]) && !close(&late, &early), "{early:?} {late:?}");
    let beyond = block_on(classifier.probabilities_at(&images[..LEN], &[8])).unwrap_err();
    assert!(beyond.to_string().contains("timestep 8 of a process of 8"), "{beyond}");
    assert!(block_on(classifier.probabilities(&images[1..])).is_err());
    assert!(
        Classifier::new(device(), block_on(trainer(ModelConfig::UNet(unet())).network()).unwrap())
            .is_err()
    );
    assert_eq!(SIDE, network.image_size());
}

#[test]
fn the_shipped_classifier_knows_the_faces() {
    let mut classifier = Classifier::open(device(), "assets/guide16.safetensors").unwrap();
    let faces = Dataset::open(Path::new("assets/faces16_test.png"), &Default::default()).unwrap();
    let count = 20;
    let mut images = vec![0.0; count * faces.image_len()];
    let at = |i: usize| i * faces.len() / count;
    for (i, out) in images.chunks_mut(faces.image_len()).enumerate() {
        faces.write_floats(at(i), Default::default(), out).unwrap();
    }
    let probabilities = block_on(classifier.probabilities(&images)).unwrap();
    let right = (0..count).filter(|i| {
        let p = &probabilities[*i];
        p.iter().all(|q| *q <= p[faces.label(at(*i)) as usize])
    });
    let right = right.count();
    // Chance would be right for four.
    assert!(right >= 15, "{right} of {count}");
    let network = Network::read("assets/guide16.safetensors").unwrap();
    assert_eq!(network.info().data.classes, faces.classes());
}
