//! The data layer: image data sets, a deterministic order over them, and a
//! background loader. Host only; nothing here knows of a device.
//!
//! * [`Dataset`] opens a folder of images, an atlas PNG or IDX files (these two from bytes
//!   too) and hands out square 8-bit images with class labels.
//! * [`DataOrder`] maps the endless training stream onto the images, so that
//!   resuming needs one counter.
//! * [`Loader`] prepares batches ahead on threads, where there are any, in stream order.
//!
//! A data set is final once opened: every file has been decoded once, the
//! unreadable ones are listed in [`Dataset::skipped`], and `len` and the labels
//! do not change afterwards.

mod atlas;
mod batches;
mod decode;
#[cfg(feature = "files")]
mod folder;
mod idx;
mod interpolate;
mod loader;
mod open;
mod order;
mod resize;
mod set;

pub use batches::{Batch, LoaderOptions};
pub use interpolate::Squares;
pub use loader::Loader;
pub use open::image_from_bytes;
#[cfg(feature = "files")]
pub use open::open_image;
pub use order::DataOrder;
pub use set::{Augment, DataOptions, Dataset, first_names, to_float};
