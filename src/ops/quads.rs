//! A batch of images as quads of four consecutive elements: how the elementwise
//! kernels of the diffusion process divide their work.
//!
//! A quad is also what one Philox counter yields four numbers for, so quads
//! never straddle images: an image's noise depends on its own index alone.

use super::groups;
use crate::graph::{DType, Graph, TensorId};
use crate::{Error, Result};

/// Division of `[n, ..]` into quads.
#[derive(Debug, Clone, Copy)]
pub(super) struct Quads {
    /// Images.
    pub n: u32,
    /// Elements of an image.
    pub len: u32,
    /// Quads of an image, the last one possibly short.
    pub quads: u32,
}

impl Quads {
    /// Quads of a tensor whose outermost extent counts the images.
    ///
    /// # Errors
    /// [`Error::Shape`] for a tensor without elements.
    pub fn of(op: &'static str, shape: &[usize]) -> Result<Self> {
        match shape {
            [n, image @ ..] if shape.iter().all(|extent| *extent > 0) => {
                let len = image.iter().product::<usize>();
                Ok(Quads { n: *n as u32, len: len as u32, quads: len.div_ceil(4) as u32 })
            }
            _ => Err(Error::shape(op, format!("{shape:?} has no elements"))),
        }
    }

    /// True if buffers can be read four elements at a time.
    pub fn vec(self) -> bool {
        self.len.is_multiple_of(4)
    }

    /// Workgroups at one invocation per quad.
    pub fn groups(self) -> u64 {
        groups(u64::from(self.n) * u64::from(self.quads))
    }

    /// Elements in all.
    pub fn elements(self) -> u64 {
        u64::from(self.n) * u64::from(self.len)
    }
}

/// Checks an operand's element type and shape.
///
/// # Errors
/// [`Error::Shape`] naming the operand.
pub(super) fn expect(
    g: &Graph,
    op: &'static str,
    operand: &str,
    id: TensorId,
    dtype: DType,
    shape: &[usize],
) -> Result<()> {
    let found = &g.tensors[id.index()];
    if found.dtype == dtype && found.shape == shape {
        return Ok(());
    }
    let detail =
        format!("{operand} is {:?} {:?}, {dtype:?} {shape:?} is needed", found.dtype, found.shape);
    Err(Error::shape(op, detail))
}
