//! Folders of diffusers. `diffusers/NAME` holds what diffusers 0.42 itself says of
//! two small networks: their configuration, every name and shape, and the output
//! for weights and inputs that are given by the hash of `common`.

mod common;
#[allow(dead_code)]
#[path = "torch_files/support.rs"]
mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use demist::Error;
use demist::checkpoint::{
    Imported, Storage, Tensor, TensorFile, import, read_diffusers, write_diffusers,
};
use demist::checkpoint::{parameters, parameters_to_tensors};
use demist::diffusion::{DiffusionConfig, LossType, MeanType, NoiseSchedule, VarType};
use demist::engine::gpu::Gpu;
use demist::engine::graph::{DType, FlatKind, Graph, Lower, Plan, PlanOptions};
use demist::engine::runtime::{CompileOptions, Context, FlatBuffers, Pipelines, Program};
use demist::model::{Hints, ModelConfig, UNetConfig, UNetInputs, build, default_model, initialise};
use serde_json::{Value, json};

/// Relative l2 error of the output, float32 against float32.
const TOLERANCE: f64 = 2e-5;

fn home(case: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/diffusers").join(case)
}

/// Names and shapes of a network of theirs.
fn names(case: &str) -> BTreeMap<String, Vec<usize>> {
    let text = fs::read_to_string(home(case).join("names.tsv")).unwrap();
    let parse = |line: &str| {
        let (name, shape) = line.split_once('\t').unwrap();
        (name.to_owned(), shape.split('x').map(|n| n.parse().unwrap()).collect())
    };
    text.lines().map(parse).collect()
}

/// Their tensors.
fn their_tensors(case: &str) -> TensorFile {
    let mut file = TensorFile::default();
    for (name, shape) in names(case) {
        let values = common::weight(&format!("diffusers.{case}."), &name, &shape);
        file.tensors.insert(name, Tensor::f32(shape, values).unwrap());
    }
    file
}

fn config(case: &str) -> Value {
    serde_json::from_slice(&fs::read(home(case).join("config.json")).unwrap()).unwrap()
}

/// A folder with a configuration and weights.
fn folder(config: &Value, tensors: &TensorFile) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("config.json"), config.to_string()).unwrap();
    tensors.write(&dir.path().join("diffusion_pytorch_model.safetensors")).unwrap();
    dir
}

fn unet(imported: &Imported) -> &UNetConfig {
    match &imported.model {
        ModelConfig::UNet(config) => config,
        ModelConfig::Encoder(_) => panic!("a classifier"),
    }
}

/// The network's output for the case's inputs, row-major NCHW.
fn forward(case: &str, model: &UNetConfig, tensors: &TensorFile) -> Vec<f32> {
    static DEVICE: OnceLock<(Gpu, Pipelines)> = OnceLock::new();
    let (gpu, pipelines) = DEVICE.get_or_init(|| {
        let name = std::env::var("DEMIST_DEVICE").ok();
        (Gpu::open(name.as_deref()).expect("a GPU adapter"), Pipelines::new())
    });
    let ctx = Context { gpu, pipelines };
    let (n, c, side) = (2, model.in_channels, model.image_size);
    let mut g = Graph::new();
    let x = g.input("x", &[n, side, side, c], DType::F32);
    let t = g.input("t", &[n], DType::F32);
    let y = model.num_classes.map(|_| g.input("y", &[n], DType::U32));
    let out = build(model, &mut g, UNetInputs { x, t, y, low_res: None, rng: None }).unwrap();
    let mut lower = Lower::new(&g, &gpu.caps);
    lower.forward(&g).unwrap();
    let plan = Plan::new(&g, lower, &[out], PlanOptions::default()).unwrap();
    let flat = FlatBuffers::new(gpu, &plan.params, &[FlatKind::Weights]).unwrap();
    let weights = parameters(&g.params, tensors, "").unwrap();
    flat.write(gpu, FlatKind::Weights, &g.params, &weights).unwrap();
    let program = Program::compile(ctx, plan, &flat, CompileOptions::default()).unwrap();
    let salt = format!("diffusers.{case}.");
    let image = common::input(&salt, "in.x", 1.7, n * c * side * side);
    program.write(gpu, x, &common::nchw_to_nhwc(&image, [n, c, side, side])).unwrap();
    program.write(gpu, t, &[7.0f32, 431.0]).unwrap();
    if let Some(y) = y {
        program.write(gpu, y, &[3u32, 1]).unwrap();
    }
    program.run(gpu).unwrap();
    let values = program.read(gpu, &[out]).unwrap().remove(0);
    common::nhwc_to_nchw(&values, [n, model.out_channels, side, side])
}

