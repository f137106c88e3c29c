//! Training runs with all their options: a stopped and resumed run computes the
//! same bits under each of them, every loss is learned, and the files of a run
//! hold what they should.

mod common;
mod harness;
mod tiny;

use demist::checkpoint::{Holds, NetworkInfo, read_info, read_network};
use demist::diffusion::{DiffusionConfig, LossType, TimestepWeights, VarType};
use demist::model::{ModelConfig, UNetConfig};
use demist::output::metrics::Metrics;
use demist::recipe::TrainConfig;
use demist::train::{Event, RunOptions, StopFlag, TrainOutcome, train};
use std::path::Path;
use std::time::Duration;
use tiny::{context, encoder, file_bits, halves, info, run_options, short, unet};

/// Trains until `steps`; `stop_at` sets the stop flag after that step.
fn go(
    info: &NetworkInfo,
    options: &RunOptions,
    steps: u64,
    stop_at: Option<u64>,
) -> demist::Result<TrainOutcome> {
    let mut info = info.clone();
    info.training.steps = steps;
    let stop = StopFlag::default();
    let flag = stop.clone();
    let mut on_event = |event: Event| {
        if matches!(event, Event::Step { step, .. } if Some(step) == stop_at) {
            flag.set();
        }
        Ok(())
    };
    train(context(), halves(), info, options, &stop, &mut on_event)
}

fn metrics(folder: &Path, name: &str) -> Metrics {
    Metrics::read(&folder.join(name)).unwrap()
}

/// All of metrics.csv but the speed, NaN as something that equals itself.
fn logged(folder: &Path) -> Vec<(String, Vec<u64>)> {
    let m = metrics(folder, "metrics.csv");
    let column = |name: &String| {
        (name.clone(), m.column(name).unwrap().iter().map(|v| v.to_bits()).collect())
    };
    m.columns.iter().filter(|c| *c != "images_per_second").map(column).collect()
}

/// `steps` at once against the same with a stop after `stop_at`, and another two
/// steps later. Returns the state file.
fn check_resume(info: &NetworkInfo, steps: u64, stop_at: u64) -> Vec<(String, Vec<u32>)> {
    let root = tempfile::tempdir().unwrap();
    let [straight, stopped] = ["straight", "stopped"].map(|name| root.path().join(name));
    let whole = go(info, &run_options(&straight), steps, None).unwrap();
    assert!(!whole.interrupted);
    let first = go(info, &run_options(&stopped), steps, Some(stop_at)).unwrap();
    assert!(first.interrupted);
    assert_eq!(first.progress.step, stop_at);
    for until in [stop_at + 2, steps] {
        let saved = read_info(&stopped.join("state.safetensors")).unwrap();
        let options = RunOptions { resume: true, ..run_options(&stopped) };
        let outcome = go(&saved, &options, steps, Some(until)).unwrap();
        assert_eq!((outcome.progress.step, outcome.interrupted), (until, until < steps));
    }
    let mut names = vec!["network.safetensors".to_owned()];
    let rates = &info.training.ema_rates[1..];
    names.extend(rates.iter().map(|rate| format!("network_ema_{rate}.safetensors")));
    names.push("state.safetensors".into());
    let mut state = Vec::new();
    for name in names {
        state = file_bits(&straight.join(&name));
        let resumed = file_bits(&stopped.join(&name));
        assert_eq!(state.len(), resumed.len());
        for ((tensor, a), (_, b)) in state.iter().zip(&resumed) {
            assert!(a == b, "{tensor} of {name} differs after the resumed run");
        }
    }
    assert_eq!(logged(&straight), logged(&stopped));
    state
}

fn tensor(state: &[(String, Vec<u32>)], name: &str) -> Vec<f32> {
    let (_, values) = state.iter().find(|(n, _)| n == name).expect(name);
    values.iter().map(|v| f32::from_bits(*v)).collect()
}

/// Everything that a step may draw at random, or remember.
fn all_options() -> TrainConfig {
    TrainConfig {
        batch_size: 4,
        micro_batch: 2,
        lr: 1e-3,
        lr_warmup: 3,
        lr_anneal: true,
        weight_decay: 0.01,
        ema_rates: vec![0.3, 0.9, 0.999],
        flip: true,
        random_crop: true,
        timestep_weights: TimestepWeights::LossSecondMoment,
        label_dropout: 0.3,
        seed: 5 + (1 << 40),
        ..Default::default()
    }
}

