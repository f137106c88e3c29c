//! What an op asks to run, with tensors by name.

use super::tensor::TensorId;
use crate::kernel::{Kernel, KernelOf};

/// A tensor under the name that its kernel or op knows it by; an optional one may be
/// absent. [`named!`](crate::named) makes arrays of them.
pub type NamedTensor = (&'static str, Option<TensorId>);

/// Names tensors: `named![x, y: dx]` is the tensor `x` under the name "x" and `dx`
/// under the name "y". Each may be a [`TensorId`] or an `Option` of one.
#[macro_export]
macro_rules! named {
    (@tensor $name:ident) => { $name };
    (@tensor $name:ident $tensor:expr) => { $tensor };
    ($($name:ident $(: $tensor:expr)?),* $(,)?) => {
        [$((
            stringify!($name),
            Option::<$crate::graph::TensorId>::from($crate::named!(@tensor $name $($tensor)?)),
        )),*]
    };
}

/// What an op asks to run: a kernel, and what its types say that it needs.
pub struct Launch<'a, P: 'static, D: 'static> {
    /// The kernel.
    pub kernel: &'static KernelOf<P, D>,
    /// The variant of it.
    pub defines: D,
    /// The uniform block.
    pub params: P,
    /// The tensors by the names of the kernel's bindings. Those that the variant does
    /// not have are absent.
    pub bindings: &'a [NamedTensor],
    /// Workgroups in all; folded to two dimensions where needed.
    pub groups: u64,
    /// Arithmetic done, a multiply-add counting two.
    pub flops: u64,
}

/// The tensors that a launch gives, one entry per binding of the kernel.
///
/// # Errors
/// What is wrong with a name that the variant does not bind, or that is given twice.
pub(super) fn place(
    kernel: &Kernel,
    defines: &[i64],
    given: &[NamedTensor],
) -> std::result::Result<Vec<Option<TensorId>>, String> {
    let mut tensors = vec![None; kernel.bindings.len()];
    for (name, tensor) in given {
        let Some(tensor) = tensor else { continue };
        let at = kernel.bindings.iter().position(|b| b.name == *name);
        let at = at.ok_or_else(|| format!("it has no binding `{name}`"))?;
        if !kernel.active_bindings(defines).any(|(_, b)| b.name == *name) {
            let variant = kernel.variant_name(defines);
            return Err(format!("its variant `{variant}` has no binding `{name}`"));
        }
        if tensors[at].replace(*tensor).is_some() {
            return Err(format!("`{name}` is given twice"));
        }
    }
    Ok(tensors)
}