/// The two networks as ours.
fn expected(case: &str) -> UNetConfig {
    let common = UNetConfig {
        model_channels: 32,
        channel_mult: vec![1.0, 2.0],
        num_res_blocks: 2,
        attention_resolutions: vec![1],
        num_heads: 1,
        num_head_channels: None,
        resblock_updown: false,
        use_scale_shift_norm: false,
        use_new_attention_order: true,
        ..default_model(8)
    };
    match case {
        "conv" => common,
        _ => UNetConfig {
            out_channels: 6,
            num_res_blocks: 1,
            attention_resolutions: vec![2],
            num_head_channels: Some(16),
            num_classes: Some(4),
            resblock_updown: true,
            use_scale_shift_norm: true,
            ..common
        },
    }
}

#[test]
fn networks_of_diffusers_compute_the_same_here() {
    for case in ["conv", "resnet"] {
        let dir = folder(&config(case), &their_tensors(case));
        let imported = import(dir.path(), None, &Hints::default()).unwrap();
        let model = unet(&imported);
        assert_eq!(*model, expected(case), "{case}");
        let ours = forward(case, model, &imported.tensors);
        let theirs = TensorFile::read(&home(case).join("out.safetensors")).unwrap();
        let theirs = theirs.tensors["out"].to_f32().unwrap();
        let error = common::rel_err(&ours, &theirs);
        println!("{case}: error {error:.2e}");
        assert!(error < TOLERANCE, "{case}: error {error:.2e}");
    }
}

#[test]
fn what_is_written_has_the_names_and_values_that_were_read() {
    for case in ["conv", "resnet"] {
        let dir = folder(&config(case), &their_tensors(case));
        let Imported { diffusion, tensors, .. } =
            import(dir.path(), None, &Hints::default()).unwrap();
        let written = tempfile::tempdir().unwrap();
        let place = written.path().join("new");
        write_diffusers(&place, &expected(case), &diffusion, tensors.clone(), Storage::F32)
            .unwrap();
        let file = place.join("unet/diffusion_pytorch_model.safetensors");
        assert_eq!(TensorFile::read(&file).unwrap().tensors, their_tensors(case).tensors);
        // Every option is as diffusers itself writes it, or its equal.
        let text = fs::read(place.join("unet/config.json")).unwrap();
        let ours: Value = serde_json::from_slice(&text).unwrap();
        let mut theirs = config(case);
        if case == "conv" {
            // Left out, it is norm_num_groups.
            theirs["attn_norm_num_groups"] = json!(32);
        }
        for (key, value) in theirs.as_object().unwrap() {
            if !["_diffusers_version", "num_train_timesteps", "time_embedding_dim"]
                .contains(&key.as_str())
            {
                assert_eq!(&ours[key], value, "{case}: {key}");
            }
        }
        let again = import(&place, None, &Hints::default()).unwrap();
        assert_eq!((unet(&again), &again.tensors), (&expected(case), &tensors));
        assert_eq!(again.diffusion, diffusion);
    }
}

