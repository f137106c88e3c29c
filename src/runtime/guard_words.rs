//! The guard words at both ends of a buffer.

use crate::gpu::Gpu;

/// A guard word. Read as one float or as two halves it is not a number, and it is not
/// the word that poisoned memory is filled with.
pub(super) const WORD: u32 = 0xfffe_fffe;

/// Writes guard words into the first and the last `guard` bytes of a buffer.
pub(super) fn fill_ends(gpu: &Gpu, buffer: &wgpu::Buffer, guard: u64) {
    if guard > 0 {
        let words = vec![WORD; guard as usize / 4];
        for offset in [0, buffer.size() - guard] {
            gpu.queue.write_buffer(buffer, offset, bytemuck::cast_slice(&words));
        }
    }
}
