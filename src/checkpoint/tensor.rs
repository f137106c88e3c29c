//! A tensor on the host: a shape and elements of one of several types.

use std::borrow::Cow;

use half::f16;
use safetensors::tensor::Dtype;

use crate::{Error, Result};

/// The elements of a tensor, row-major.
#[derive(Debug, Clone, PartialEq)]
pub enum TensorData {
    /// 32-bit floats; bfloat16 files are read as these.
    F32(Vec<f32>),
    /// 16-bit floats.
    F16(Vec<f16>),
    /// 64-bit floats.
    F64(Vec<f64>),
    /// Signed 64-bit integers.
    I64(Vec<i64>),
    /// Bytes.
    U8(Vec<u8>),
    /// Unsigned 32-bit integers.
    U32(Vec<u32>),
    /// Unsigned 64-bit integers.
    U64(Vec<u64>),
}

impl TensorData {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            TensorData::F32(v) => v.len(),
            TensorData::F16(v) => v.len(),
            TensorData::F64(v) => v.len(),
            TensorData::I64(v) => v.len(),
            TensorData::U8(v) => v.len(),
            TensorData::U32(v) => v.len(),
            TensorData::U64(v) => v.len(),
        }
    }

    /// Whether there are no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether the elements are floats, of any width.
    pub fn is_float(&self) -> bool {
        matches!(self, TensorData::F32(_) | TensorData::F16(_) | TensorData::F64(_))
    }

    /// The element type, as safetensors names it.
    pub fn dtype(&self) -> Dtype {
        match self {
            TensorData::F32(_) => Dtype::F32,
            TensorData::F16(_) => Dtype::F16,
            TensorData::F64(_) => Dtype::F64,
            TensorData::I64(_) => Dtype::I64,
            TensorData::U8(_) => Dtype::U8,
            TensorData::U32(_) => Dtype::U32,
            TensorData::U64(_) => Dtype::U64,
        }
    }
}

/// A tensor: a shape and as many elements as its product (1 for a scalar, []).
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    /// Extents, outermost first.
    pub shape: Vec<usize>,
    /// The elements, row-major.
    pub data: TensorData,
}

impl Tensor {
    /// A tensor from its parts.
    ///
    /// # Errors
    /// [`Error::Shape`] if `shape` and the number of elements disagree.
    pub fn new(shape: impl Into<Vec<usize>>, data: TensorData) -> Result<Self> {
        let tensor = Tensor { shape: shape.into(), data };
        tensor.check("tensor")?;
        Ok(tensor)
    }

    /// A tensor of 32-bit floats; see [`Tensor::new`].
    ///
    /// # Errors
    /// As [`Tensor::new`].
    pub fn f32(shape: impl Into<Vec<usize>>, data: impl Into<Vec<f32>>) -> Result<Self> {
        Self::new(shape, TensorData::F32(data.into()))
    }

    /// The elements as 32-bit floats, from any float type, without a copy if they
    /// are already.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is a tensor of integers.
    pub fn to_f32(&self) -> Result<Cow<'_, [f32]>> {
        match &self.data {
            TensorData::F32(v) => Ok(Cow::Borrowed(v)),
            TensorData::F16(v) => Ok(Cow::Owned(v.iter().map(|x| x.to_f32()).collect())),
            TensorData::F64(v) => Ok(Cow::Owned(v.iter().map(|&x| x as f32).collect())),
            other => Err(Error::shape(
                "to_f32",
                format!("a tensor of {:?} {:?}; floats are needed", other.dtype(), self.shape),
            )),
        }
    }

    /// Whether shape and elements agree.
    pub(super) fn check(&self, name: &str) -> Result<()> {
        if count(&self.shape) == Some(self.data.len()) {
            return Ok(());
        }
        let detail = format!("{name}: {} elements for the shape {:?}", self.data.len(), self.shape);
        Err(Error::shape("tensor_file", detail))
    }
}

/// The product of a shape, unless it overflows.
pub(super) fn count(shape: &[usize]) -> Option<usize> {
    shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d))
}