/// A network of ours with random weights.
fn random_network(model: &UNetConfig) -> TensorFile {
    let mut g = Graph::new();
    let x = g.input("x", &[1, model.image_size, model.image_size, 3], DType::F32);
    let t = g.input("t", &[1], DType::F32);
    let y = model.num_classes.map(|_| g.input("y", &[1], DType::U32));
    build(model, &mut g, UNetInputs { x, t, y, low_res: None, rng: None }).unwrap();
    let mut values = initialise(&g.params, 5);
    // Nothing stays zero, else the output would be.
    values.iter_mut().flatten().for_each(|v| *v = if *v == 0.0 { 0.02 } else { *v });
    let tensors = parameters_to_tensors(&g.params, &values, "").unwrap();
    TensorFile { tensors: tensors.into_iter().collect(), metadata: BTreeMap::new() }
}

#[test]
fn the_legacy_order_of_qkv_is_undone() {
    let base = UNetConfig {
        attention_resolutions: vec![1, 2],
        num_head_channels: Some(8),
        use_new_attention_order: false,
        ..expected("resnet")
    };
    let single = UNetConfig { num_head_channels: None, num_heads: 1, ..base.clone() };
    for model in [base, single] {
        let tensors = random_network(&model);
        let dir = tempfile::tempdir().unwrap();
        let process = DiffusionConfig::default();
        write_diffusers(dir.path(), &model, &process, tensors.clone(), Storage::F32).unwrap();
        let (read, _, theirs) = read_diffusers(dir.path(), &Hints::default()).unwrap();
        assert!(read.use_new_attention_order);
        let error = common::rel_err(
            &forward("resnet", &read, &theirs),
            &forward("resnet", &model, &tensors),
        );
        assert!(error < TOLERANCE, "error {error:.2e}");
        let same = tensors.tensors["middle_block.1.qkv.weight"]
            == theirs.tensors["middle_block.1.qkv.weight"];
        assert_eq!(same, model.num_head_channels.is_none(), "one head has one order");
    }
}

#[test]
fn the_scheduler_tells_the_process() {
    let case = "resnet";
    let dir = folder(&config(case), &their_tensors(case));
    let read = || import(dir.path(), None, &Hints::default()).map(|i| i.diffusion);
    let learned = DiffusionConfig {
        var_type: VarType::LearnedRange,
        loss_type: LossType::RescaledMse,
        ..DiffusionConfig::default()
    };
    assert_eq!(read().unwrap(), learned, "without a scheduler");
    let path = dir.path().join("scheduler_config.json");
    fs::copy(home(case).join("scheduler_config.json"), &path).unwrap();
    let told = DiffusionConfig {
        diffusion_steps: 500,
        noise_schedule: NoiseSchedule::Cosine,
        mean_type: MeanType::XStart,
        ..learned
    };
    assert_eq!(read().unwrap(), told);

    let scheduler: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    for (key, value, what) in [
        ("beta_schedule", json!("scaled_linear"), "squaredcos_cap_v2"),
        ("beta_schedule", Value::Null, "beta_schedule"),
        ("prediction_type", json!("v_prediction"), "v_prediction"),
        ("trained_betas", json!([0.1]), "trained_betas"),
        ("rescale_betas_zero_snr", json!(true), "rescale_betas_zero_snr"),
        ("num_train_timesteps", json!(-5), "num_train_timesteps"),
        ("num_train_timesteps", json!(4_000_000_000u32), "4000000000"),
        // 500 linear steps have larger betas than 1000.
        ("beta_schedule", json!("linear"), "beta_start"),
    ] {
        let mut other = scheduler.clone();
        other[key] = value;
        fs::write(&path, other.to_string()).unwrap();
        let error = read().unwrap_err();
        assert!(error.to_string().contains(what), "{key}: {error}");
    }
    let mut linear = scheduler.clone();
    linear["beta_schedule"] = json!("linear");
    linear["num_train_timesteps"] = json!(1000);
    fs::write(&path, linear.to_string()).unwrap();
    assert_eq!(read().unwrap().noise_schedule, NoiseSchedule::Linear);
}

