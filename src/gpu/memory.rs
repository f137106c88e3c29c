//! Main memory, which a software device shares with everything else.

use super::Gpu;
use crate::caps::human_bytes;
use crate::{Error, Result};

impl Gpu {
    /// Refuses a plan that needs more bytes than a software device has memory. Other
    /// drivers refuse by themselves; there the system would end the program.
    ///
    /// # Errors
    /// [`Error::Memory`] with both numbers.
    pub fn check_room(&self, needed: u64) -> Result<()> {
        match memory_available() {
            Some(offered) if self.caps.software && needed > offered => Err(Error::Memory(format!(
                "the plan needs {}, the machine has {} available; use a smaller batch",
                human_bytes(needed),
                human_bytes(offered)
            ))),
            _ => Ok(()),
        }
    }
}

/// Bytes of main memory that can be used, where the system says so (Linux).
fn memory_available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok()?.checked_mul(1024)
}
