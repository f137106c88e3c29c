//! The front door for drawing, as a program that embeds the library uses it.

use std::sync::OnceLock;

use demist::{
    Classes, Device, DeviceOptions, DrawRequest, Drawn, Error, Generator, LikelihoodRequest,
    Network, Result, Sampler, block_on,
};

const FACES: &str = "assets/faces16.safetensors";
const ENLARGER: &str = "assets/upsampler16.safetensors";
const CLASSIFIER: &str = "assets/guide16.safetensors";

fn device() -> &'static Device {
    static DEVICE: OnceLock<Device> = OnceLock::new();
    DEVICE.get_or_init(|| block_on(Device::open(DeviceOptions::default())).unwrap())
}

fn generator() -> Generator {
    Generator::open(device(), FACES).unwrap()
}

fn request(classes: Classes, count: usize) -> DrawRequest {
    DrawRequest { classes, count, steps: "3".into(), seed: 11, ..Default::default() }
}

fn draw(generator: &mut Generator, request: &DrawRequest) -> Drawn {
    block_on(generator.draw(request)).unwrap()
}

/// The message of a request that is refused without a device.
fn refusal(network: &str, change: impl Fn(&mut DrawRequest)) -> String {
    let mut request = request(Classes::Any, 1);
    change(&mut request);
    request.check(&Network::read(network).unwrap()).unwrap_err().to_string()
}

#[test]
fn adapters_are_listed_and_opened_by_name_and_number() {
    let adapters = block_on(Device::list()).unwrap();
    assert!(!adapters.is_empty());
    let open = |adapter: &str| {
        let adapter = Some(adapter.to_owned());
        block_on(Device::open(DeviceOptions { adapter, ..Default::default() }))
    };
    assert_eq!(open("0").unwrap().summary().name, adapters[0].name);
    assert_eq!(open(&adapters[0].name).unwrap().summary().name, adapters[0].name);
    assert!(matches!(open("no such card"), Err(Error::Device(_))));
    let clone = device().clone();
    assert_eq!(clone.summary().to_string(), device().summary().to_string());
}

#[test]
fn images_are_of_the_classes_asked_for_in_any_batch() {
    let mut generator = generator();
    let wanted = request(Classes::named(["hat", "1"]), 2);
    let drawn = draw(&mut generator, &wanted);
    assert_eq!((drawn.count, drawn.size, drawn.channels), (4, 16, 3));
    assert_eq!(drawn.class_names, ["hat", "hat", "glasses", "glasses"]);
    assert_eq!(drawn.labels, [2, 2, 1, 1]);
    let images: Vec<_> = drawn.images().collect();
    assert_eq!(images.len(), 4);
    assert_eq!((images[2].number, images[2].class), (2, Some(1)));
    assert_eq!(images[2].class_name, Some("glasses"));
    assert_eq!(images[1].pixels(), drawn.pixels()[768..2 * 768]);
    assert_ne!(images[0].values, images[1].values);

    // Other batches add in another order, which no pixel shows.
    for batch in [1, 3] {
        let other = draw(&mut generator, &DrawRequest { batch, ..wanted.clone() });
        let close = |(a, b): (&u8, &u8)| a.abs_diff(*b) <= 1;
        assert!(drawn.pixels().iter().zip(&other.pixels()).all(close), "batch {batch}");
        assert_eq!(drawn.labels, other.labels);
    }
    assert_eq!(drawn, draw(&mut generator, &wanted));
    let each = request(Classes::OfEach(vec![2, 2, 1, 1]), 4);
    assert_eq!(drawn, draw(&mut generator, &each));
    let seed = DrawRequest { seed: 12, ..wanted };
    assert_ne!(drawn.values, draw(&mut generator, &seed).values);
    let all = draw(&mut generator, &request(Classes::All, 1));
    assert_eq!(all.labels, [0, 1, 2, 3, 4]);
}

#[test]
fn steps_are_told_and_may_stop_the_work() {
    let mut generator = generator();
    let wanted = DrawRequest { batch: 2, shown_steps: vec![2], ..request(Classes::Any, 3) };
    let mut told = Vec::new();
    let drawn = block_on(generator.draw_watched(&wanted, &mut |step| {
        let shown = step.predicted.map(<[f32]>::len);
        told.push((step.done, step.in_all, step.images.clone(), step.step, shown));
        Ok(())
    }))
    .unwrap();
    let images = 0..2;
    assert_eq!(told[0], (0, 6, images.clone(), 0, None));
    assert_eq!(told[2], (2, 6, images, 2, Some(2 * 768)));
    assert_eq!(told[5], (5, 6, 2..3, 2, Some(768)));
    assert_eq!(told.len(), 7);
    assert_eq!(drawn.labels.len(), 3);

    let mut steps = 0;
    let stopped = block_on(generator.draw_watched(&wanted, &mut |step| {
        steps += 1;
        if step.done == 2 { Err(Error::Interrupted) } else { Ok(()) }
    }));
    assert!(matches!(stopped, Err(Error::Interrupted)), "{stopped:?}");
    assert_eq!(steps, 3);
    // It draws on as if nothing had been.
    assert_eq!(drawn, draw(&mut generator, &wanted));
}

