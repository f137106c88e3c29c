//! Making one pipeline: from a kernel's text to what the driver gave.

use crate::gpu::Gpu;
use crate::graph::GUARD;
use crate::kernel::{Access, DIGITS, Kernel, bind_writable, check, compose, guarded, parse, widen};
use crate::{Error, Result};
use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

/// Kernel, defines, and [`crate::graph::Dispatch::writable_reads`].
pub(super) type Key = (&'static str, Vec<i64>, u32);

/// A compiled variant of a kernel.
#[derive(Clone)]
pub(super) struct Compiled {
    pub pipeline: Arc<wgpu::ComputePipeline>,
    pub layout: Arc<wgpu::BindGroupLayout>,
}

/// A variant to be compiled.
pub(super) struct Job {
    pub key: Key,
    pub kernel: &'static Kernel,
    /// Its text.
    pub wgsl: String,
}

/// How pipelines are made.
#[derive(Clone, Copy)]
pub(super) struct Compiler<'a> {
    /// Where the driver keeps what it compiled.
    pub cache: Option<&'a wgpu::PipelineCache>,
    /// Keep the driver's and naga's guards.
    pub checked: bool,
}

/// A pipeline of `gpu`, not yet launched.
///
/// # Errors
/// [`Error::Kernel`] naming what is wrong with the shader.
pub(super) async fn compile(gpu: &Gpu, job: &Job, compiler: Compiler<'_>) -> Result<Compiled> {
    let Job { key: (_, defines, writable_reads), kernel, wgsl } = job;
    let mut module = parse(kernel, wgsl)?;
    check(kernel, defines, &module)?;
    let mut text = Cow::Borrowed(wgsl);
    if gpu.caps.guarded {
        text = Cow::Owned(guarded(&text, &module, GUARD));
    }
    if gpu.caps.wide_accesses {
        text = Cow::Owned(widen(&text));
    }
    if let Cow::Owned(text) = &text {
        module = parse(kernel, text)?;
    }
    bind_writable(&mut module, *writable_reads);
    let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
    let source = wgpu::ShaderSource::Naga(Cow::Owned(module));
    let descriptor = wgpu::ShaderModuleDescriptor { label: Some(kernel.name), source };
    let module = if compiler.checked {
        gpu.device.create_shader_module(descriptor)
    } else {
        // SAFETY: the shaders are this crate's own; every access is
        // guarded by extents in the uniform block, every loop ends, and
        // the tests run them checked against CPU twins.
        unsafe {
            gpu.device
                .create_shader_module_trusted(descriptor, wgpu::ShaderRuntimeChecks::unchecked())
        }
    };
    let layout = bind_group_layout(gpu, kernel, defines, *writable_reads);
    let pipeline_layout = gpu.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
        label: Some(kernel.name),
        bind_group_layouts: &[Some(&layout)],
        immediate_size: if kernel.uses_immediates(defines) {
            size_of_val(&DIGITS) as u32
        } else {
            0
        },
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
        cache: compiler.cache,
    });
    if let Some(e) = scope.pop().await {
        return Err(Error::Kernel { kernel: kernel.name.into(), detail: e.to_string() });
    }
    Ok(Compiled { pipeline: Arc::new(pipeline), layout: Arc::new(layout) })
}

/// Numbers of a variant's storage bindings, and whether the shader may only read them.
pub(super) fn storage_bindings<'a>(
    kernel: &'a Kernel,
    defines: &'a [i64],
    writable_reads: u32,
) -> impl Iterator<Item = (u32, bool)> + 'a {
    kernel.active_bindings(defines).map(move |(number, b)| {
        (number, b.access == Access::Read && writable_reads >> number & 1 == 0)
    })
}

/// The variants with their text, the longest first: those take longest to compile, and
/// what begins last should end soon.
pub(super) fn jobs(missing: HashMap<Key, &'static Kernel>) -> Result<Vec<Job>> {
    let compose = |(key, kernel): (Key, &'static Kernel)| {
        Ok(Job { wgsl: compose(kernel, &key.1)?, key, kernel })
    };
    let mut jobs = missing.into_iter().map(compose).collect::<Result<Vec<Job>>>()?;
    jobs.sort_by(|a, b| b.wgsl.len().cmp(&a.wgsl.len()).then_with(|| a.key.cmp(&b.key)));
    Ok(jobs)
}

fn bind_group_layout(
    gpu: &Gpu,
    kernel: &Kernel,
    defines: &[i64],
    writable_reads: u32,
) -> wgpu::BindGroupLayout {
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let storage = storage_bindings(kernel, defines, writable_reads)
        .map(|(number, read_only)| entry(number, wgpu::BufferBindingType::Storage { read_only }));
    let entries: Vec<_> =
        std::iter::once(entry(0, wgpu::BufferBindingType::Uniform)).chain(storage).collect();
    gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(kernel.name),
        entries: &entries,
    })
}
