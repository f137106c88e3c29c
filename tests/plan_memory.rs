//! Memory of the plans of all published networks; nothing is allocated.

use demist::diffusion::{GuideGraph, SamplingGraph, SamplingNeeds, released_diffusion};
use demist::engine::caps::Caps;
use demist::engine::graph::{Plan, PlanReport, verify_slots};
use demist::model::{ModelConfig, model_preset, preset, preset_names};
use demist::recipe::TrainConfig;
use demist::train::{memory_need, plan_step};

/// Whether each level of a network is computed twice in training.
const KEPT: u32 = 0;
const RECOMPUTED: u32 = u32::MAX;

const GIB: u64 = 1 << 30;

/// Limits that bind nothing, so that all batches can be planned.
fn boundless() -> Caps {
    Caps { max_binding: u64::MAX / 8, max_buffer: u64::MAX / 8, ..Caps::default() }
}

fn inference(caps: &Caps, model: &ModelConfig, batch: usize, half: bool) -> Plan {
    match model {
        ModelConfig::UNet(m) => {
            let needs = SamplingNeeds { half, ..Default::default() };
            SamplingGraph::new(m, batch, needs).unwrap().plan(caps).unwrap()
        }
        ModelConfig::Encoder(m) => GuideGraph::new(m, batch).unwrap().plan(caps).unwrap().0,
    }
}

fn config(half: bool, recompute_levels: u32) -> TrainConfig {
    TrainConfig { micro_batch: 1, batch_size: 1, half, recompute_levels, ..Default::default() }
}

/// Checks a plan and that its slots are within a tenth of the live set.
fn judge(what: &str, plan: &Plan) {
    verify_slots(&plan.tensors, &plan.dispatches, &plan.slots)
        .unwrap_or_else(|e| panic!("{what}: {e}"));
    let PlanReport { slots, lower_bound, buffers, .. } = plan.report();
    let found = slots as f64 / lower_bound as f64;
    let writable = plan.dispatches.iter().filter(|d| d.writable_reads != 0).count();
    println!("{what}: {slots} bytes in {buffers} buffers, {found:.4} of the live set");
    println!(
        "{what}: {writable} of {} launches bind what they read as writable",
        plan.dispatches.len()
    );
    assert!(lower_bound > 0 && slots >= lower_bound, "{what}: {slots} below {lower_bound}");
    assert!(found <= 1.1, "{what}: {slots} bytes for a live set of {lower_bound}");
}

#[test]
fn inference_is_within_a_tenth_of_the_live_set() {
    for name in preset_names() {
        let model = model_preset(name).unwrap();
        // Classifiers guide in 32 bits.
        let halves = if matches!(model, ModelConfig::UNet(_)) { 2 } else { 1 };
        for half in [false, true].into_iter().take(halves) {
            for batch in [1, 4] {
                let plan = inference(&boundless(), &model, batch, half);
                judge(&format!("{name}, batch {batch}, half {half}"), &plan);
            }
        }
    }
}

fn training_is_within_a_tenth(recompute_levels: u32) {
    for name in preset_names() {
        let model = model_preset(name).unwrap();
        let diffusion = released_diffusion(name).unwrap_or_default();
        for half in [false, true] {
            let config = config(half, recompute_levels);
            let plan = plan_step(&boundless(), &model, &diffusion, &config).unwrap();
            let what = format!("{name}, training, half {half}, levels {recompute_levels:#x}");
            judge(&what, &plan);
        }
    }
}

#[test]
fn training_is_within_a_tenth_of_the_live_set() {
    training_is_within_a_tenth(KEPT);
}

#[test]
fn recomputing_training_is_within_a_tenth_of_the_live_set() {
    training_is_within_a_tenth(RECOMPUTED);
}

#[test]
fn the_large_networks_fit_into_the_memory_of_usual_cards() {
    for name in ["256x256_diffusion", "512x512_diffusion"] {
        let model = model_preset(name).unwrap();
        let report = inference(&boundless(), &model, 1, true).report();
        let total = report.slots + report.pinned + report.params_inference;
        assert!(total <= 6 * GIB, "{name}: {total} bytes, {report:?}");
    }
    let name = "256x256_diffusion";
    let (model, diffusion) = (model_preset(name).unwrap(), released_diffusion(name).unwrap());
    let need = memory_need(&boundless(), &model, &diffusion, &config(true, KEPT)).unwrap();
    assert!(need.bytes() <= 16 * GIB, "{name}: {} bytes, {need:?}", need.bytes());
    // Weights, gradients, two moments and an average of 32 bits are the most of it.
    assert!(need.bytes() > 5 * 4 * 553_838_086, "{need:?}");
}

#[test]
fn shared_buffers_keep_to_the_limits_of_every_device() {
    let caps = Caps::default();
    let model = ModelConfig::UNet(preset("256x256_diffusion").unwrap());
    let plan = inference(&caps, &model, 1, false);
    judge("within default limits", &plan);
    let largest = plan.slots.sizes.iter().max().unwrap();
    assert!(*largest <= caps.max_buffer, "{largest}");
    // Tensors lie side by side, where any device can bind them.
    assert!(plan.slots.of.values().any(|p| p.offset > 0));
    assert!(plan.slots.of.values().all(|p| p.offset.is_multiple_of(256)));
}
