//! Batches prepared ahead on background threads, so that the device never waits
//! for the disk.
//!
//! Batch b is made by worker b mod W and travels through that worker's own
//! bounded channel; the consumer takes from the channels in turn. The stream is
//! therefore in order for any number of workers, without a reorder buffer. Where there are
//! no threads, a batch is made when it is asked for.

#[cfg(not(target_arch = "wasm32"))]
pub use ahead::Loader;
#[cfg(target_arch = "wasm32")]
pub use on_demand::Loader;

#[cfg(not(target_arch = "wasm32"))]
mod ahead {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::thread::JoinHandle;

    use crate::data::Dataset;
    use crate::data::batches::{Batch, Batches, LoaderOptions};
    use crate::{Error, Result};

    /// Batches kept ready, over all workers.
    const BATCHES_AHEAD: usize = 4;

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
            let workers = match options.workers {
                0 => std::thread::available_parallelism().map_or(1, |n| n.get()).min(4),
                // More than a batch ahead each would only hold memory.
                n => n.min(64),
            };
            let batches = Batches::new(dataset, options)?;
            let mut loader = Loader {
                channels: Vec::new(),
                threads: Vec::new(),
                stop: batches.stop.clone(),
                turn: 0,
            };
            for first in 0..workers {
                let (sender, receiver) = sync_channel(BATCHES_AHEAD.div_ceil(workers));
                let mut batches = batches.clone();
                let work = move || run(&mut batches, first as u64, workers as u64, sender);
                let thread = std::thread::Builder::new()
                    .name(format!("loader-{first}"))
                    .spawn(work)
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
    fn run(batches: &mut Batches, first: u64, step: u64, sender: SyncSender<Result<Batch>>) {
        let mut number = first;
        while let Some(batch) = batches.batch(number).transpose() {
            let failed = batch.is_err();
            if sender.send(batch).is_err() || failed {
                return;
            }
            // Saturates only where batch() reports the end of the stream.
            number = number.saturating_add(step);
        }
    }
}

#[cfg(target_arch = "wasm32")]
mod on_demand {
    use std::sync::Arc;

    use crate::data::Dataset;
    use crate::data::batches::{Batch, Batches, LoaderOptions};
    use crate::{Error, Result};

    /// An endless iterator over batches.
    pub struct Loader {
        batches: Batches,
        /// Of the next batch.
        number: u64,
    }

    impl Loader {
        /// Batches of `dataset`.
        ///
        /// # Errors
        /// If `batch_size` is zero or a batch would not fit in memory at all.
        pub fn new(dataset: Arc<Dataset>, options: LoaderOptions) -> Result<Loader> {
            Ok(Loader { batches: Batches::new(dataset, options)?, number: 0 })
        }

        /// Makes the next batch of the stream.
        #[allow(clippy::should_implement_trait)] // the stream is endless and fallible
        pub fn next(&mut self) -> Result<Batch> {
            let batch = self.batches.batch(self.number)?;
            self.number = self.number.saturating_add(1);
            batch.ok_or_else(|| Error::Data("the loader has stopped".to_owned()))
        }
    }
}