#[test]
fn options_that_ours_do_not_have_are_named() {
    let tensors = TensorFile::default();
    for (case, key, value) in [
        ("conv", "_class_name", json!("UNet2DConditionModel")),
        ("conv", "flip_sin_to_cos", json!(false)),
        ("conv", "freq_shift", json!(1)),
        ("conv", "downsample_padding", json!(0)),
        ("conv", "norm_eps", json!(1e-6)),
        ("conv", "norm_num_groups", json!(16)),
        ("conv", "norm_num_groups", Value::Null),
        ("conv", "act_fn", json!("relu")),
        ("conv", "time_embedding_type", json!("fourier")),
        ("conv", "time_embedding_dim", json!(64)),
        ("conv", "center_input_sample", json!(true)),
        ("conv", "add_attention", json!(false)),
        ("conv", "mid_block_scale_factor", json!(1.5)),
        ("conv", "mid_block_type", json!("UnCLIPUNetMidBlock2D")),
        ("conv", "class_embed_type", json!("timestep")),
        ("conv", "resnet_time_scale_shift", json!("spatial")),
        ("conv", "attn_norm_num_groups", json!(16)),
        ("resnet", "attn_norm_num_groups", Value::Null),
        ("conv", "attention_legacy_order", json!(true)),
        ("conv", "down_block_types", json!(["AttnDownBlock2D", "SkipDownBlock2D"])),
        ("conv", "down_block_types", json!(["DownBlock2D"])),
        ("conv", "up_block_types", json!(["AttnUpBlock2D", "UpBlock2D"])),
        ("conv", "up_block_types", json!(["UpBlock2D", "ResnetUpsampleBlock2D"])),
        ("resnet", "downsample_type", json!("pool")),
        ("resnet", "up_block_types", json!(["AttnUpBlock2D", "UpBlock2D"])),
        ("conv", "block_out_channels", json!([])),
        ("conv", "block_out_channels", json!([32, 0])),
        ("conv", "block_out_channels", json!("32")),
        ("conv", "layers_per_block", json!([1, 2])),
        ("conv", "layers_per_block", Value::Null),
        ("conv", "sample_size", json!([8, 16])),
        ("conv", "sample_size", Value::Null),
        ("conv", "num_class_embeds", json!(-1)),
    ] {
        let mut other = config(case);
        other[key] = value.clone();
        let dir = folder(&other, &tensors);
        let error = import(dir.path(), None, &Hints::default()).unwrap_err();
        assert!(matches!(error, Error::Config(_)), "{key} = {value}: {error:?}");
        let text = error.to_string();
        assert!(text.contains(key) && text.contains("config.json"), "{key} = {value}: {text}");
    }
    // Harmless: a new option that is off, and what only matters in training.
    let mut other = config("conv");
    other["something_new"] = json!(false);
    other["num_train_timesteps"] = json!(1000);
    let dir = folder(&other, &their_tensors("conv"));
    import(dir.path(), None, &Hints::default()).unwrap();
    // What the folder does not tell may be given.
    other["sample_size"] = Value::Null;
    let dir = folder(&other, &their_tensors("conv"));
    let size = Hints { image_size: Some(16), ..Hints::default() };
    assert_eq!(unet(&import(dir.path(), None, &size).unwrap()).image_size, 16);
}

#[test]
fn networks_that_they_do_not_have_are_refused() {
    let model = expected("resnet");
    let dir = tempfile::tempdir().unwrap();
    let refused = |model: UNetConfig, diffusion: DiffusionConfig, what: &str| {
        let place = dir.path().join("new");
        let error =
            write_diffusers(&place, &model, &diffusion, TensorFile::default(), Storage::F32)
                .unwrap_err()
                .to_string();
        assert!(error.contains(what), "{error} lacks {what}");
        assert!(!place.exists(), "{what}: something was written");
    };
    let same = DiffusionConfig::default();
    refused(UNetConfig { small_size: Some(4), ..model.clone() }, same.clone(), "super-resolution");
    refused(
        UNetConfig { channel_mult: vec![2.0, 2.0], ..model.clone() },
        same.clone(),
        "model_channels",
    );
    let plain = UNetConfig { resblock_updown: false, conv_resample: false, ..model.clone() };
    refused(plain, same.clone(), "conv_resample");
    let heads = UNetConfig { num_head_channels: None, num_heads: 2, ..model.clone() };
    let heads = UNetConfig { attention_resolutions: vec![1, 2], ..heads };
    refused(heads, same.clone(), "num_heads");
    let scaled = DiffusionConfig { rescale_timesteps: true, diffusion_steps: 4000, ..same.clone() };
    refused(model.clone(), scaled, "rescale_timesteps");
    refused(model, same, "qkv.weight is missing");
}

