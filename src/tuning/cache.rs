//! The cache folder and the names of the files in it.

use etcetera::BaseStrategy;
use std::path::PathBuf;

use super::key::DeviceKey;

/// A folder to use instead of the user's; empty for none at all.
const VARIABLE: &str = "DEMIST_CACHE";

/// A folder for what can be made again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cache(PathBuf);

impl Cache {
    /// The folder that the environment variable `DEMIST_CACHE` names, by default
    /// `demist` in the user's cache folder (`~/.cache` on Linux,
    /// `~/Library/Caches` on macOS, `%LOCALAPPDATA%` on Windows). `None` if the variable
    /// is empty, or the user has no home. The folder need not exist.
    pub fn from_env() -> Option<Cache> {
        match std::env::var_os(VARIABLE) {
            Some(folder) if folder.is_empty() => None,
            Some(folder) => Some(Cache(folder.into())),
            None => {
                let places = etcetera::base_strategy::choose_native_strategy().ok()?;
                Some(Cache(places.cache_dir().join("demist")))
            }
        }
    }

    /// Another folder.
    pub fn at(folder: impl Into<PathBuf>) -> Cache {
        Cache(folder.into())
    }

    /// Where the tuning of a device is kept.
    pub fn tuning(&self, device: &DeviceKey) -> PathBuf {
        self.0.join(format!("tuning-{}.json", device.slug()))
    }

    /// Where the compiled kernels of a device are kept.
    pub fn pipelines(&self, device: &DeviceKey) -> PathBuf {
        self.0.join(format!("pipelines-{}.gz", device.slug()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_plain_and_of_bounded_length() {
        let key = |adapter: &str| DeviceKey {
            adapter: adapter.into(),
            driver: "Mesa 22.3/../6\n".into(),
            backend: "vulkan".into(),
        };
        let cache = Cache::at("folder");
        let path = cache.tuning(&key("llvmpipe (LLVM 15.0.6, 256 bits)"));
        let name = "tuning-vulkan-llvmpipe-llvm-15-0-6-256-bits-mesa-22-3-6.json";
        assert_eq!(path, PathBuf::from("folder").join(name));
        let long = cache.pipelines(&key(&"ü long name ".repeat(99)));
        assert!(long.file_name().unwrap().len() < 230, "{long:?}");
        assert_eq!(long.parent(), Some(std::path::Path::new("folder")));
    }
}
