//! Compute pipelines, compiled in parallel and kept for the device's life.

use crate::gpu::Gpu;
use crate::graph::Dispatch;
use crate::kernel::{Access, Kernel, check, compose, open, parse};
use crate::{Error, Result};
use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

/// Kernel, defines, and [`Dispatch::opened`].
type Key = (&'static str, Vec<i64>, u32);

/// A compiled variant of a kernel.
#[derive(Clone)]
pub(super) struct Compiled {
    pub pipeline: Arc<wgpu::ComputePipeline>,
    pub layout: Arc<wgpu::BindGroupLayout>,
}

/// All pipelines made so far, by kernel and variant.
#[derive(Default)]
pub struct Pipelines {
    made: Mutex<HashMap<Key, Compiled>>,
    /// Keep the driver's and naga's guards (bounds, loops, division), for
    /// debugging kernels.
    checked: bool,
}

impl Pipelines {
    /// An empty cache. The environment variable `DEMIST_CHECKED=1` keeps
    /// shader bounds checks.
    pub fn new() -> Self {
        let checked = std::env::var_os("DEMIST_CHECKED").is_some_and(|v| v == "1");
        Pipelines { made: Mutex::default(), checked }
    }

    /// Number of pipelines compiled.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// True before the first compilation.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Compiled>> {
        self.made.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// One pipeline per dispatch, compiling what is missing on all cores.
    pub(super) fn prepare(&self, gpu: &Gpu, dispatches: &[Dispatch]) -> Result<Vec<Compiled>> {
        let key = |d: &Dispatch| (d.kernel.name, d.defines.clone(), d.opened);
        let mut missing: HashMap<Key, &'static Kernel> = HashMap::new();
        {
            let made = self.lock();
            for d in dispatches.iter().filter(|d| !made.contains_key(&key(d))) {
                missing.insert(key(d), d.kernel);
            }
        }
        let jobs: Vec<_> = missing.into_iter().collect();
        let next = AtomicUsize::new(0);
        let failure = Mutex::new(None);
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(jobs.len());
        std::thread::scope(|scope| {
            for _ in 0..workers {
                scope.spawn(|| {
                    while let Some((key, kernel)) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
                        match self.compile(gpu, kernel, key) {
                            Ok(compiled) => {
                                self.lock().insert(key.clone(), compiled);
                            }
                            Err(e) => {
                                failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
                                return;
                            }
                        }
                    }
                });
            }
        });
        if let Some(e) = failure.into_inner().unwrap_or_else(|e| e.into_inner()) {
            return Err(e);
        }
        let made = self.lock();
        Ok(dispatches.iter().map(|d| made[&key(d)].clone()).collect())
    }

    fn compile(&self, gpu: &Gpu, kernel: &'static Kernel, key: &Key) -> Result<Compiled> {
        let (_, defines, opened) = key;
        let mut module = parse(kernel, &compose(kernel, defines)?)?;
        check(kernel, defines, &module)?;
        open(&mut module, *opened);
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let source = wgpu::ShaderSource::Naga(std::borrow::Cow::Owned(module));
        let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source };
        let module = if self.checked {
            gpu.device.create_shader_module(descriptor)
        } else {
            // SAFETY: the shaders are this crate's own; every access is
            // guarded by extents in the uniform block, every loop ends, and
            // the tests run them checked against CPU twins.
            unsafe {
                gpu.device.create_shader_module_trusted(
                    descriptor,
                    wgpu::ShaderRuntimeChecks::unchecked(),
                )
            }
        };
        let layout = bind_group_layout(gpu, kernel, defines, *opened);
        let pipeline_layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
            label: Some(kernel.name),
            bind_group_layouts: &[Some(&layout)],
            immediate_size: 0,
        });
        let pipeline = gpu.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
            label: Some(kernel.name),
            layout: Some(&pipeline_layout),
            module: &module,
            entry_point: Some("main"),
            // Kernels write workgroup memory before they read it.
            compilation_options: wgpu::PipelineCompilationOptions {
                zero_initialize_workgroup_memory: false,
                ..Default::default()
            },
            cache: None,
        });
        match pollster::block_on(scope.pop()) {
            Some(e) => Err(Error::Kernel { kernel: kernel.name.into(), detail: e.to_string() }),
            None => Ok(Compiled { pipeline: Arc::new(pipeline), layout: Arc::new(layout) }),
        }
    }
}

fn bind_group_layout(
    gpu: &Gpu,
    kernel: &Kernel,
    defines: &[i64],
    opened: u32,
) -> wgpu::BindGroupLayout {
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let storage = kernel.active_bindings(defines).map(|(number, b)| {
        let read_only = b.access == Access::Read && opened >> number & 1 == 0;
        entry(number, wgpu::BufferBindingType::Storage { read_only })
    });
    let entries: Vec<_> =
        std::iter::once(entry(0, wgpu::BufferBindingType::Uniform)).chain(storage).collect();
    gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(kernel.name),
        entries: &entries,
    })
}