fn conditional() -> UNetConfig {
    UNetConfig { null_class: true, dropout: 0.1, out_channels: 6, ..unet() }
}

fn learned(steps: usize, loss_type: LossType) -> DiffusionConfig {
    DiffusionConfig { var_type: VarType::LearnedRange, loss_type, ..short(steps) }
}

#[test]
fn all_options_together_resume_to_the_same_bits() {
    for half in [false, true] {
        let training = TrainConfig { half, ..all_options() };
        let model = ModelConfig::UNet(conditional());
        let state = check_resume(&info(model, learned(2, LossType::RescaledMse), training), 14, 10);
        // The history was full before the stop: timesteps were drawn by it.
        assert_eq!(tensor(&state, "sampler.counts"), [10.0; 2], "too few steps to matter");
        assert!(tensor(&state, "sampler.losses").iter().all(|loss| *loss > 0.0));
        for prefix in ["weights.", "ema.", "ema1.", "ema2.", "exp_avg.", "exp_avg_sq."] {
            let moved = |(name, v): &(String, Vec<u32>)| {
                name.starts_with(prefix) && v.iter().any(|v| *v != 0)
            };
            assert!(state.iter().any(moved), "the state holds no {prefix} other than zero");
        }
        let scale = state.iter().find(|(name, _)| name == "loss_scale");
        assert_eq!(scale.is_some(), half);
        if half {
            let [lg, growth, good, skipped] = tensor(&state, "loss_scale")[..] else { panic!() };
            assert_eq!((good + skipped, growth), (14.0, 1e-3));
            assert!((lg - (20.0 + good * growth - skipped)).abs() < 1e-3, "{lg}");
        }
    }
}

#[test]
fn classifiers_resume_to_the_same_bits() {
    for half in [false, true] {
        let sampler =
            if half { TimestepWeights::Uniform } else { TimestepWeights::LossSecondMoment };
        let training = TrainConfig {
            half,
            timestep_weights: sampler,
            label_dropout: 0.0,
            ema_rates: vec![0.9],
            ..all_options()
        };
        let model = demist::model::EncoderConfig { dropout: 0.1, ..encoder() };
        let state = check_resume(&info(ModelConfig::Encoder(model), short(2), training), 14, 10);
        let history = state.iter().any(|(name, _)| name.starts_with("sampler."));
        assert_eq!(history, !half);
    }
}

/// Each option changes what is computed (a run that ignored them would resume
/// to the same bits as well).
#[test]
fn every_option_has_an_effect() {
    let root = tempfile::tempdir().unwrap();
    let weights = |name: &str, training: TrainConfig| {
        let folder = root.path().join(name);
        let model = ModelConfig::UNet(conditional());
        let info = info(model, learned(2, LossType::RescaledMse), training);
        go(&info, &run_options(&folder), 9, None).unwrap();
        file_bits(&folder.join("state.safetensors"))
    };
    let base = all_options();
    let all = weights("all", base.clone());
    let same = weights("same", base.clone());
    assert!(all == same, "not reproducible");
    let others = [
        ("flip", TrainConfig { flip: false, ..base.clone() }),
        ("crop", TrainConfig { random_crop: false, ..base.clone() }),
        ("labels", TrainConfig { label_dropout: 0.0, ..base.clone() }),
        ("half", TrainConfig { half: true, ..base.clone() }),
        ("seed", TrainConfig { seed: 5, ..base.clone() }),
        ("decay", TrainConfig { weight_decay: 0.0, ..base.clone() }),
        ("sampler", TrainConfig { timestep_weights: TimestepWeights::Uniform, ..base.clone() }),
    ];
    let name = "weights.out.2.weight";
    for (what, training) in others {
        let other = weights(what, training);
        assert!(tensor(&other, name) != tensor(&all, name), "{what} has no effect");
        // Only dropped labels train the row of "no class".
        let moment = tensor(&other, "exp_avg.label_emb.weight");
        let none = &moment[moment.len() / 3 * 2..];
        assert_eq!(none.iter().all(|v| *v == 0.0), what == "labels", "{what}");
    }
    assert!(tensor(&all, "ema.out.2.bias") != tensor(&all, "ema1.out.2.bias"));
}

