//! What measurements are kept by.

use serde::{Deserialize, Serialize};

/// What measurements and compiled kernels are good for: another adapter, driver
/// or backend starts anew.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceKey {
    /// The adapter's name.
    pub adapter: String,
    /// The driver and its version.
    pub driver: String,
    /// "vulkan", "metal", ..
    pub backend: String,
}

impl DeviceKey {
    /// As a part of a file name: words of small letters and digits.
    #[cfg(feature = "files")]
    pub(super) fn slug(&self) -> String {
        let text = format!("{} {} {}", self.backend, self.adapter, self.driver).to_lowercase();
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|w| !w.is_empty());
        // File names have at most 255 bytes on most systems.
        words.collect::<Vec<_>>().join("-").chars().take(200).collect()
    }
}
