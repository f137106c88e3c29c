//! Listing adapters and choosing one.

use crate::tuning::DeviceKey;
use crate::{Error, Result};

/// What `devices` prints of an adapter and outputs record as their origin.
#[derive(Debug, Clone, serde::Serialize)]
pub struct AdapterSummary {
    /// Marketing or driver name.
    pub name: String,
    /// "discrete", "integrated", "virtual", "software" or "other".
    pub kind: &'static str,
    /// "vulkan", "metal", "dx12", "gl" or "webgpu".
    pub backend: String,
    /// Driver name and version.
    pub driver: String,
    /// Optional features of interest to kernels.
    pub features: Vec<&'static str>,
    /// Largest bytes of one storage binding.
    pub max_binding: u64,
    /// Largest bytes of one buffer.
    pub max_buffer: u64,
    /// Bytes of workgroup memory.
    pub workgroup_memory: u32,
    /// Invocations per workgroup.
    pub max_invocations: u32,
    /// Smallest and largest subgroup.
    pub subgroup: (u32, u32),
}

impl AdapterSummary {
    pub(super) fn of(adapter: &wgpu::Adapter) -> Self {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let known = [
            (wgpu::Features::SHADER_F16, "f16"),
            (wgpu::Features::SUBGROUP, "subgroups"),
            (wgpu::Features::TIMESTAMP_QUERY, "timestamps"),
            (wgpu::Features::PIPELINE_CACHE, "pipeline-cache"),
            (wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX, "cooperative-matrix"),
        ];
        let features = adapter.features();
        AdapterSummary {
            name: info.name.clone(),
            kind: kind(info.device_type),
            backend: info.backend.to_str().to_owned(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            features: known
                .iter()
                .filter(|(f, _)| features.contains(*f))
                .map(|(_, n)| *n)
                .collect(),
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            workgroup_memory: limits.max_compute_workgroup_storage_size,
            max_invocations: limits.max_compute_invocations_per_workgroup,
            subgroup: (info.subgroup_min_size, info.subgroup_max_size),
        }
    }

    /// What measurements and compiled kernels of this device are kept by.
    pub fn key(&self) -> DeviceKey {
        DeviceKey {
            adapter: self.name.clone(),
            driver: self.driver.clone(),
            backend: self.backend.clone(),
        }
    }
}

impl AdapterSummary {
    /// Whether the driver is known to gain from uniform loads: llvmpipe of Mesa 25
    /// and later (22.3 does not, what lies between was not tried).
    pub(super) fn loads_uniformly(&self) -> bool {
        let mut words = self.driver.split_whitespace();
        let mesa = words.find(|w| *w == "Mesa").and(words.next());
        let major = mesa.and_then(|version| version.split('.').next()?.parse::<u32>().ok());
        self.is_llvmpipe() && major.is_some_and(|m| m >= 25)
    }

    /// Whether the driver is Mesa's for processors.
    pub(super) fn is_llvmpipe(&self) -> bool {
        self.driver.starts_with("llvmpipe")
    }
}

impl std::fmt::Display for AdapterSummary {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {}, {})", self.name, self.kind, self.backend, self.driver)
    }
}

fn kind(device_type: wgpu::DeviceType) -> &'static str {
    match device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

/// Order of preference of the default choice.
fn rank(summary: &AdapterSummary) -> usize {
    let kinds = ["discrete", "integrated", "virtual", "other", "software"];
    kinds.iter().position(|k| *k == summary.kind).unwrap_or(kinds.len())
}

/// All adapters able to compute, best first. GL is asked only where nothing
/// better answers (or the environment variable WGPU_BACKEND names it): it
/// shows the same hardware once more, and its loader is noisy.
async fn adapters() -> Result<Vec<(AdapterSummary, wgpu::Adapter)>> {
    let gl = wgpu::Backends::GL;
    let tries =
        wgpu::Backends::from_env().map_or(vec![wgpu::Backends::all() - gl, gl], |b| vec![b]);
    for backends in tries {
        let found = adapters_of(backends).await;
        if !found.is_empty() {
            return Ok(found);
        }
    }
    Err(Error::Device(
        "no GPU adapter found; install a Vulkan driver (on Debian: apt-get install mesa-vulkan-drivers, which also brings a software one)".into(),
    ))
}

async fn adapters_of(backends: wgpu::Backends) -> Vec<(AdapterSummary, wgpu::Adapter)> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle_from_env();
    descriptor.backends = backends;
    let instance = wgpu::Instance::new(descriptor);
    let found = instance.enumerate_adapters(backends).await;
    let mut found: Vec<_> = found
        .into_iter()
        .filter(|a| {
            let flags = a.get_downlevel_capabilities().flags;
            flags.contains(wgpu::DownlevelFlags::COMPUTE_SHADERS)
                && a.limits().max_storage_buffers_per_shader_stage >= 8
        })
        .map(|a| (AdapterSummary::of(&a), a))
        .collect();
    found.sort_by_key(|(s, _)| rank(s));
    found
}

/// All usable adapters in the order of their `--device` index.
///
/// # Errors
/// [`Error::Device`] if there is none, saying what to install.
pub async fn list_adapters_async() -> Result<Vec<AdapterSummary>> {
    Ok(adapters().await?.into_iter().map(|(s, _)| s).collect())
}

pub(super) async fn select(selector: Option<&str>) -> Result<wgpu::Adapter> {
    let mut found = adapters().await?;
    let Some(wanted) = selector else { return Ok(found.swap_remove(0).1) };
    let by_index = wanted.parse::<usize>().ok().filter(|i| *i < found.len());
    let by_name = || {
        let wanted = wanted.to_lowercase();
        found.iter().position(|(s, _)| {
            format!("{} {} {}", s.name, s.kind, s.backend).to_lowercase().contains(&wanted)
        })
    };
    match by_index.or_else(by_name) {
        Some(i) => Ok(found.swap_remove(i).1),
        None => {
            let names: Vec<String> =
                found.iter().enumerate().map(|(i, (s, _))| format!("{i}: {s}")).collect();
            Err(Error::Device(format!(
                "no adapter matches `{wanted}`; there are {}",
                names.join("; ")
            )))
        }
    }
}