#[test]
fn further_averages_are_networks_of_their_own() {
    let root = tempfile::tempdir().unwrap();
    let training = TrainConfig {
        ema_rates: vec![0.5, 0.9],
        ema_warmup: false,
        ..TrainConfig { timestep_weights: TimestepWeights::Uniform, ..all_options() }
    };
    let info = info(ModelConfig::UNet(conditional()), learned(4, LossType::Mse), training);
    go(&info, &run_options(root.path()), 3, None).unwrap();
    let state = file_bits(&root.path().join("state.safetensors"));
    for (file, prefix) in
        [("network.safetensors", "ema."), ("network_ema_0.9.safetensors", "ema1.")]
    {
        let path = root.path().join(file);
        assert_eq!(read_info(&path).unwrap().holds, Holds::Weights);
        let want: Vec<_> = state
            .iter()
            .filter_map(|(n, v)| Some((n.strip_prefix(prefix)?.to_owned(), v.clone())))
            .collect();
        assert!(file_bits(&path) == want, "{file} is not {prefix}");
    }
    // Both moved from the same weights w: after one step e = w + (1 - rate) d.
    let one = tempfile::tempdir().unwrap();
    go(&info, &run_options(one.path()), 1, None).unwrap();
    let state = file_bits(&one.path().join("state.safetensors"));
    let name = "time_embed.0.weight";
    let [w, slow, fast] =
        ["weights.", "ema1.", "ema."].map(|prefix| tensor(&state, &format!("{prefix}{name}")));
    // Distance of an average from the weights: rate * d.
    let off =
        |e: &[f32]| e.iter().zip(&w).map(|(e, w)| f64::from(e - w).powi(2)).sum::<f64>().sqrt();
    let ratio = off(&slow) / off(&fast);
    assert!((ratio - 0.9 / 0.5).abs() < 0.05, "{ratio}");
}

const QUARTERS: [&str; 4] = ["q0", "q1", "q2", "q3"];

/// Each loss falls on the same images, timesteps and noise, and the columns of
/// its terms add up.
#[test]
fn every_loss_is_learned_and_logged() {
    let cases = [
        (LossType::Mse, VarType::FixedLarge, &["mse"][..]),
        (LossType::Mse, VarType::Learned, &["mse", "vb"]),
        (LossType::RescaledMse, VarType::LearnedRange, &["mse", "vb"]),
        (LossType::Kl, VarType::FixedSmall, &["vb"]),
        (LossType::RescaledKl, VarType::LearnedRange, &["vb"]),
    ];
    for (loss_type, var_type, terms) in cases {
        let what = format!("{loss_type:?} with {var_type:?}");
        let root = tempfile::tempdir().unwrap();
        let diffusion = DiffusionConfig { var_type, loss_type, ..short(20) };
        let training = TrainConfig {
            batch_size: 4,
            micro_batch: 4,
            lr: 3e-3,
            ema_rates: vec![0.7],
            ..Default::default()
        };
        let channels = if var_type.is_learned() { 6 } else { 3 };
        let model = UNetConfig { out_channels: channels, ..unet() };
        let info = info(ModelConfig::UNet(model), diffusion, training);
        let options = RunOptions { validation: Some(halves()), ..run_options(root.path()) };
        go(&info, &options, 2, None).unwrap();
        let outcome = go(&info, &RunOptions { resume: true, ..options }, 24, None).unwrap();
        assert!(outcome.losses.is_some_and(|(a, b)| a.is_finite() && b.is_finite()), "{what}");

        let evaluations = metrics(root.path(), "evaluation.csv");
        let losses = evaluations.column("loss").unwrap();
        let (first, last) = (losses[0], losses[losses.len() - 1]);
        assert!(losses.iter().all(|l| l.is_finite()), "{what}: {losses:?}");
        assert!(last < 0.8 * first, "{what}: the loss went from {first} to {last}");
        // One that came from 32 bits has no more digits in the file.
        assert_eq!(outcome.evaluation.unwrap().loss() as f32, last as f32);

        let log = metrics(root.path(), "metrics.csv");
        let mut columns: Vec<String> = vec!["images".into(), "loss".into()];
        columns.extend(["grad_norm", "lr", "images_per_second"].map(String::from));
        for term in terms {
            columns.push((*term).into());
            columns.extend(QUARTERS.map(|q| format!("{term}_{q}")));
        }
        assert_eq!(log.columns, columns, "{what}");
        let total = log.column("loss").unwrap();
        let parts: Vec<_> = terms.iter().map(|t| log.column(t).unwrap()).collect();
        for (i, total) in total.iter().enumerate() {
            let sum: f64 = parts.iter().map(|p| p[i]).sum();
            assert!((sum - total).abs() <= 1e-6 * total.abs(), "{what}: {sum} and {total}");
        }
        let speed = log.column("images_per_second").unwrap();
        assert!(speed.iter().all(|v| *v > 0.0 && v.is_finite()), "{speed:?}");
    }
}

