//! Tensors: their names, shapes, element types and places.

/// Names a tensor of one graph or plan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub(crate) u32);

impl TensorId {
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// Element type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    /// 32-bit float.
    F32,
    /// 16-bit float, four to a `vec2<u32>` in shaders, so the innermost extent
    /// is a multiple of four.
    F16,
    /// 32-bit unsigned integer (labels, random state).
    U32,
}

impl DType {
    /// Bytes of an element.
    pub fn bytes(self) -> u64 {
        if self == DType::F16 { 2 } else { 4 }
    }
}

/// Where a tensor lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A range of a buffer that it shares with other tensors.
    Slot,
    /// A buffer of its own: inputs, outputs and state read or written by the host.
    Pinned,
    /// A buffer of its own for what follows from the weights alone. It is computed
    /// again only after they changed.
    Prepared,
    /// Parameter number `0` of the flat weights.
    Param(usize),
    /// Gradient of parameter number `0`.
    ParamGrad(usize),
    /// A whole chunk of a flat buffer.
    Flat(FlatKind, usize),
}

/// A tensor's shape and place.
#[derive(Debug, Clone)]
pub struct TensorInfo {
    /// Dotted path of the node that makes it.
    pub name: String,
    /// Extents, outermost first; images are NHWC.
    pub shape: Vec<usize>,
    /// Element type.
    pub dtype: DType,
    /// Where it lives.
    pub storage: Storage,
}

impl TensorInfo {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// True for a tensor without elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> u64 {
        self.len() as u64 * self.dtype.bytes()
    }
}

/// The flat buffers over all parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FlatKind {
    /// Current weights.
    Weights,
    /// Gradients.
    Grads,
    /// AdamW's first moment.
    ExpAvg,
    /// AdamW's second moment.
    ExpAvgSq,
    /// Exponential moving average number `0` of the weights.
    Ema(u8),
    /// Half-precision copy of the packed chunks of the weights.
    Half,
    /// The same of moving average number `0`.
    HalfEma(u8),
    /// One chunk of four floats: the state of the loss scale, see
    /// [`crate::ops::LossScale`].
    LossScale,
}

impl FlatKind {
    /// The packed copy of this kind.
    pub fn half(self) -> Option<FlatKind> {
        match self {
            FlatKind::Weights => Some(FlatKind::Half),
            FlatKind::Ema(i) => Some(FlatKind::HalfEma(i)),
            _ => None,
        }
    }

    /// Bytes of an element.
    pub fn element_bytes(self) -> u64 {
        if self.is_half() { 2 } else { 4 }
    }

    /// Whether it holds halves, and of packed chunks only.
    pub fn is_half(self) -> bool {
        matches!(self, FlatKind::Half | FlatKind::HalfEma(_))
    }
}
