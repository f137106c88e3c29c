//! Networks by name, and in words.

use demist::checkpoint::read_info;
use demist::diffusion::{DiffusionConfig, VarType, released_diffusion};
use demist::engine::bench::WORKLOADS;
use demist::model::{EncoderConfig, ModelConfig, UNetConfig, model_preset, preset_names};
use demist::{Error, Result};
use std::path::Path;

/// The network and its process: a preset's, a workload's, or those of a file.
pub fn named_network(file: &Path) -> Result<(ModelConfig, DiffusionConfig)> {
    let preset = file.to_str().filter(|_| !file.exists());
    if let Some((model, name)) = preset.and_then(|name| Some((model_preset(name)?, name))) {
        return Ok((model, released_diffusion(name).unwrap_or_default()));
    }
    if let Some(workload) = preset.and_then(|id| WORKLOADS.iter().find(|w| w.id == id)) {
        let model = workload.network().ok_or_else(|| {
            Error::file(file, "is a single op's workload, no network; `demist bench` measures it")
        })??;
        // Their networks predict a variance.
        let diffusion =
            DiffusionConfig { var_type: VarType::LearnedRange, ..DiffusionConfig::default() };
        return Ok((model, diffusion));
    }
    let info = read_info(file).map_err(|e| match e {
        Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound => {
            let presets = preset_names().join(", ");
            Error::file(file, format!("no such file, workload or preset (W5 to W9, {presets})"))
        }
        other => other,
    })?;
    Ok((info.model, info.diffusion))
}

/// The network in a few lines.
pub fn print_network(model: &ModelConfig) {
    match model {
        ModelConfig::UNet(m) => print_unet(m),
        ModelConfig::Encoder(m) => print_encoder(m),
    }
}

/// The process that a network was trained for.
pub fn print_process(model: &ModelConfig, d: &DiffusionConfig) {
    let what = match model {
        ModelConfig::UNet(_) => format!(
            ", predicts {:?}, variance {:?}, loss {:?}",
            d.mean_type, d.var_type, d.loss_type
        ),
        ModelConfig::Encoder(_) => String::new(),
    };
    say!(
        "diffusion   {} steps, {:?} schedule{what}{}",
        d.diffusion_steps,
        d.noise_schedule,
        if d.rescale_timesteps { ", timesteps in thousandths" } else { "" }
    );
}

fn print_unet(m: &UNetConfig) {
    say!(
        "network     {}x{} pixels, {} channels in, {} out, width {}, multipliers {:?}, {} residual blocks a level",
        m.image_size,
        m.image_size,
        m.in_channels,
        m.out_channels,
        m.model_channels,
        m.channel_mult,
        m.num_res_blocks
    );
    let heads = m
        .num_head_channels
        .map_or(format!("{} heads", m.num_heads), |d| format!("{d} channels a head"));
    say!(
        "            attention at 1/{:?} of the size, {heads}, {}, {}, dropout {}",
        m.attention_resolutions,
        if m.use_scale_shift_norm { "adaptive group norm" } else { "added embedding" },
        if m.resblock_updown { "residual resampling" } else { "plain resampling" },
        m.dropout
    );
    if let Some(small) = m.small_size {
        say!("            enlarges images of {small}x{small} pixels");
    }
    match m.num_classes {
        Some(n) if m.null_class => {
            say!("            conditional on {n} classes, or on none (classifier-free guidance)");
        }
        Some(n) => say!("            conditional on {n} classes"),
        None => say!("            unconditional"),
    }
}

fn print_encoder(m: &EncoderConfig) {
    say!(
        "classifier  {}x{} pixels, {} channels, {} classes, width {}, multipliers {:?}, {} residual blocks a level",
        m.image_size,
        m.image_size,
        m.in_channels,
        m.out_channels,
        m.model_channels,
        m.channel_mult,
        m.num_res_blocks
    );
    say!(
        "            attention at 1/{:?} of the size, {:?} pool, dropout {}",
        m.attention_resolutions,
        m.pool,
        m.dropout
    );
}