/// Two images a row fill at most two quarters; the others have no mean.
#[test]
fn a_quarter_without_images_is_an_empty_field() {
    let root = tempfile::tempdir().unwrap();
    let training = TrainConfig { batch_size: 2, micro_batch: 1, ..Default::default() };
    let info = info(ModelConfig::UNet(unet()), short(8), training);
    go(&info, &run_options(root.path()), 10, None).unwrap();
    let log = metrics(root.path(), "metrics.csv");
    let mse = log.column("mse").unwrap();
    let quarters = QUARTERS.map(|q| log.column(&format!("mse_{q}")).unwrap());
    let mut filled = [0; 3];
    for (i, mse) in mse.iter().enumerate() {
        let row: Vec<f64> = quarters.iter().map(|q| q[i]).filter(|v| !v.is_nan()).collect();
        assert!((1..=2).contains(&row.len()), "{row:?}");
        filled[row.len()] += 1;
        // Two images in one quarter, or one in each of two.
        let mean = tiny::mean(&row);
        assert!((mean - mse).abs() < 1e-6 * mse, "{row:?} for a mean of {mse}");
    }
    assert!(filled[1] > 0 && filled[2] > 0, "{filled:?}");
    let text = std::fs::read_to_string(root.path().join("metrics.csv")).unwrap();
    assert!(text.lines().skip(1).all(|line| line.contains(",,") || line.ends_with(',')), "{text}");
}

/// The best evaluation is kept over worse ones and over a stop.
#[test]
fn the_best_network_is_kept() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let training = TrainConfig {
        batch_size: 8,
        micro_batch: 8,
        lr: 2e-3,
        ema_rates: vec![0.5],
        ..Default::default()
    };
    let info = info(ModelConfig::UNet(unet()), short(20), training);
    let options = RunOptions {
        validation: Some(halves()),
        eval_images: 20,
        eval_every: 3,
        ..run_options(folder)
    };
    let evaluations = || {
        let m = metrics(folder, "evaluation.csv");
        let steps: Vec<u64> = m.rows.iter().map(|r| r.step).collect();
        (steps, m.column("loss").unwrap(), m.column("images").unwrap())
    };
    let first = go(&info, &options, 10, None).unwrap();
    let (steps, losses, images) = evaluations();
    assert_eq!(steps, [3, 6, 9, 10]);
    assert_eq!(images, [20.0; 4]);
    let least = losses.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(first.progress.best_loss, Some(least));
    let best = folder.join("best.safetensors");
    let (saved, _) = read_network(&best).unwrap();
    assert_eq!((saved.progress.best_loss, saved.holds), (Some(least), Holds::Weights));
    let at = steps.iter().zip(&losses).find(|(_, loss)| **loss == least).unwrap().0;
    assert_eq!(saved.progress.step, *at);
    let kept = std::fs::read(&best).unwrap();

    // A finished run has nothing to add, nor has one without any time left.
    let resume = RunOptions { resume: true, ..options.clone() };
    let state = || read_info(&folder.join("state.safetensors")).unwrap();
    let again = go(&state(), &resume, 10, None).unwrap();
    assert_eq!(again.evaluation.map(|e| e.loss()), losses.last().copied());
    let late = RunOptions { time_limit: Some(Duration::ZERO), ..resume.clone() };
    go(&state(), &late, 12, None).unwrap();
    assert_eq!(evaluations(), (steps.clone(), losses.clone(), images));

    // Far too fast: everything is unlearned.
    let mut fast = state();
    assert_eq!(fast.progress.best_loss, Some(least));
    fast.training.lr = 0.3;
    let worse = go(&fast, &resume, 16, None).unwrap();
    let (steps, losses, _) = evaluations();
    assert_eq!(steps, [3, 6, 9, 10, 12, 15, 16]);
    assert!(losses[4..].iter().all(|loss| *loss > least), "{losses:?}");
    assert_eq!(worse.progress.best_loss, Some(least));
    assert_eq!(state().progress.best_loss, Some(least));
    assert!(std::fs::read(&best).unwrap() == kept, "a worse network was kept");
}

