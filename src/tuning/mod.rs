//! Tuning: which variant of a kernel was fastest on a device, and where that is
//! kept between runs.
//!
//! A [`Tuning`] is a table that a lowering looks up. `demist tune` measures one
//! ([`crate::bench::Subject`]) and keeps it in a [`TuningFile`] of the user's
//! [`Cache`] folder, one for each [`DeviceKey`]. The library reads no such file by
//! itself: who opens a device puts the table into [`crate::caps::Caps::tuning`], as
//! the commands do. So tests run by the rules, whatever their user has tuned.

#[cfg(feature = "files")]
mod cache;
#[cfg(feature = "files")]
mod file;
mod forced;
mod key;
mod table;

pub use forced::Forced;
pub use key::DeviceKey;
pub use table::{Tuning, shape_name};
#[cfg(feature = "files")]
pub use {cache::Cache, file::TuningFile};
