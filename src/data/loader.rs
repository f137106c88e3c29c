//! Batches prepared ahead on background threads, so that the device never waits
//! for the disk.
//!
//! Batch b is made by worker b mod W and travels through that worker's own
//! bounded channel; the consumer takes from the channels in turn. The stream is
//! therefore in order for any number of workers, without a reorder buffer.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use super::{Augment, DataOrder, Dataset};
use crate::{Error, Result};

/// Batches kept ready, over all workers.
const BATCHES_AHEAD: usize = 4;

/// How to draw batches.
#[derive(Debug, Clone)]
pub struct LoaderOptions {
    /// Images per batch.
    pub batch_size: usize,
    /// Seed of the order and of the flips.
    pub seed: u64,
    /// Stream index of the first image: the number of images already seen.
    pub start: u64,
    /// Mirror each image left to right with probability one half.
    pub flip: bool,
    /// Cut each image at random (see [`Augment::crop`]).
    pub random_crop: bool,
    /// Background threads; 0 chooses by the machine, at most four.
    pub workers: usize,
}

impl Default for LoaderOptions {
    fn default() -> Self {
        LoaderOptions {
            batch_size: 1,
            seed: 0,
            start: 0,
            flip: false,
            random_crop: false,
            workers: 0,
        }
    }
}

/// Consecutive images of the stream.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    /// `[batch, size, size, channels]` in \[-1, 1\].
    pub images: Vec<f32>,
    /// `[batch]` class indices.
    pub labels: Vec<u32>,
    /// Stream index of the first image.
    pub start: u64,
}

/// An endless iterator over batches; dropping it stops and joins its threads.
pub struct Loader {
    /// One per worker; emptied to stop them.
    channels: Vec<Receiver<Result<Batch>>>,
    threads: Vec<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// Worker whose turn it is.
    turn: usize,
}

impl Loader {
    /// Starts the workers on `dataset`.
    ///
    /// # Errors
    /// If `batch_size` is zero or a batch would not fit in memory at all.
    pub fn new(dataset: Arc<Dataset>, options: LoaderOptions) -> Result<Loader> {
        let values = options.batch_size.checked_mul(dataset.image_len());
        if values.and_then(|n| n.checked_mul(4)).is_none_or(|n| n == 0 || n > isize::MAX as usize) {
            return Err(Error::Config(format!("batch size {} is impossible", options.batch_size)));
        }
        let workers = match options.workers {
            0 => std::thread::available_parallelism().map_or(1, |n| n.get()).min(4),
            // More than a batch ahead each would only hold memory.
            n => n.min(64),
        };
        let order = DataOrder::new(dataset.len(), options.seed)?;
        let mut loader = Loader {
            channels: Vec::new(),
            threads: Vec::new(),
            stop: Arc::new(AtomicBool::new(false)),
            turn: 0,
        };
        for first in 0..workers {
            let (sender, receiver) = sync_channel(BATCHES_AHEAD.div_ceil(workers));
            let worker = Worker {
                dataset: dataset.clone(),
                options: options.clone(),
                order: order.clone(),
                stop: loader.stop.clone(),
                first: first as u64,
                step: workers as u64,
            };
            let thread = std::thread::Builder::new()
                .name(format!("loader-{first}"))
                .spawn(move || worker.run(sender))
                .map_err(|e| Error::Data(format!("cannot start a loader thread: {e}")))?;
            loader.channels.push(receiver);
            loader.threads.push(thread);
        }
        Ok(loader)
    }

    /// The next batch of the stream; waits for it if need be. An error of a
    /// worker comes out in its place, and ends the stream.
    #[allow(clippy::should_implement_trait)] // the stream is endless and fallible
    pub fn next(&mut self) -> Result<Batch> {
        let ended = || Err(Error::Data("the loader has stopped after an error".to_owned()));
        let Some(channel) = self.channels.get(self.turn) else { return ended() };
        let batch = channel.recv().unwrap_or_else(|_| ended());
        if batch.is_ok() {
            self.turn = (self.turn + 1) % self.channels.len();
        } else {
            self.shut_down();
        }
        batch
    }

    /// Ends the workers: the flag stops those at work, the closed channels those
    /// waiting to hand over.
    fn shut_down(&mut self) {
        self.stop.store(true, Relaxed);
        self.channels.clear();
        for thread in self.threads.drain(..) {
            // A worker's panic has been printed and ended its channel already.
            let _ = thread.join();
        }
    }
}

impl Drop for Loader {
    fn drop(&mut self) {
        self.shut_down();
    }
}

/// One background thread: makes the batches `first`, `first + step`, ...
struct Worker {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
    order: DataOrder,
    stop: Arc<AtomicBool>,
    first: u64,
    step: u64,
}

impl Worker {
    fn run(mut self, sender: SyncSender<Result<Batch>>) {
        let mut number = self.first;
        while let Some(batch) = self.batch(number).transpose() {
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
            // Saturates only where batch() reports the end of the stream.
            number = number.saturating_add(self.step);
        }
    }

    /// Makes batch `number`; `None` when told to stop.
    fn batch(&mut self, number: u64) -> Result<Option<Batch>> {
        let size = self.options.batch_size;
        let start = number
            .checked_mul(size as u64)
            .and_then(|offset| offset.checked_add(self.options.start))
            .filter(|start| start.checked_add(size as u64).is_some())
            .ok_or_else(|| Error::Data("the stream position exceeds 64 bits".to_owned()))?;
        let len = self.dataset.image_len();
        let mut images = Vec::new();
        images
            .try_reserve_exact(size * len)
            .map_err(|_| Error::Memory(format!("no room for a batch of {size} images")))?;
        images.resize(size * len, 0.0);
        let mut labels = Vec::new();
        for (k, out) in (start..).zip(images.chunks_exact_mut(len)) {
            if self.stop.load(Relaxed) {
                return Ok(None);
            }
            let i = self.order.index(k);
            let augment = Augment {
                flip: self.options.flip && self.order.flip(k),
                crop: self.options.random_crop.then(|| self.order.crop(k)),
            };
            self.dataset.write_floats(i, augment, out)?;
            labels.push(self.dataset.label(i));
        }
        Ok(Some(Batch { images, labels, start }))
    }
}
