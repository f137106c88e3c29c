//! Python pickles as `torch.save` writes them, read by a stack machine of our
//! own: an allowlist of opcodes and of the names that they may refer to. No
//! code is ever run, and whatever is unknown is an error that names it.
//! <https://github.com/python/cpython/blob/main/Lib/pickletools.py> describes
//! the opcodes.
//!
//! All values lie in one arena and refer to each other by number. So a pickle
//! that contains itself leaks nothing, nothing recurses (not even dropping), and
//! memory is bounded by the limits below and the pickle's own length.

mod machine;
mod values;

pub(super) use values::{Element, MAX_PICKLE, Pickle, StorageRef, TensorRef, Value};

use machine::Machine;

/// Reads the pickle at the start of `bytes`, which may go on after it.
///
/// # Errors
/// What is wrong with it and at which byte.
pub(super) fn unpickle(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let pickle = Machine::new(bytes).run()?;
    pickle.check_nesting().map_err(|why| format!("pickle: {why}"))?;
    Ok(pickle)
}
