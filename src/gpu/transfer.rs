//! Buffers, uploads and downloads, with out-of-memory as a value.

use super::Gpu;
use crate::caps::human_bytes;
use crate::{Error, Result};
use std::time::Duration;

/// Usages of every buffer that kernels see.
const STORAGE: wgpu::BufferUsages = wgpu::BufferUsages::STORAGE
    .union(wgpu::BufferUsages::COPY_DST)
    .union(wgpu::BufferUsages::COPY_SRC);

/// A wait longer than this means a hung driver, not a slow kernel.
const WAIT_LIMIT: Duration = Duration::from_secs(600);

/// Names submitted work, to wait for it; see [`Gpu::wait_for`].
#[derive(Debug, Clone)]
pub struct Ticket(pub(crate) Option<wgpu::SubmissionIndex>);

impl Gpu {
    /// A zeroed storage buffer of at least `bytes`.
    ///
    /// # Errors
    /// [`Error::Memory`] if the device has no room or its limits forbid it.
    pub(crate) fn storage_buffer(&self, label: &str, bytes: u64) -> Result<wgpu::Buffer> {
        let size = bytes.max(4).next_multiple_of(4);
        if size > self.caps.max_buffer {
            return Err(Error::Memory(format!(
                "{label} needs a buffer of {}, {} allows {}",
                human_bytes(size),
                self.summary.name,
                human_bytes(self.caps.max_buffer)
            )));
        }
        self.guarded_buffer(label, size, STORAGE)
    }

    /// Creates a buffer and turns allocation failure into a value.
    pub(crate) fn guarded_buffer(
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
        match pollster::block_on(scope.pop()) {
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
    pub(crate) fn read(&self, ranges: &[(&wgpu::Buffer, u64, u64)]) -> Result<Vec<Vec<u8>>> {
        let total: u64 = ranges.iter().map(|r| r.2.next_multiple_of(4)).sum();
        let staging = self.guarded_buffer(
            "readback",
            total.max(4),
            wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
        )?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        let mut at = 0;
        for (buffer, offset, bytes) in ranges {
            let size = bytes.next_multiple_of(4);
            encoder.copy_buffer_to_buffer(buffer, *offset, &staging, at, size);
            at += size;
        }
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.map_async(wgpu::MapMode::Read, .., move |r| {
            let _ = sender.send(r);
        });
        self.wait()?;
        // Another thread's poll may have taken the callback and be about to call it.
        let mapped = receiver.recv_timeout(WAIT_LIMIT);
        if !matches!(mapped, Ok(Ok(()))) {
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

    /// Blocks until all submitted work is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost, faulted or hangs.
    pub fn wait(&self) -> Result<()> {
        self.wait_for(&Ticket(None))
    }

    /// Blocks until the work named by `ticket` is done.
    ///
    /// # Errors
    /// [`Error::Device`] if the device is lost, faulted or hangs.
    pub fn wait_for(&self, ticket: &Ticket) -> Result<()> {
        let submission_index = ticket.0.clone();
        let wait = wgpu::PollType::Wait { submission_index, timeout: Some(WAIT_LIMIT) };
        let outcome = self.device.poll(wait);
        self.check()?;
        outcome.map(|_| ()).map_err(|e| {
            Error::Device(format!("{}: waiting for the device: {e}", self.summary.name))
        })
    }
}