/// A small data set is evaluated as a whole, a large one in part, from all of it.
#[test]
fn evaluations_take_images_from_everywhere() {
    let data = halves();
    let fetch = demist::train::spread(&data, 4);
    let mut image = vec![0.0; tiny::LEN];
    let labels: Vec<u32> = (0..4).map(|i| fetch(i, &mut image).unwrap()).collect();
    assert_eq!(labels, [0, 0, 1, 1]);
    let all = demist::train::spread(&data, data.len());
    let labels: Vec<u32> = (0..data.len()).map(|i| all(i, &mut image).unwrap()).collect();
    assert_eq!(labels, data.labels());
    assert!(fetch(4, &mut image).is_err());
}

#[test]
fn damaged_states_are_errors() {
    let root = tempfile::tempdir().unwrap();
    let folder = root.path();
    let training = TrainConfig { half: true, ..all_options() };
    let described = info(ModelConfig::UNet(conditional()), learned(4, LossType::Mse), training);
    go(&described, &run_options(folder), 1, None).unwrap();
    let path = folder.join("state.safetensors");
    let (saved, good) = read_network(&path).unwrap();
    let resume = RunOptions { resume: true, ..run_options(folder) };
    let refused = |name: &str, value: Option<Vec<f32>>, hint: &str| {
        let mut file = good.clone();
        match value {
            Some(v) => {
                let t = demist::checkpoint::Tensor::f32([v.len()], v).unwrap();
                file.tensors.insert(name.into(), t);
            }
            None => drop(file.tensors.remove(name)),
        }
        file.write(&path).unwrap();
        let error = go(&saved, &resume, 2, None).unwrap_err().to_string();
        assert!(error.contains(hint) && error.contains("state.safetensors"), "{error}");
    };
    refused("loss_scale", Some(vec![20.0; 3]), "loss scale");
    refused("loss_scale", Some(vec![f32::NAN, 1e-3, 1.0, 0.0]), "loss scale");
    refused("sampler.counts", Some(vec![1.0; 3]), "timesteps");
    refused("sampler.counts", Some(vec![11.0; 4]), "timesteps");
    refused("sampler.losses", Some(vec![f32::NAN; 40]), "timesteps");
    refused("exp_avg_sq.out.2.bias", None, "exp_avg_sq.out.2.bias");
    refused("ema2.out.2.bias", Some(vec![0.0; 5]), "ema2.out.2.bias");
    good.write(&path).unwrap();
    assert_eq!(go(&saved, &resume, 2, None).unwrap().progress.step, 2);
}

#[test]
fn options_that_cannot_be_followed_are_errors() {
    let good = all_options();
    assert!(good.validate().is_ok());
    let faults = [
        (TrainConfig { ema_rates: vec![], ..good.clone() }, "0 EMA rates"),
        (TrainConfig { ema_rates: vec![0.9; 9], ..good.clone() }, "9 EMA rates"),
        (TrainConfig { ema_rates: vec![0.9, 1.0], ..good.clone() }, "ema rate 1"),
        (TrainConfig { label_dropout: 1.0, ..good.clone() }, "label dropout 1"),
        (TrainConfig { label_dropout: -0.1, ..good.clone() }, "label dropout -0.1"),
        (TrainConfig { label_dropout: f64::NAN, ..good.clone() }, "label dropout"),
        (TrainConfig { micro_batch: 3, ..good.clone() }, "micro-batches of 3"),
    ];
    for (config, hint) in faults {
        let error = config.validate().unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    // As older files have it, and as it is written now.
    let read = |json: &str| serde_json::from_str::<TrainConfig>(json).map(|c| c.ema_rates);
    assert_eq!(read(r#"{"ema_rate": 0.99}"#).unwrap(), [0.99]);
    assert_eq!(read(r#"{"ema_rates": [0.9, 0.99]}"#).unwrap(), [0.9, 0.99]);
    assert!(read(r#"{"ema_rates": "0.9"}"#).is_err());
    let json = serde_json::to_string(&good).unwrap();
    assert_eq!(serde_json::from_str::<TrainConfig>(&json).unwrap(), good);
}
