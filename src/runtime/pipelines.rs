//! Compute pipelines, compiled in parallel and kept for the device's life.

use super::pipeline_file::PipelineFile;
use super::warm_up::warm_up;
use crate::gpu::Gpu;
use crate::graph::Dispatch;
use crate::kernel::{Access, DIGITS, Kernel, check, compose, open, parse, widen};
use crate::{Error, Result};
use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

/// Kernel, defines, and [`Dispatch::opened`].
type Key = (&'static str, Vec<i64>, u32);

/// A compiled variant of a kernel.
#[derive(Clone)]
pub(super) struct Compiled {
    pub pipeline: Arc<wgpu::ComputePipeline>,
    pub layout: Arc<wgpu::BindGroupLayout>,
}

/// A variant to be compiled.
struct Job {
    key: Key,
    kernel: &'static Kernel,
    wgsl: String,
}

/// How often whoever waits for kernels is told, at least.
const TELL_EVERY: Duration = Duration::from_millis(100);

/// How far the compilation of some kernels is.
#[derive(Debug, Clone, Copy)]
pub struct Compiling {
    /// Kernels made.
    pub done: usize,
    /// Kernels in all.
    pub total: usize,
    /// Since the first was begun.
    pub elapsed: Duration,
}

type OnProgress = Box<dyn Fn(Compiling) -> Result<()> + Send + Sync>;

/// All pipelines made so far, by kernel and variant.
#[derive(Default)]
pub struct Pipelines {
    made: Mutex<HashMap<Key, Compiled>>,
    on_progress: Option<OnProgress>,
    file: Option<PipelineFile>,
    /// Keep the driver's and naga's guards (bounds, loops, division), for
    /// debugging kernels.
    checked: bool,
}

impl Pipelines {
    /// An empty cache. The environment variable `DEMIST_CHECKED=1` keeps
    /// shader bounds checks.
    pub fn new() -> Self {
        let checked = std::env::var_os("DEMIST_CHECKED").is_some_and(|v| v == "1");
        Pipelines { checked, ..Self::default() }
    }

    /// As [`Pipelines::new`], with what the driver compiled in earlier runs, where the
    /// backend can keep it (Vulkan alone), and keeps what it compiles in this one. A
    /// file that is missing, damaged or another driver's counts as empty; one that cannot
    /// be written is not.
    pub fn kept_in(gpu: &Gpu, path: &Path) -> Self {
        Pipelines { file: PipelineFile::open(gpu, path), ..Self::new() }
    }

    /// Keeps the guards of shaders (bounds, loops, division) in all that is compiled from
    /// now on.
    pub fn keep_checks(&mut self) {
        self.checked = true;
    }

    /// Calls `tell` while kernels are compiled: a few times a second, and in the end, a
    /// failure included, with all of them done. An error that it returns stops the
    /// compilation between two kernels.
    pub fn on_progress(&mut self, tell: impl Fn(Compiling) -> Result<()> + Send + Sync + 'static) {
        self.on_progress = Some(Box::new(tell));
    }

    /// Compiles what `dispatches` lack, on all cores at once.
    ///
    /// # Errors
    /// [`Error::Kernel`] if one cannot be compiled, and what [`Pipelines::on_progress`] says.
    pub fn make_ready(&self, gpu: &Gpu, dispatches: &[Dispatch]) -> Result<()> {
        self.prepare(gpu, dispatches).map(drop)
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
        if !missing.is_empty() {
            let jobs = jobs(missing)?;
            let begun = Instant::now();
            let outcome = self.compile_all(gpu, &jobs);
            if let Some(file) = &self.file {
                file.compiled(begun.elapsed());
            }
            outcome?;
        }
        let made = self.lock();
        Ok(dispatches.iter().map(|d| made[&key(d)].clone()).collect())
    }

    fn compile_all(&self, gpu: &Gpu, jobs: &[Job]) -> Result<()> {
        let workers = std::thread::available_parallelism().map_or(1, |n| n.get()).min(jobs.len());
        let taken = AtomicUsize::new(0);
        let next = || jobs.get(taken.fetch_add(1, Ordering::Relaxed));
        let failure = Mutex::new(None);
        let fail = |e| {
            // The others stop at the next kernel.
            taken.store(jobs.len(), Ordering::Relaxed);
            failure.lock().unwrap_or_else(|e| e.into_inner()).get_or_insert(e);
        };
        let run = |work: Result<()>| work.unwrap_or_else(fail);
        // A device compiles one kernel at a time where that waits for its launch.
        let (makers, helpers): (usize, Vec<Gpu>) = match gpu.caps.compiles_at_launch {
            true => (1, (1..workers).map_while(|_| gpu.another().ok()).collect()),
            false => (workers, Vec::new()),
        };
        std::thread::scope(|scope| {
            let (made, heard) = mpsc::channel();
            let (hand_over, handed) = mpsc::channel();
            for helper in &helpers {
                let hand_over = hand_over.clone();
                scope.spawn(move || run(self.help(helper, next, hand_over)));
            }
            drop(hand_over);
            for _ in 1..makers {
                let made = made.clone();
                scope.spawn(move || run(self.make(gpu, next, made)));
            }
            // What helpers are through with goes first, since the driver knows it.
            let known_or_next =
                move || handed.try_recv().ok().or_else(next).or_else(|| handed.recv().ok());
            scope.spawn(move || run(self.make(gpu, known_or_next, made)));
            self.tell(jobs.len(), &heard, fail);
        });
        failure.into_inner().unwrap_or_else(|e| e.into_inner()).map_or(Ok(()), Err)
    }

    /// Compiles what `next` gives, and keeps it.
    fn make<'a>(
        &self,
        gpu: &Gpu,
        next: impl Fn() -> Option<&'a Job>,
        made: mpsc::Sender<()>,
    ) -> Result<()> {
        let cache = self.file.as_ref().map(|f| &f.cache);
        while let Some(job) = next() {
            let compiled = self.compile(gpu, job, cache)?;
            self.lock().insert(job.key.clone(), compiled);
            // The receiver listens until every sender is gone.
            let _ = made.send(());
        }
        Ok(())
    }

    /// Compiles what `next` gives on another device, so that the driver knows it.
    fn help<'a>(
        &self,
        helper: &Gpu,
        next: impl Fn() -> Option<&'a Job>,
        hand_over: mpsc::Sender<&'a Job>,
    ) -> Result<()> {
        while let Some(job) = next() {
            self.compile(helper, job, None)?;
            // The receiver is gone after a failure alone, which ends the queue.
            let _ = hand_over.send(job);
        }
        Ok(())
    }

    /// Tells how far compiling is until nobody is at it.
    fn tell(&self, total: usize, made: &mpsc::Receiver<()>, fail: impl Fn(Error)) {
        let begun = Instant::now();
        let tell = |done| match &self.on_progress {
            Some(tell) => tell(Compiling { done, total, elapsed: begun.elapsed() }),
            None => Ok(()),
        };
        let mut done = 0;
        loop {
            match made.recv_timeout(TELL_EVERY) {
                Ok(()) => done += 1,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => break,
            }
            // The last one is told of below, once.
            if done < total
                && let Err(e) = tell(done)
            {
                fail(e);
            }
        }
        if let Err(e) = tell(total) {
            fail(e);
        }
    }

    /// A pipeline of `gpu`, compiled for good.
    fn compile(
        &self,
        gpu: &Gpu,
        job: &Job,
        cache: Option<&wgpu::PipelineCache>,
    ) -> Result<Compiled> {
        let Job { key: (_, defines, opened), kernel, wgsl } = job;
        let mut module = parse(kernel, wgsl)?;
        check(kernel, defines, &module)?;
        if gpu.caps.wide_accesses {
            module = parse(kernel, &widen(wgsl))?;
        }
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
            cache,
        });
        if let Some(e) = pollster::block_on(scope.pop()) {
            return Err(Error::Kernel { kernel: kernel.name.into(), detail: e.to_string() });
        }
        let compiled = Compiled { pipeline: Arc::new(pipeline), layout: Arc::new(layout) };
        if gpu.caps.compiles_at_launch {
            warm_up(gpu, kernel, defines, *opened, &compiled)?;
        }
        Ok(compiled)
    }
}

/// Numbers of a variant's storage bindings, and whether the shader may only read them.
pub(super) fn storage_bindings<'a>(
    kernel: &'a Kernel,
    defines: &'a [i64],
    opened: u32,
) -> impl Iterator<Item = (u32, bool)> + 'a {
    kernel
        .active_bindings(defines)
        .map(move |(number, b)| (number, b.access == Access::Read && opened >> number & 1 == 0))
}

/// The variants with their text, the longest first: those take longest to compile, and
/// what begins last should end soon.
fn jobs(missing: HashMap<Key, &'static Kernel>) -> Result<Vec<Job>> {
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
    opened: u32,
) -> wgpu::BindGroupLayout {
    let entry = |binding, ty| wgpu::BindGroupLayoutEntry {
        binding,
        visibility: wgpu::ShaderStages::COMPUTE,
        ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
        count: None,
    };
    let storage = storage_bindings(kernel, defines, opened)
        .map(|(number, read_only)| entry(number, wgpu::BufferBindingType::Storage { read_only }));
    let entries: Vec<_> =
        std::iter::once(entry(0, wgpu::BufferBindingType::Uniform)).chain(storage).collect();
    gpu.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
        label: Some(kernel.name),
        entries: &entries,
    })
}
