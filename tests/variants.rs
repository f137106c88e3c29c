//! Whatever a network or a workload launches is one of the variants that are listed,
//! which `tests/kernels.rs` compiles for every backend. Nothing runs: plans are enough.

use demist::diffusion::{GuideGraph, SamplingGraph, SamplingNeeds, released_diffusion};
use demist::engine::bench::{self, WORKLOADS};
use demist::engine::caps::{Caps, Coop};
use demist::engine::graph::{DType, Graph, Launch, Lower, Plan};
use demist::engine::kernel::{KernelOf, accumulate, read};
use demist::engine::ops;
use demist::model::{ModelConfig, model_preset, preset_names};
use demist::recipe::TrainConfig;
use demist::train::plan_step;
use demist::{defines, named, params};
use std::collections::{BTreeSet, HashSet};
use std::sync::LazyLock;

/// Kernel and variant.
type Variant = (&'static str, Vec<i64>);

static LISTED: LazyLock<HashSet<Variant>> = LazyLock::new(|| {
    let kernels = [ops::kernels(), bench::kernels()].concat();
    kernels.into_iter().flat_map(|(k, all)| all.into_iter().map(|v| (k.name, v))).collect()
});

/// Launches that are not listed, as text.
#[derive(Default)]
struct Unlisted(BTreeSet<String>);

impl Unlisted {
    fn look_at(&mut self, plan: &Plan) {
        assert!(!plan.dispatches.is_empty());
        for d in &plan.dispatches {
            if !LISTED.contains(&(d.kernel.name, d.defines.clone())) {
                self.0.insert(format!("{} {}", d.kernel.name, d.kernel.variant_name(&d.defines)));
            }
        }
    }

    fn assert_none(self) {
        assert!(self.0.is_empty(), "not listed: {:#?}", self.0);
    }
}

/// Devices that kernels know apart, with limits that let all batches be planned.
fn devices() -> [Caps; 6] {
    let plain = Caps { max_binding: u64::MAX / 8, max_buffer: u64::MAX / 8, ..Caps::default() };
    let software = Caps { software: true, wide_accesses: true, ..plain.clone() };
    let gpu = Caps { subgroups: true, ..plain.clone() };
    let coop = |size16, subgroup| Some(Coop { size8: true, size16, subgroup });
    [
        Caps { coop: coop(true, 32), ..gpu.clone() },
        Caps { coop: coop(false, 16), ..gpu.clone() },
        Caps { uniform_loads: true, compiles_at_launch: true, ..software.clone() },
        gpu,
        plain,
        software,
    ]
}

/// Larger networks launch the same kernels on every device class, so two devices do for them.
fn devices_for(model: &ModelConfig) -> Vec<Caps> {
    let all = devices().to_vec();
    if model.image_size() > 128 { [&all[0], &all[2]].map(Clone::clone).to_vec() } else { all }
}

fn presets() -> impl Iterator<Item = (&'static str, ModelConfig)> {
    preset_names().iter().map(|name| (*name, model_preset(name).unwrap()))
}

#[test]
fn all_that_inference_launches_is_listed() {
    let mut unlisted = Unlisted::default();
    for (_, model) in presets() {
        for caps in devices_for(&model) {
            let plans = match &model {
                ModelConfig::UNet(m) => [false, true].map(|half| {
                    let needs = SamplingNeeds { half, ..Default::default() };
                    SamplingGraph::new(m, 1, needs).unwrap().plan(&caps).unwrap()
                }),
                ModelConfig::Encoder(m) => {
                    [1, 4].map(|batch| GuideGraph::new(m, batch).unwrap().plan(&caps).unwrap().0)
                }
            };
            plans.iter().for_each(|plan| unlisted.look_at(plan));
        }
    }
    unlisted.assert_none();
}

fn training_is_listed(recompute_levels: u32) {
    let mut unlisted = Unlisted::default();
    for (name, model) in presets() {
        let diffusion = released_diffusion(name).unwrap_or_default();
        for caps in devices_for(&model) {
            for half in [false, true] {
                let config = TrainConfig {
                    micro_batch: 1,
                    batch_size: 2,
                    half,
                    recompute_levels,
                    ..Default::default()
                };
                unlisted.look_at(&plan_step(&caps, &model, &diffusion, &config).unwrap());
            }
        }
    }
    unlisted.assert_none();
}

#[test]
fn all_that_training_launches_is_listed() {
    training_is_listed(0);
}

#[test]
fn all_that_recomputing_training_launches_is_listed() {
    training_is_listed(u32::MAX);
}

#[test]
fn all_that_workloads_launch_is_listed() {
    let mut unlisted = Unlisted::default();
    for caps in devices() {
        for workload in &WORKLOADS {
            for direction in workload.directions {
                for half in [false, true] {
                    let case = workload.case(*direction, half).unwrap();
                    unlisted.look_at(&case.plan(&caps, &[]).unwrap().plan);
                }
            }
        }
    }
    unlisted.assert_none();
}

params! {
    struct ScaleParams { len: u32 }
}

defines! {
    struct ScaleDefines {
        /// Adds `b`.
        b: bool,
        acc: bool,
    }
    where |d| !(d.b && d.acc)
}

static SCALE: KernelOf<ScaleParams, ScaleDefines> =
    KernelOf::new("scale", "", &[read("a"), read("b").when("B"), accumulate("y")]);

/// The message of a launch of `SCALE` that must fail, with bindings named as given.
fn refused(defines: ScaleDefines, names: &[&'static str]) -> String {
    let mut graph = Graph::new();
    let tensor = Some(graph.input("tensor", &[4], DType::F32));
    let bindings: Vec<_> = names.iter().map(|name| (*name, tensor)).collect();
    let launch = Launch {
        kernel: &SCALE,
        defines,
        params: ScaleParams { len: 4 },
        bindings: &bindings,
        groups: 1,
        flops: 0,
    };
    Lower::new(&graph, &Caps::default()).launch(launch).unwrap_err().to_string()
}

#[test]
fn a_launch_that_does_not_fit_its_kernel_is_refused() {
    let plain = ScaleDefines { b: false, acc: false };
    for (defines, names, part) in [
        (ScaleDefines { b: true, acc: true }, &["a", "b", "y"][..], "`B=1 ACC=1`"),
        (plain, &["a"], "`y` is not given"),
        (plain, &["a", "y", "z"], "no binding `z`"),
        (plain, &["a", "b", "y"], "`B=0 ACC=0` has no binding `b`"),
        (plain, &["a", "y", "y"], "`y` is given twice"),
    ] {
        let message = refused(defines, names);
        assert!(message.contains(part), "{message}");
        assert!(message.contains("scale"), "{message}");
    }
}

#[test]
fn a_launch_that_fits_is_taken_and_absent_operands_are_absent() {
    let mut graph = Graph::new();
    let [a, y] = ["a", "y"].map(|name| graph.input(name, &[4], DType::F32));
    let mut lower = Lower::new(&graph, &Caps::default());
    for b in [None, Some(a)] {
        let launch = Launch {
            kernel: &SCALE,
            defines: ScaleDefines { b: b.is_some(), acc: false },
            params: ScaleParams { len: 4 },
            bindings: &named![y, b, a],
            groups: 1,
            flops: 0,
        };
        lower.launch(launch).unwrap();
    }
    let plan = Plan::new(&graph, lower, &[y], Default::default()).unwrap();
    let numbers = |i: usize| plan.dispatches[i].bindings.iter().map(|b| b.0).collect::<Vec<_>>();
    assert_eq!([numbers(0), numbers(1)], [vec![1, 3], vec![1, 2, 3]]);
    assert_eq!(plan.dispatches[1].defines, [1, 0]);
}
