//! The only module that speaks wgpu besides the runtime: adapters, the
//! device with its limits, transfers, and errors turned into values.
//!
//! What a browser makes its caller await is an async function here. On other targets
//! its future waits within the call, so it needs no executor that drives the device;
//! the crate's file `blocking.rs` holds the forms for callers that just wait.

mod adapters;
mod coop;
mod memory;
mod transfer;

pub use adapters::{AdapterSummary, list_adapters_async};
pub use transfer::Ticket;

use crate::caps::Caps;
use crate::tuning::Forced;
use crate::{Error, Result};
use std::sync::{Arc, Mutex};

/// An open device and its queue.
pub struct Gpu {
    adapter: wgpu::Adapter,
    pub(crate) device: wgpu::Device,
    pub(crate) queue: wgpu::Queue,
    /// The adapter's name, driver and type.
    pub summary: AdapterSummary,
    /// What kernels may use.
    pub caps: Caps,
    /// First message of an error that no call returned (a lost device, a
    /// validation fault), reported by the next [`Gpu::check`].
    fault: Arc<Mutex<Option<String>>>,
}

impl Gpu {
    /// Opens the adapter that `selector` names by index or by a part of its
    /// name; without one prefers discrete, then integrated, then software.
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such adapter or it refuses a device.
    pub async fn open_async(selector: Option<&str>) -> Result<Gpu> {
        Self::open_with(selector, wgpu::Features::empty()).await
    }

    /// As [`Gpu::open_async`], with what measuring uses where the adapter offers it:
    /// timestamps, and arithmetic in half precision. No kernel of an op needs it.
    ///
    /// # Errors
    /// As [`Gpu::open_async`].
    pub async fn open_for_measuring_async(selector: Option<&str>) -> Result<Gpu> {
        let timestamps = wgpu::Features::TIMESTAMP_QUERY
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS
            | wgpu::Features::TIMESTAMP_QUERY_INSIDE_PASSES;
        Self::open_with(selector, timestamps | wgpu::Features::SHADER_F16).await
    }

    /// Opens an adapter with those of the `wanted` features that it offers.
    async fn open_with(selector: Option<&str>, wanted: wgpu::Features) -> Result<Gpu> {
        Self::open_on(adapters::select(selector).await?, wanted).await
    }

    /// Another device on the same adapter, with the same features.
    ///
    /// # Errors
    /// [`Error::Device`] if the adapter refuses.
    pub async fn another_async(&self) -> Result<Gpu> {
        let other = Self::open_on(self.adapter.clone(), self.device.features()).await?;
        Ok(Gpu { caps: self.caps.clone(), ..other })
    }

    async fn open_on(adapter: wgpu::Adapter, wanted: wgpu::Features) -> Result<Gpu> {
        let summary = AdapterSummary::of(&adapter);
        let offered = adapter.limits();
        let digits = size_of_val(&crate::kernel::DIGITS) as u32;
        let uniform_loads = summary.loads_uniformly()
            && adapter.features().contains(wgpu::Features::IMMEDIATES)
            && offered.max_immediate_size >= digits;
        let wanted = if uniform_loads { wanted | wgpu::Features::IMMEDIATES } else { wanted };
        let software = summary.kind == "software";
        let wanted = if software { wanted | wgpu::Features::SHADER_INT64 } else { wanted };
        let coop = coop::offered(&adapter);
        let wanted = if coop.is_some() { wanted | coop::FEATURES } else { wanted };
        let limits = wgpu::Limits {
            max_immediate_size: if uniform_loads { digits } else { 0 },
            max_buffer_size: offered.max_buffer_size,
            max_storage_buffer_binding_size: offered.max_storage_buffer_binding_size,
            min_storage_buffer_offset_alignment: offered.min_storage_buffer_offset_alignment,
            ..wgpu::Limits::default()
        };
        let descriptor = wgpu::DeviceDescriptor {
            label: Some("demist"),
            // Subgroups and a pipeline cache change nothing until they are used.
            required_features: adapter.features()
                & (wanted | wgpu::Features::SUBGROUP | wgpu::Features::PIPELINE_CACHE),
            required_limits: limits.clone(),
            experimental_features: coop::permission(coop),
            ..Default::default()
        };
        let (device, queue) = adapter
            .request_device(&descriptor)
            .await
            .map_err(|e| Error::Device(format!("{}: {e}", summary.name)))?;
        let fault = Arc::new(Mutex::new(None));
        let sink = fault.clone();
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&sink, e.to_string())));
        let sink = fault.clone();
        device.set_device_lost_callback(move |reason, message| {
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&sink, format!("device lost: {message}"));
            }
        });
        let caps = Caps {
            software,
            uniform_loads,
            wide_accesses: software && device.features().contains(wgpu::Features::SHADER_INT64),
            compiles_at_launch: summary.is_llvmpipe(),
            coop,
            // A browser wants `enable subgroups;` in the text, which naga does not know.
            subgroups: !software
                && !cfg!(target_arch = "wasm32")
                && device.features().contains(wgpu::Features::SUBGROUP),
            max_binding: limits.max_storage_buffer_binding_size,
            max_buffer: limits.max_buffer_size,
            // One alignment for all devices keeps flat buffers identical.
            storage_alignment: 256,
            max_groups: limits.max_compute_workgroups_per_dimension,
            tuning: None,
            forced: Forced::default(),
            guarded: false,
        };
        Ok(Gpu { adapter, device, queue, summary, caps, fault })
    }

    /// Whether kernels may calculate in half precision on this device.
    pub fn has_f16(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// Whether [`Caps::subgroups`] may be set.
    pub fn has_subgroups(&self) -> bool {
        self.device.features().contains(wgpu::Features::SUBGROUP)
    }

    /// Returns a fault that the driver reported outside any call.
    ///
    /// # Errors
    /// [`Error::Device`] with the driver's message.
    pub fn check(&self) -> Result<()> {
        match self.fault.lock().unwrap_or_else(|e| e.into_inner()).take() {
            Some(message) => Err(Error::Device(format!("{}: {message}", self.summary.name))),
            None => Ok(()),
        }
    }
}

/// Keeps the first message only: later ones are consequences.
fn note(slot: &Mutex<Option<String>>, message: String) {
    let mut slot = slot.lock().unwrap_or_else(|e| e.into_inner());
    slot.get_or_insert(message);
}

#[cfg(test)]
mod tests {
    use crate::caps::Caps;

    #[test]
    fn default_capabilities_are_what_every_webgpu_device_has() {
        let (caps, limits) = (Caps::default(), wgpu::Limits::default());
        assert_eq!(caps.max_binding, limits.max_storage_buffer_binding_size);
        assert_eq!(caps.max_buffer, limits.max_buffer_size);
        assert_eq!(caps.max_groups, limits.max_compute_workgroups_per_dimension);
    }
}
