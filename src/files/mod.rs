//! Writing files whole or not at all, and saying when and by which build
//! something was made.

pub mod atomic;
pub mod stamp;
