//! `demist devices`

use demist::engine::caps::human_bytes;
use demist::{Device, Result, block_on};

/// Prints every usable adapter, the default first.
pub fn run() -> Result<()> {
    let adapters = block_on(Device::list())?;
    for (i, a) in adapters.iter().enumerate() {
        say!("{i}: {}{}", a.name, if i == 0 { "  (default)" } else { "" });
        say!("   type       {} via {}", a.kind, a.backend);
        say!("   driver     {}", a.driver);
        say!(
            "   features   {}",
            if a.features.is_empty() { "none".into() } else { a.features.join(", ") }
        );
        say!(
            "   limits     {} a buffer, {} a binding, {} workgroup memory, {} invocations a workgroup",
            human_bytes(a.max_buffer),
            human_bytes(a.max_binding),
            human_bytes(a.workgroup_memory.into()),
            a.max_invocations
        );
        say!("   subgroups  {} to {}", a.subgroup.0, a.subgroup.1);
    }
    Ok(())
}
