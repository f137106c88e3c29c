//! What the driver compiled, kept in a file, so that the next start is quicker.
//!
//! Vulkan's drivers hand out their compiled pipelines as bytes that mean something
//! to them alone. They are kept compressed: the checksum of gzip tells a damaged file,
//! which is left aside as one of another driver is.

use crate::files::atomic;
use crate::gpu::Gpu;
use flate2::{Compression, read::GzDecoder, write::GzEncoder};
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

/// A file that unpacks to more is begun anew: nothing ever leaves a pipeline
/// cache, so that those of outdated kernels would pile up.
const MOST_BYTES: u64 = 128 << 20;

/// So much new compiling is worth a file at once; less waits for the end.
const WORTH_WRITING: Duration = Duration::from_secs(1);

/// A driver's cache with its file.
pub(super) struct PipelineFile {
    pub cache: wgpu::PipelineCache,
    path: PathBuf,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// Time spent on compiling what is not in the file.
    unsaved: Duration,
    /// What the file holds.
    saved: Vec<u8>,
}

impl PipelineFile {
    /// The cache of a device that can have one, with what `path` holds.
    pub async fn open(gpu: &Gpu, path: &Path) -> Option<PipelineFile> {
        if !gpu.device.features().contains(wgpu::Features::PIPELINE_CACHE) {
            return None;
        }
        let saved = read(path).unwrap_or_default();
        let scope = gpu.device.push_error_scope(wgpu::ErrorFilter::Validation);
        // SAFETY: the bytes are what `get_data` gave an earlier run on an adapter, driver
        // and backend of the same names: `save` alone writes this file, into a folder of
        // the user's, and the checksum rules out damage. wgpu compares device and driver
        // once more by the header that it put before them, and falls back to an empty cache.
        let cache = unsafe {
            gpu.device.create_pipeline_cache(&wgpu::PipelineCacheDescriptor {
                label: Some("kernels"),
                data: (!saved.is_empty()).then_some(saved.as_slice()),
                fallback: true,
            })
        };
        if scope.pop().await.is_some() {
            return None;
        }
        let state = Mutex::new(State { saved, ..State::default() });
        Some(PipelineFile { cache, path: path.to_owned(), state })
    }

    /// Notes that compiling took `time`, and writes the file if that is worth it.
    pub fn compiled(&self, time: Duration) {
        let mut state = self.state.lock().unwrap_or_else(|e| e.into_inner());
        state.unsaved += time;
        if state.unsaved >= WORTH_WRITING {
            self.save(&mut state);
        }
    }

    /// Writes what is new. That the next start is no quicker is all that a full
    /// disk costs, so faults are not reported.
    fn save(&self, state: &mut State) {
        state.unsaved = Duration::ZERO;
        let Some(data) = self.cache.get_data().filter(|d| *d != state.saved) else { return };
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        let packed = packed.write_all(&data).and_then(|()| packed.finish());
        if packed.is_ok_and(|bytes| atomic::write_in_new_folder(&self.path, &bytes).is_ok()) {
            state.saved = data;
        }
    }
}

impl Drop for PipelineFile {
    fn drop(&mut self) {
        let mut state = std::mem::take(self.state.get_mut().unwrap_or_else(|e| e.into_inner()));
        if state.unsaved > Duration::ZERO {
            self.save(&mut state);
        }
    }
}

/// What the file holds; `None` if it is missing, damaged or too large.
fn read(path: &Path) -> Option<Vec<u8>> {
    let file = std::fs::File::open(path).ok()?;
    let mut data = Vec::new();
    GzDecoder::new(file).take(MOST_BYTES + 1).read_to_end(&mut data).ok()?;
    (data.len() as u64 <= MOST_BYTES).then_some(data)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damaged_files_hold_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.gz");
        assert_eq!(read(&path), None);
        let mut packed = GzEncoder::new(Vec::new(), Compression::fast());
        packed.write_all(b"what a driver compiled").unwrap();
        let packed = packed.finish().unwrap();
        std::fs::write(&path, &packed).unwrap();
        assert_eq!(read(&path).unwrap(), b"what a driver compiled");
        // Any byte of the data or of the checksum, or a missing end.
        for at in 10..packed.len() {
            let mut damaged = packed.clone();
            damaged[at] = !damaged[at];
            std::fs::write(&path, &damaged).unwrap();
            assert_eq!(read(&path), None, "byte {at}");
            std::fs::write(&path, &packed[..at]).unwrap();
            assert_eq!(read(&path), None, "{at} bytes");
        }
    }
}
