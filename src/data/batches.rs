//! Making the batches of the stream, each by its number.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use super::{Augment, DataOrder, Dataset};
use crate::{Error, Result};

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
    /// Background threads, where there are any; 0 chooses by the machine, at most four.
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

/// What makes batches.
#[derive(Clone)]
pub(super) struct Batches {
    dataset: Arc<Dataset>,
    options: LoaderOptions,
    order: DataOrder,
    /// Set to give up the batch that is being made.
    pub stop: Arc<AtomicBool>,
}

impl Batches {
    /// Batches of `dataset`.
    ///
    /// # Errors
    /// If `batch_size` is zero or a batch would not fit in memory at all.
    pub fn new(dataset: Arc<Dataset>, options: LoaderOptions) -> Result<Batches> {
        let values = options.batch_size.checked_mul(dataset.image_len());
        if values.and_then(|n| n.checked_mul(4)).is_none_or(|n| n == 0 || n > isize::MAX as usize) {
            return Err(Error::Config(format!("batch size {} is impossible", options.batch_size)));
        }
        let order = DataOrder::new(dataset.len(), options.seed)?;
        Ok(Batches { dataset, options, order, stop: Arc::default() })
    }

    /// Makes batch `number`; `None` when told to stop.
    pub fn batch(&mut self, number: u64) -> Result<Option<Batch>> {
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
