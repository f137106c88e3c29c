//! From template to naga module: includes, constants, unrolled loops.

use super::Kernel;
use crate::{Error, Result};
use minijinja::{Environment, UndefinedBehavior};
use std::collections::BTreeMap;

/// Files that shaders may `{% include %}` or `{% import %}`.
const INCLUDES: &[(&str, &str)] = &[
    ("attention_head.wgsl", include_str!("../../shaders/attention_head.wgsl")),
    ("common.wgsl", include_str!("../../shaders/common.wgsl")),
    ("conv2d_load.wgsl", include_str!("../../shaders/conv2d_load.wgsl")),
    ("conv2d_store.wgsl", include_str!("../../shaders/conv2d_store.wgsl")),
    ("group_sum.wgsl", include_str!("../../shaders/group_sum.wgsl")),
    ("image_quads.wgsl", include_str!("../../shaders/image_quads.wgsl")),
    ("lane_sum.wgsl", include_str!("../../shaders/lane_sum.wgsl")),
    ("philox.wgsl", include_str!("../../shaders/philox.wgsl")),
    ("power.wgsl", include_str!("../../shaders/power.wgsl")),
    ("quad.wgsl", include_str!("../../shaders/quad.wgsl")),
    ("staged.wgsl", include_str!("../../shaders/staged.wgsl")),
    ("storage.wgsl", include_str!("../../shaders/storage.wgsl")),
    ("subgroup.wgsl", include_str!("../../shaders/subgroup.wgsl")),
    ("uniform.wgsl", include_str!("../../shaders/uniform.wgsl")),
    ("vlb_terms.wgsl", include_str!("../../shaders/vlb_terms.wgsl")),
    ("winograd.wgsl", include_str!("../../shaders/winograd.wgsl")),
];

/// Renders `kernel`'s template with one value per define.
///
/// # Errors
/// [`Error::Kernel`] with the template's line for an unknown name or a
/// syntax fault.
pub fn compose(kernel: &Kernel, defines: &[i64]) -> Result<String> {
    let fail = |e: minijinja::Error| Error::Kernel {
        kernel: kernel.name.into(),
        detail: format!("{e:#}"),
    };
    let mut env = Environment::new();
    env.set_undefined_behavior(UndefinedBehavior::Strict);
    for (name, source) in INCLUDES {
        env.add_template(name, source).map_err(fail)?;
    }
    env.add_template(kernel.name, kernel.source).map_err(fail)?;
    let context: BTreeMap<&str, i64> =
        kernel.defines.iter().copied().zip(defines.iter().copied()).collect();
    env.get_template(kernel.name).and_then(|t| t.render(context)).map_err(fail)
}

/// Parses composed WGSL.
///
/// # Errors
/// [`Error::Kernel`] with naga's message and the offending source line.
pub fn parse(kernel: &Kernel, wgsl: &str) -> Result<naga::Module> {
    naga::front::wgsl::parse_str(wgsl)
        .map_err(|e| Error::Kernel { kernel: kernel.name.into(), detail: e.emit_to_string(wgsl) })
}
