//! Memory of the plans of all published networks.

use demist::diffusion::{DiffusionConfig, GuideGraph, SamplingGraph, SamplingNeeds, released_diffusion};
use demist::gpu::Caps;
use demist::graph::PlanReport;
use demist::model::{ModelConfig, model_preset, preset_names};
use demist::train::{TrainConfig, memory_need};

fn caps() -> Caps {
    Caps { max_binding: u64::MAX / 8, max_buffer: u64::MAX / 8, ..Caps::default() }
}

fn inference(model: &ModelConfig, batch: usize, half: bool) -> PlanReport {
    match model {
        ModelConfig::UNet(m) => SamplingGraph::new(m, batch, SamplingNeeds { half, ..Default::default() })
            .unwrap()
            .plan(&caps())
            .unwrap()
            .report(),
        ModelConfig::Encoder(m) => GuideGraph::new(m, batch).unwrap().plan(&caps()).unwrap().0.report(),
    }
}

#[test]
fn all() {
    let mut n = 0;
    for name in preset_names() {
        let model = model_preset(name).unwrap();
        let diffusion = released_diffusion(name).unwrap_or_default();
        let show = |what: &str, r: &PlanReport, n: &mut usize, t: std::time::Instant| {
            println!("{:03} {name:32} {what:22} slots {:9.2} MiB bound {:9.2} MiB {:6.2} % launches {} {:?}", *n, r.slots as f64 / 1048576.0, r.lower_bound as f64 / 1048576.0, 100.0 * r.slots as f64 / r.lower_bound as f64, r.dispatches, t.elapsed());
            *n += 1;
        };
        for half in [false, true] {
            for batch in [1, 4] {
                let t = std::time::Instant::now();
                let r = inference(&model, batch, half);
                show(&format!("inference {batch} half {half}"), &r, &mut n, t);
            }
            for levels in [0, u32::MAX] {
                let t = std::time::Instant::now();
                let config = TrainConfig { micro_batch: 1, batch_size: 1, half, recompute_levels: levels, ..Default::default() };
                match memory_need(&caps(), &model, &diffusion, &config) {
                    Ok(need) => show(&format!("training {} half {half}", if levels == 0 {"kept"} else {"rec"}), &need.report, &mut n, t),
                    Err(e) => println!("{name} training: {e}"),
                }
            }
        }
    }
    let _ = DiffusionConfig::default();
}
