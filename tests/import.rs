//! Importing networks from files that hold weights alone.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use demist::Error;
use demist::checkpoint::{Imported, Storage, Tensor, TensorFile, import, write_reference};
use demist::diffusion::{DiffusionConfig, LossType, VarType, released_diffusion};
use demist::model::{Hints, ModelConfig, UNetConfig, preset};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/pt").join(name)
}

fn place() -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("network.safetensors");
    (dir, path)
}

fn unet(imported: &Imported) -> &UNetConfig {
    match &imported.model {
        ModelConfig::UNet(config) => config,
        ModelConfig::Encoder(_) => panic!("a classifier"),
    }
}

/// What the golden network's shapes do not tell.
fn told() -> Hints {
    Hints { image_size: Some(8), num_heads: Some(2), ..Hints::default() }
}

/// A safetensors file with the names and shapes of a published network, all
/// zeros: a header and a hole.
fn published(name: &str, path: &Path) {
    let list = format!("{}/tests/checkpoints/{name}.tsv", env!("CARGO_MANIFEST_DIR"));
    let mut header = serde_json::Map::new();
    let mut at = 0;
    for line in fs::read_to_string(list).unwrap().lines() {
        let (key, shape) = line.split_once('\t').unwrap();
        let shape: Vec<usize> = shape.split('x').map(|n| n.parse().unwrap()).collect();
        let end = at + 2 * shape.iter().product::<usize>();
        let info = serde_json::json!({"dtype": "F16", "shape": shape, "data_offsets": [at, end]});
        header.insert(key.into(), info);
        at = end;
    }
    let header = serde_json::Value::Object(header).to_string();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    fs::write(path, &bytes).unwrap();
    let file = fs::OpenOptions::new().write(true).open(path).unwrap();
    file.set_len((bytes.len() + at) as u64).unwrap();
}

#[test]
fn a_network_that_no_preset_names_is_inferred() {
    let text = fs::read(golden("config.json")).unwrap();
    let mut config: serde_json::Value = serde_json::from_slice(&text).unwrap();
    let model: UNetConfig = serde_json::from_value(config["model"].take()).unwrap();
    for name in ["model_fp32.pt", "model_fp16.pt", "model_legacy.pt"] {
        let imported = import(&golden(name), None, &told()).unwrap();
        assert_eq!(*unet(&imported), model, "{name}");
        assert_eq!(imported.preset, None);
        // Twice the image's channels: a learned variance.
        let process = DiffusionConfig {
            var_type: VarType::LearnedRange,
            loss_type: LossType::RescaledMse,
            ..DiffusionConfig::default()
        };
        assert_eq!(imported.diffusion, process);
    }
    let error = import(&golden("model_fp32.pt"), None, &Hints::default()).unwrap_err();
    assert!(error.to_string().contains("size of its images"), "{error}");
    let heads = Hints { num_heads: Some(3), ..told() };
    let error = import(&golden("model_fp32.pt"), None, &heads).unwrap_err();
    assert!(error.to_string().contains("3 heads"), "{error}");
}

#[test]
fn a_published_network_is_recognised_without_any_flag() {
    let (_dir, path) = place();
    let name = "ddpm_cifar10_35M";
    published(name, &path);
    for asked in [None, Some(name)] {
        let imported = import(&path, asked, &Hints::default()).unwrap();
        assert_eq!(imported.preset, Some(name));
        assert_eq!(*unet(&imported), preset(name).unwrap());
        assert_eq!(Some(imported.diffusion), released_diffusion(name));
    }
    let heads = Hints { num_heads: Some(4), new_attention_order: true, ..Hints::default() };
    let imported = import(&path, None, &heads).unwrap();
    assert_eq!((unet(&imported).num_heads, unet(&imported).use_new_attention_order), (4, true));

    // Another preset: what differs first, and which one fits.
    let error = import(&path, Some("iddpm_cifar10_50M"), &Hints::default()).unwrap_err();
    assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error:?}");
    let text = error.to_string();
    for part in ["emb_layers.1.weight is [128, 512]", "needs [256, 512]", "more differences", name]
    {
        assert!(text.contains(part), "{text} lacks {part}");
    }
    let error = import(&path, Some("no such network"), &Hints::default()).unwrap_err();
    assert!(matches!(error, Error::Config(_)), "{error:?}");
    assert!(error.to_string().contains("64x64_diffusion"), "{error}");
}

#[test]
fn tensors_that_do_not_fit_are_named() {
    let (_dir, path) = place();
    let good = import(&golden("model_fp32.pt"), None, &told()).unwrap();
    let refused = |change: &dyn Fn(&mut BTreeMap<String, Tensor>), what: &str| {
        let mut file = good.tensors.clone();
        change(&mut file.tensors);
        file.write(&path).unwrap();
        let error = import(&path, None, &told()).unwrap_err();
        assert!(matches!(&error, Error::File { path: p, .. } if *p == path), "{error:?}");
        assert!(error.to_string().contains(what), "{error} lacks {what}");
    };
    let bias = "middle_block.1.qkv.bias";
    refused(&|t| drop(t.remove(bias)), &format!("{bias} is missing"));
    let extra = Tensor::f32([1], [0.0]).unwrap();
    refused(&|t| drop(t.insert("x".into(), extra.clone())), "x is not part of the network");
    refused(&|t| drop(t.insert(bias.into(), extra.clone())), &format!("{bias} is [1]"));
    let integers = |t: &mut BTreeMap<String, Tensor>| {
        let shape = t[bias].shape.clone();
        let data = demist::checkpoint::TensorData::I64(vec![1; shape[0]]);
        t.insert(bias.into(), Tensor::new(shape, data).unwrap());
    };
    refused(&integers, &format!("{bias} holds I64"));
    refused(&BTreeMap::clear, "time_embed.0.weight is missing");
}

#[test]
fn wrapped_names_are_unwrapped_and_own_files_are_refused() {
    let (_dir, path) = place();
    let good = import(&golden("model_fp32.pt"), None, &told()).unwrap();
    let wrapped = |(name, t): (&String, &Tensor)| (format!("module.{name}"), t.clone());
    let tensors = good.tensors.tensors.iter().map(wrapped).collect();
    let file = TensorFile { tensors, metadata: BTreeMap::new() };
    file.write(&path).unwrap();
    assert_eq!(import(&path, None, &told()).unwrap(), good);

    // Exported and imported again.
    write_reference(&path, file, "module.", Storage::F32).unwrap();
    assert_eq!(import(&path, None, &told()).unwrap(), good);

    let mut own = good.tensors;
    own.metadata.insert("demist".into(), "{}".into());
    own.write(&path).unwrap();
    let error = import(&path, None, &told()).unwrap_err().to_string();
    assert!(error.contains("already a network of this program"), "{error}");
    let missing = import(&path.with_extension("none"), None, &told());
    assert!(matches!(missing, Err(Error::Io { .. })));
}
