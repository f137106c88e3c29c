//! Compute pipelines, compiled in parallel and kept for the device's life.

use super::compile::{Compiled, Compiler, Job, Key, jobs};
#[cfg(feature = "files")]
use super::pipeline_file::PipelineFile;
use crate::Result;
use crate::gpu::Gpu;
use crate::graph::Dispatch;
use crate::kernel::Kernel;
use std::collections::HashMap;
use std::sync::Mutex;
use web_time::{Duration, Instant};

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

#[cfg(not(target_arch = "wasm32"))]
type OnProgress = Box<dyn Fn(Compiling) -> Result<()> + Send + Sync>;
#[cfg(target_arch = "wasm32")]
type OnProgress = Box<dyn Fn(Compiling) -> Result<()>>;

/// All pipelines made so far, by kernel and variant.
#[derive(Default)]
pub struct Pipelines {
    made: Mutex<HashMap<Key, Compiled>>,
    on_progress: Option<OnProgress>,
    #[cfg(feature = "files")]
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
    #[cfg(feature = "files")]
    pub async fn kept_in_async(gpu: &Gpu, path: &std::path::Path) -> Self {
        Pipelines { file: PipelineFile::open(gpu, path).await, ..Self::new() }
    }

    /// Keeps the guards of shaders (bounds, loops, division) in all that is compiled from
    /// now on.
    pub fn keep_checks(&mut self) {
        self.checked = true;
    }

    /// Calls `tell` while kernels are compiled: a few times a second, and in the end, a
    /// failure included, with all of them done. An error that it returns stops the
    /// compilation between two kernels.
    pub fn on_progress(
        &mut self,
        tell: impl Fn(Compiling) -> Result<()> + wgpu::WasmNotSendSync + 'static,
    ) {
        self.on_progress = Some(Box::new(tell));
    }

    /// Compiles what `dispatches` lack, on all cores at once where there are threads.
    ///
    /// # Errors
    /// [`crate::Error::Kernel`] if one cannot be compiled, and what [`Pipelines::on_progress`] says.
    pub async fn make_ready_async(&self, gpu: &Gpu, dispatches: &[Dispatch]) -> Result<()> {
        self.prepare(gpu, dispatches).await.map(drop)
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

    /// One pipeline per dispatch, compiling what is missing.
    pub(super) async fn prepare(
        &self,
        gpu: &Gpu,
        dispatches: &[Dispatch],
    ) -> Result<Vec<Compiled>> {
        let key = |d: &Dispatch| (d.kernel.name, d.defines.clone(), d.writable_reads);
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
            let outcome = self.compile_all(gpu, &jobs, begun).await;
            #[cfg(feature = "files")]
            if let Some(file) = &self.file {
                file.compiled(begun.elapsed());
            }
            outcome?;
        }
        let made = self.lock();
        Ok(dispatches.iter().map(|d| made[&key(d)].clone()).collect())
    }

    fn compiler(&self) -> Compiler<'_> {
        #[cfg(feature = "files")]
        let cache = self.file.as_ref().map(|f| &f.cache);
        #[cfg(not(feature = "files"))]
        let cache = None;
        Compiler { cache, checked: self.checked }
    }

    /// Calls whoever wants to know how far the compilation of `total` kernels is.
    fn tell(&self, done: usize, total: usize, begun: Instant) -> Result<()> {
        match &self.on_progress {
            Some(tell) => tell(Compiling { done, total, elapsed: begun.elapsed() }),
            None => Ok(()),
        }
    }

    fn keep(&self, job: &Job, compiled: Compiled) {
        self.lock().insert(job.key.clone(), compiled);
    }

    /// Compiles and keeps `jobs` on all cores, within the call.
    #[cfg(not(target_arch = "wasm32"))]
    async fn compile_all(&self, gpu: &Gpu, jobs: &[Job], begun: Instant) -> Result<()> {
        let keep = |job: &Job, compiled| self.keep(job, compiled);
        let tell = |done| self.tell(done, jobs.len(), begun);
        super::workers::compile_all(gpu, jobs, self.compiler(), &keep, &tell).await
    }

    /// Compiles and keeps `jobs`, one after the other.
    #[cfg(target_arch = "wasm32")]
    async fn compile_all(&self, gpu: &Gpu, jobs: &[Job], begun: Instant) -> Result<()> {
        for (done, job) in jobs.iter().enumerate() {
            self.tell(done, jobs.len(), begun)?;
            self.keep(job, super::compile::compile(gpu, job, self.compiler()).await?);
        }
        self.tell(jobs.len(), jobs.len(), begun)
    }
}
