//! Parameters: names, layouts in files and on the device, initial values,
//! and their places in flat, chunked buffers.

/// How a parameter is laid out in a checkpoint; on the device the innermost
/// extent is always the output channel, so that vector loads run along it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileLayout {
    /// The same on the device.
    Plain,
    /// File OIHW, device HWIO.
    Conv2d,
    /// File [O, I, 1] (the reference's attention projections), device [1, 1, I, O].
    Conv1d,
    /// File [O, I], device [I, O].
    Linear,
}

/// Distribution of initial values (PyTorch's defaults).
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Init {
    /// All zero.
    Zeros,
    /// All one.
    Ones,
    /// Uniform in [-bound, bound].
    Uniform(f32),
    /// Standard normal.
    Normal,
    /// Normal with mean 0 and this deviation.
    NormalTimes(f32),
}

/// One trainable parameter.
#[derive(Debug, Clone)]
pub struct ParamInfo {
    /// The reference's state_dict key.
    pub name: String,
    /// Shape on the device.
    pub shape: Vec<usize>,
    /// Layout in files.
    pub layout: FileLayout,
    /// Initial values.
    pub init: Init,
}

impl ParamInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a parameter without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Shape in a checkpoint file.
    pub fn file_shape(&self) -> Vec<usize> {
        match (self.layout, self.shape.as_slice()) {
            (FileLayout::Conv2d, &[h, w, i, o]) => vec![o, i, h, w],
            (FileLayout::Conv1d, &[_, _, i, o]) => vec![o, i, 1],
            (FileLayout::Linear, &[i, o]) => vec![o, i],
            (_, shape) => shape.to_vec(),
        }
    }

    /// Reorders values from the file's layout to the device's.
    pub fn to_device(&self, file: &[f32]) -> Vec<f32> {
        self.permute(file, true)
    }

    /// Reorders values from the device's layout to the file's.
    pub fn to_file(&self, device: &[f32]) -> Vec<f32> {
        self.permute(device, false)
    }

    /// All three layouts view the weight as taps x inputs x outputs.
    fn permute(&self, from: &[f32], to_device: bool) -> Vec<f32> {
        let (taps, inputs, outputs) = match (self.layout, self.shape.as_slice()) {
            (FileLayout::Conv2d | FileLayout::Conv1d, &[h, w, i, o]) => (h * w, i, o),
            (FileLayout::Linear, &[i, o]) => (1, i, o),
            _ => return from.to_vec(),
        };
        let mut to = vec![0.0; from.len()];
        for tap in 0..taps {
            for i in 0..inputs {
                for o in 0..outputs {
                    let device = (tap * inputs + i) * outputs + o;
                    let file = (o * inputs + i) * taps + tap;
                    let (source, target) = if to_device { (file, device) } else { (device, file) };
                    to[target] = from[source];
                }
            }
        }
        to
    }
}

/// Bytes between parameter starts: WebGPU's offset alignment.
const ALIGN: usize = 256;

/// Places of all parameters in flat buffers of bounded size, shared by
/// weights, gradients, both moments and EMA. Parameters that are read as half
/// lie in the first chunks, which alone have a packed copy; an element has the
/// same number in both.
#[derive(Debug, Clone)]
pub struct ParamLayout {
    /// Chunk and element offset of each parameter.
    pub places: Vec<(usize, usize)>,
    /// Elements of each chunk, padding included (the padding stays zero).
    pub chunks: Vec<usize>,
    /// How many of the chunks are packed ones.
    pub packed: usize,
}

impl ParamLayout {
    /// Packs `params` in order into chunks of at most `max_bytes`; a
    /// parameter larger than that gets a chunk of its own.
    pub fn new(params: &[ParamInfo], max_bytes: u64) -> Self {
        Self::with_packed(params, &vec![false; params.len()], max_bytes)
    }

    /// As [`ParamLayout::new`]; those that are `packed`, which are read as half, come first.
    pub fn with_packed(params: &[ParamInfo], packed: &[bool], max_bytes: u64) -> Self {
        let mut layout =
            ParamLayout { places: vec![(0, 0); params.len()], chunks: Vec::new(), packed: 0 };
        layout.fill(params, |i| packed[i], ALIGN / 2, max_bytes);
        layout.packed = layout.chunks.len();
        layout.fill(params, |i| !packed[i], ALIGN / 4, max_bytes);
        layout
    }

    /// Appends chunks with the `chosen` parameters, which start at multiples of
    /// `align` elements.
    fn fill(
        &mut self,
        params: &[ParamInfo],
        chosen: impl Fn(usize) -> bool,
        align: usize,
        max_bytes: u64,
    ) {
        let limit = (max_bytes / 4) as usize;
        let mut used = 0;
        for (i, p) in params.iter().enumerate().filter(|(i, _)| chosen(*i)) {
            let len = p.len().next_multiple_of(align);
            if used > 0 && used + len > limit {
                self.chunks.push(used);
                used = 0;
            }
            self.places[i] = (self.chunks.len(), used);
            used += len;
        }
        if used > 0 {
            self.chunks.push(used);
        }
    }

    /// Bytes of one 32-bit copy of all parameters.
    pub fn bytes(&self) -> u64 {
        self.chunks.iter().map(|c| *c as u64 * 4).sum()
    }

    /// Bytes of a packed copy of those that are read as half.
    pub fn packed_bytes(&self) -> u64 {
        self.chunks[..self.packed].iter().map(|c| *c as u64 * 2).sum()
    }

    /// Bytes of what a forward pass binds: the packed copy and the others.
    pub fn inference_bytes(&self) -> u64 {
        self.bytes() - self.packed_bytes()
    }
}