#[test]
fn latents_lead_to_the_images_that_they_come_from() {
    let mut generator = generator();
    let wanted =
        DrawRequest { clip: false, steps: "20".into(), ..request(Classes::named(["hat"]), 1) };
    let first = draw(&mut generator, &wanted);
    let start = Some(generator.latent(11, 0));
    assert_eq!(first, draw(&mut generator, &DrawRequest { start, ..wanted.clone() }));

    // Smaller steps follow the path better.
    let mut round_trip = |steps: &str| {
        let wanted = DrawRequest { steps: steps.into(), ..wanted.clone() };
        let latents = block_on(generator.encode(&first.values, &wanted, &mut |_| Ok(()))).unwrap();
        let back = draw(&mut generator, &DrawRequest { start: Some(latents.values), ..wanted });
        demist::output::image::psnr(&first.values, &back.values)
    };
    let (coarse, fine) = (round_trip("5"), round_trip("40"));
    assert!(fine > coarse + 3.0 && fine > 18.0, "{coarse} dB, {fine} dB");
}

#[test]
fn guidance_changes_images_and_classifiers_lend_classes() {
    let mut generator = generator();
    let plain = request(Classes::named(["hat"]), 1);
    let classifier = Some(Network::read(CLASSIFIER).unwrap());
    let guided = DrawRequest { classifier, classifier_scale: 3.0, ..plain.clone() };
    assert_eq!(guided.rule(), Sampler::Ddpm);
    assert_eq!(plain.rule(), Sampler::Ddim { eta: 0.0 });
    let free = DrawRequest { guidance: Some(3.0), ..plain.clone() };
    let none = DrawRequest { unconditional: true, ..plain.clone() };
    let [a, b, c, d] = [plain, guided, free, none].map(|r| draw(&mut generator, &r).values);
    assert!(a != b && a != c && a != d && b != c);
}

#[test]
fn small_images_are_enlarged_and_keep_their_classes() -> Result<()> {
    let mut enlarger = Generator::open(device(), ENLARGER)?;
    assert_eq!(enlarger.network().small_size(), Some(8));
    let small = Drawn {
        values: (0..2 * 8 * 8 * 3).map(|i| (i % 17) as f32 / 8.0 - 1.0).collect(),
        count: 2,
        size: 8,
        channels: 3,
        labels: vec![4, 0],
        class_names: vec!["short".into(), "beard".into()],
    };
    let large = block_on(enlarger.enlarge(&small, &request(Classes::Any, 9), &mut |_| Ok(())))?;
    assert_eq!((large.count, large.size), (2, 16));
    assert_eq!((&large.labels, &large.class_names), (&small.labels, &small.class_names));
    let given = demist::output::image::from_u8(&small.pixels());
    let wanted = DrawRequest { low_res: Some(given), ..request(Classes::Any, 2) };
    assert_eq!(large.values, draw(&mut enlarger, &wanted).values);
    Ok(())
}

#[test]
fn likelihoods_are_of_each_image() {
    let generator = generator();
    let wanted = LikelihoodRequest {
        images: (0..3 * 768).map(|i| (i % 251) as f32 / 125.0 - 1.0).collect(),
        labels: vec![0, 1, 2],
        steps: "4".into(),
        batch: 2,
        ..Default::default()
    };
    let mut told = Vec::new();
    let scores = block_on(generator.likelihood(&wanted, &mut |step| {
        told.push((step.done, step.in_all, step.scored.len()));
        Ok(())
    }))
    .unwrap();
    assert_eq!((scores.images.len(), scores.timesteps.len()), (3, 4));
    assert!(scores.images.iter().all(|s| s.total_bpd() > 0.0 && s.vb.len() == 4));
    assert_eq!((told[0], told[8]), ((0, 8, 0), (8, 8, 2)));
    let fewer = LikelihoodRequest { labels: vec![0], ..wanted };
    assert!(matches!(fewer.check(generator.network()), Err(Error::Config(_))));
}

#[test]
fn impossible_requests_are_refused_without_a_device() {
    let no_classes = "no such class";
    for (network, change, mentions) in [
        (FACES, &(|r: &mut DrawRequest| r.count = 0) as &dyn Fn(&mut DrawRequest), "at least 1"),
        (FACES, &|r| r.classes = Classes::named([no_classes]), no_classes),
        (FACES, &|r| r.classes = Classes::OfEach(vec![5]), "class 5"),
        (FACES, &|r| r.classes = Classes::OfEach(vec![1, 1]), "1 images with 2 classes"),
        (FACES, &|r| r.steps = "1".into(), "at least 2"),
        (FACES, &|r| r.guidance = Some(f64::NAN), "guidance NaN"),
        (FACES, &|r| r.sampler = Some(Sampler::Ddim { eta: 2.0 }), "eta is 2"),
        (FACES, &|r| r.low_res = Some(vec![0.0; 192]), "super-resolution"),
        (FACES, &|r| r.start = Some(vec![0.0; 5]), "16x16x3"),
        (FACES, &|r| r.classifier = Some(Network::read(FACES).unwrap()), "a classifier is needed"),
        (FACES, &|r| (r.classes, r.count) = (Classes::All, usize::MAX / 2), "4294967295"),
        (ENLARGER, &|_| (), "8 pixels"),
        (ENLARGER, &|r| r.low_res = Some(vec![0.0; 5]), "8x8x3"),
        (ENLARGER, &|r| r.unconditional = true, "label dropout"),
        (CLASSIFIER, &|_| (), "a diffusion network is needed"),
    ] {
        let message = refusal(network, change);
        assert!(message.contains(mentions), "{message}");
    }
    assert!(matches!(Generator::open(device(), CLASSIFIER), Err(Error::File { .. })));
    assert!(matches!(Network::read("missing.safetensors"), Err(Error::Io { .. })));
}