#[test]
fn old_names_a_pickle_and_a_pipeline_are_read() {
    let theirs = their_tensors("conv");
    let wanted =
        read_diffusers(folder(&config("conv"), &theirs).path(), &Hints::default()).unwrap();
    let mut old = TensorFile::default();
    for (name, tensor) in theirs.tensors {
        let name = name
            .replace("to_q", "query")
            .replace("to_k", "key")
            .replace("to_v", "value")
            .replace("to_out.0", "proj_attn");
        old.tensors.insert(name, tensor);
    }
    let entries: Vec<support::Entry> = old
        .tensors
        .iter()
        .map(|(name, tensor)| {
            let name: &'static str = Box::leak(name.clone().into_boxed_str());
            let shape: Vec<i64> = tensor.shape.iter().map(|&d| d as i64).collect();
            support::floats(name, name, &shape)
        })
        .collect();
    let storages: Vec<support::Data> = entries
        .iter()
        .map(|e| (e.key, support::bytes(&old.tensors[e.name].to_f32().unwrap())))
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let inner = dir.path().join("unet");
    fs::create_dir(&inner).unwrap();
    fs::write(inner.join("config.json"), config("conv").to_string()).unwrap();
    let missing = read_diffusers(dir.path(), &Hints::default()).unwrap_err().to_string();
    assert!(missing.contains("diffusion_pytorch_model.bin"), "{missing}");
    let bin = support::zipped(&support::pickle(&entries), &storages);
    fs::write(inner.join("diffusion_pytorch_model.bin"), bin).unwrap();
    assert_eq!(read_diffusers(dir.path(), &Hints::default()).unwrap(), wanted);
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let refused = |change: &dyn Fn(&mut TensorFile), what: &str| {
        let mut tensors = their_tensors("conv");
        change(&mut tensors);
        let dir = folder(&config("conv"), &tensors);
        let error = import(dir.path(), None, &Hints::default()).unwrap_err();
        assert!(matches!(error, Error::File { .. }), "{error:?}");
        assert!(error.to_string().contains(what), "{error} lacks {what}");
    };
    let q = "mid_block.attentions.0.to_q.weight";
    refused(&|f| drop(f.tensors.remove(q)), &format!("{q} is missing"));
    refused(&|f| drop(f.tensors.remove("conv_in.weight")), "input_blocks.0.0.weight is missing");
    let put = |name: &'static str, shape: &'static [usize]| {
        move |f: &mut TensorFile| {
            let values = vec![0.0; shape.iter().product()];
            f.tensors.insert(name.into(), Tensor::f32(shape, values).unwrap());
        }
    };
    refused(&put("extra.weight", &[1]), "extra.weight is not part");
    refused(&put(q, &[64, 32]), "q, k and v have the shapes");
    refused(&put("conv_out.weight", &[3, 32, 1, 1]), "out.2.weight is [3, 32, 1, 1]");
    let empty = |f: &mut TensorFile| {
        for part in ["to_q", "to_k", "to_v"] {
            put(
                Box::leak(format!("mid_block.attentions.0.{part}.weight").into_boxed_str()),
                &[usize::MAX, 0],
            )(f);
        }
    };
    refused(&empty, "mid_block.attentions.0");
}
