//! [`Device`]: an open adapter with its compiled kernels.

use crate::caps::Caps;
use crate::gpu::{AdapterSummary, Gpu, list_adapters_async};
use crate::runtime::{Compiling, Context, Pipelines};
use crate::tuning::Forced;
#[cfg(feature = "files")]
use crate::tuning::{Cache, TuningFile};
use crate::{Error, Result};
use std::sync::Arc;

/// How a device is opened. The default takes the best adapter, keeps nothing on disk
/// and runs every kernel by its own rule.
#[derive(Default)]
pub struct DeviceOptions {
    /// The adapter: its index in [`Device::list`], or a part of its name, its kind or its
    /// backend in any case ("radeon", "software", "vulkan"). `None` takes the first of the
    /// list, the one that is likely the fastest.
    pub adapter: Option<String>,
    /// Keeps compiled kernels in this folder, so that the next start is quicker, where
    /// the driver can give them out (Vulkan alone).
    #[cfg(feature = "files")]
    pub cache: Option<Cache>,
    /// Runs the variants of kernels that `demist tune` measured to be the fastest, if
    /// [`DeviceOptions::cache`] holds them.
    #[cfg(feature = "files")]
    pub tuned: bool,
    /// Variants of kernels to take wherever they can be taken, before any measured one.
    pub forced: Forced,
    /// Keeps the bounds checks of the shaders, which cost time. The environment variable
    /// `DEMIST_CHECKED=1` does the same.
    pub checked: bool,
    /// Asks for what measuring uses, where the adapter offers it: timestamps, and
    /// arithmetic in half precision. No op of this crate needs it.
    pub measuring: bool,
    /// Is called a few times a second while kernels are compiled. An error that it
    /// returns stops the compilation, and the call that needed it.
    pub on_compiling: Option<OnCompiling>,
}

/// Told how far compiling is; see [`DeviceOptions::on_compiling`].
#[cfg(not(target_arch = "wasm32"))]
pub type OnCompiling = Box<dyn Fn(Compiling) -> Result<()> + Send + Sync>;
/// Told how far compiling is; see [`DeviceOptions::on_compiling`].
#[cfg(target_arch = "wasm32")]
pub type OnCompiling = Box<dyn Fn(Compiling) -> Result<()>>;

/// An open device with its compiled kernels. A clone is the same device.
#[derive(Clone)]
pub struct Device(Arc<Opened>);

struct Opened {
    // Dropped before the device that it belongs to.
    pipelines: Pipelines,
    gpu: Gpu,
    tuning_fault: Option<Error>,
}

impl Device {
    /// All adapters that can compute, the preferred one first.
    ///
    /// # Errors
    /// [`Error::Device`] if there is none; it says what to install.
    pub async fn list() -> Result<Vec<AdapterSummary>> {
        list_adapters_async().await
    }

    /// Opens an adapter.
    ///
    /// ```
    /// # fn main() -> demist::Result<()> {
    /// use demist::{Device, DeviceOptions, block_on};
    /// let device = block_on(Device::open(DeviceOptions::default()))?;
    /// println!("{}", device.summary());
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// [`Error::Device`] if there is no such adapter, or it refuses.
    pub async fn open(options: DeviceOptions) -> Result<Device> {
        let adapter = options.adapter.as_deref();
        let mut gpu = match options.measuring {
            true => Gpu::open_for_measuring_async(adapter).await?,
            false => Gpu::open_async(adapter).await?,
        };
        gpu.caps.forced = options.forced;
        #[cfg(feature = "files")]
        let (mut pipelines, tuning_fault) = match &options.cache {
            Some(cache) => use_cache(&mut gpu, cache, options.tuned).await,
            None => (Pipelines::new(), None),
        };
        #[cfg(not(feature = "files"))]
        let (mut pipelines, tuning_fault) = (Pipelines::new(), None);
        if options.checked {
            pipelines.keep_checks();
        }
        if let Some(tell) = options.on_compiling {
            pipelines.on_progress(tell);
        }
        Ok(Device(Arc::new(Opened { pipelines, gpu, tuning_fault })))
    }

    /// The adapter: its name, kind, backend, driver, features and limits. Printed it is
    /// one line.
    pub fn summary(&self) -> &AdapterSummary {
        &self.0.gpu.summary
    }

    /// What kernels may use of the device, and the variants that were measured.
    pub fn caps(&self) -> &Caps {
        &self.0.gpu.caps
    }

    /// Number of shapes whose fastest variant was measured and is used.
    pub fn tuned_shapes(&self) -> usize {
        self.caps().tuning.as_ref().map_or(0, |t| t.len())
    }

    /// Why the measured variants are not used though [`DeviceOptions::tuned`] asked for
    /// them: their file is damaged. The device works without them.
    pub fn tuning_fault(&self) -> Option<&Error> {
        self.0.tuning_fault.as_ref()
    }

    /// The device for those who use [`crate::engine`] below.
    pub fn context(&self) -> Context<'_> {
        Context { gpu: &self.0.gpu, pipelines: &self.0.pipelines }
    }

    /// The device alone, without its kernels.
    pub fn gpu(&self) -> &Gpu {
        &self.0.gpu
    }
}

/// Takes what a cache keeps for the device: its compiled kernels, and if `tuned` the
/// variants that were measured. The error says why these are not used.
#[cfg(feature = "files")]
async fn use_cache(gpu: &mut Gpu, cache: &Cache, tuned: bool) -> (Pipelines, Option<Error>) {
    let key = gpu.summary.key();
    let mut fault = None;
    if tuned {
        match TuningFile::read(&cache.tuning(&key), &key) {
            Ok(file) => gpu.caps.tuning = file.map(|f| Arc::new(f.tuning)),
            Err(e) => fault = Some(e),
        }
    }
    (Pipelines::kept_in_async(gpu, &cache.pipelines(&key)).await, fault)
}

impl std::fmt::Debug for Device {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Device({})", self.summary())
    }
}
