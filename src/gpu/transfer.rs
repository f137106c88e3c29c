//! Buffers, uploads and downloads, with out-of-memory as a value.

use super::Gpu;
use crate::caps::human_bytes;
use crate::{Error, Result};
use futures_channel::oneshot;
#[cfg(not(target_arch = "wasm32"))]
use std::time::Duration;

/// Usages of every buffer that kernels see.
const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_DST)
    .union(wgpu::BufferUsages::COPY_SRC);

/// A wait longer than this means a hung driver, not a slow kernel.
#[cfg(not(target_arch = "wasm32"))]
const WAIT_LIMIT: Duration = Duration::from_secs(600);

impl Gpu {
    /// A zeroed storage buffer of at least `bytes`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room or its limits forbid it.
    pub(crate) async fn storage_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let size = bytes.max(4).next_multiple_of(4);
        if size > self.caps.max_buffer {
            return Err(Error::Memory(format!(
                "{label} needs a buffer of {}, {} allows {}",
                human_bytes(size),
                self.summary.name,
                human_bytes(self.caps.max_buffer)
            )));
        }
        self.guarded_buffer(label, size, STORAGE).await
    }

    /// Creates a buffer and turns allocation failure into a value.
    pub(crate) async fn guarded_buffer(
        &self,
        label: &str,
        size: u64,
        usage: wgpu::BufferUsages,
    ) -> Result<wgpu::Buffer> {
        let scope = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let buffer = self.device.create_buffer(&wgpu::BufferDescriptor {
            label: Some(label),
            size,
            usage,
            mapped_at_creation: false,
        });
        match scope.pop().await {
            Some(_) => Err(Error::Memory(format!(
                "{} has no room for {label} ({})",
                self.summary.name,
                human_bytes(size)
            ))),
            None => Ok(buffer),
        }
    }

    /// Copies ranges `(buffer, offset, bytes)` to the host after all
    /// submitted work, in one round trip.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost or hangs.
    pub(crate) async fn read_async(
        &self,
        ranges: &[(&wgpu::Buffer, u64, u64)],
    ) -> Result<Vec<Vec<u8>>> {
        let total: u64 = ranges.iter().map(|r| r.2.next_multiple_of(4)).sum();
        let usage = wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST;
        let staging = self.guarded_buffer("readback", total.max(4), usage).await?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for (buffer, offset, bytes) in ranges {
            let size = bytes.next_multiple_of(4);
            encoder.copy_buffer_to_buffer(buffer, *offset, &staging, at, size);
            at += size;
        }
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = oneshot::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |outcome| {
            // Nobody listens where the caller gave the read up.
            let _ = sender.send(outcome);
        });
        self.wait_async().await?;
        // Another thread's poll may have taken the callback and be about to call it.
        if !matches!(receiver.await, Ok(Ok(()))) {
            self.check()?;
            return Err(Error::Device(format!("{}: reading back failed", self.summary.name)));
        }
        let view = staging.get_mapped_range(..).map_err(|e| {
            Error::Device(format!("{}: reading back failed: {e}", self.summary.name))
        })?;
        let mut out = Vec::with_capacity(ranges.len());
        let mut at = 0usize;
        for (_, _, bytes) in ranges {
            out.push(view[at..at + *bytes as usize].to_vec());
            at += bytes.next_multiple_of(4) as usize;
        }
        Ok(out)
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost, faulted or hangs.
    pub async fn wait_async(&self) -> Result<()> {
        self.wait_for_async(&Ticket::new(self, None)).await
    }

    /// Waits until the work named by `ticket` is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost, faulted or hangs.
    pub async fn wait_for_async(&self, ticket: &Ticket) -> Result<()> {
        let outcome = ticket.done(self).await;
        self.check()?;
        outcome.map_err(|why| {
            Error::Device(format!("{}: waiting for the device: {why}", self.summary.name))
        })
    }
}

/// Names submitted work, to wait for it; see [`Gpu::wait_for_async`].
///
/// A native device is asked for the work by its number. A browser is not: it calls back.
pub struct Ticket {
    #[cfg(not(target_arch = "wasm32"))]
    number: Option<wgpu::SubmissionIndex>,
    /// Empty once it was waited for.
    #[cfg(target_arch = "wasm32")]
    called: std::cell::Cell<Option<oneshot::Receiver<()>>>,
}

impl std::fmt::Debug for Ticket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Ticket")
    }
}

#[cfg(not(target_arch = "wasm32"))]
impl Ticket {
    /// Of the submission `number`, or of all work so far.
    pub(crate) fn new(_: &Gpu, number: Option<wgpu::SubmissionIndex>) -> Ticket {
        Ticket { number }
    }

    async fn done(&self, gpu: &Gpu) -> std::result::Result<(), String> {
        let submission_index = self.number.clone();
        let wait = wgpu::PollType::Wait { submission_index, timeout: Some(WAIT_LIMIT) };
        gpu.device.poll(wait).map(drop).map_err(|e| e.to_string())
    }
}

#[cfg(target_arch = "wasm32")]
impl Ticket {
    /// Of all work so far, which the submission just made ends.
    pub(crate) fn new(gpu: &Gpu, _: Option<wgpu::SubmissionIndex>) -> Ticket {
        let (sender, receiver) = oneshot::channel();
        gpu.queue.on_submitted_work_done(move || {
            // Nobody listens where the ticket was dropped.
            let _ = sender.send(());
        });
        Ticket { called: std::cell::Cell::new(Some(receiver)) }
    }

    async fn done(&self, _: &Gpu) -> std::result::Result<(), String> {
        match self.called.take() {
            Some(receiver) => receiver.await.map_err(|_| "it is gone".into()),
            None => Ok(()),
        }
    }
}
