//! What an op asks to run, and the check that it fits the kernel.

use super::tensor::TensorId;
use crate::kernel::{Defines, Kernel, KernelOf, Params};
use crate::{Error, Result};

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

/// What an op asks to run.
pub struct Launch<'a, K: Launchable = Kernel> {
    /// The kernel.
    pub kernel: &'static K,
    /// The variant of it.
    pub defines: K::Defines<'a>,
    /// The uniform block.
    pub params: K::Params<'a>,
    /// The tensors by the names of the kernel's bindings. Those that the variant does
    /// not have are absent.
    pub bindings: &'a [K::Binding],
    /// Workgroups in all; folded to two dimensions where needed.
    pub groups: u64,
    /// Arithmetic done.
    pub flops: u64,
}

/// A kernel that [`Launch`] can name.
pub trait Launchable: Sized + 'static {
    /// How a variant is given.
    type Defines<'a>: Copy;
    /// How the uniform block is given.
    type Params<'a>: Copy;
    /// How a tensor is given.
    type Binding: Copy;

    /// Checks a launch and forgets the kernel's types.
    ///
    /// # Errors
    /// [`Error::Kernel`] if the launch does not fit the kernel.
    fn request(launch: Launch<Self>) -> Result<Request>;
}

/// A checked launch.
#[derive(Debug)]
pub struct Request {
    pub(super) kernel: &'static Kernel,
    pub(super) defines: Vec<i64>,
    pub(super) params: Vec<u8>,
    /// One entry per binding of the kernel.
    pub(super) tensors: Vec<Option<TensorId>>,
    pub(super) groups: u64,
    pub(super) flops: u64,
}

impl<P: Params, D: Defines> Launchable for KernelOf<P, D> {
    type Defines<'a> = D;
    type Params<'a> = P;
    type Binding = NamedTensor;

    fn request(launch: Launch<Self>) -> Result<Request> {
        let Launch { kernel, defines, params, bindings, groups, flops } = launch;
        let fail = |detail: String| Error::Kernel { kernel: kernel.name.into(), detail };
        let numbers = defines.numbers();
        if !kernel.has(defines) {
            let variant = kernel.variant_name(&numbers);
            return Err(fail(format!("its defines do not allow the variant `{variant}`")));
        }
        let tensors = place(kernel, &numbers, bindings).map_err(fail)?;
        let params = bytemuck::bytes_of(&params).to_vec();
        Ok(Request { kernel, defines: numbers, params, tensors, groups, flops })
    }
}

/// The form with numbers and tensors by position.
impl Launchable for Kernel {
    type Defines<'a> = &'a [i64];
    type Params<'a> = &'a [u8];
    type Binding = Option<TensorId>;

    fn request(launch: Launch<Self>) -> Result<Request> {
        let Launch { kernel, defines, params, bindings, groups, flops } = launch;
        if defines.len() != kernel.defines.len() || bindings.len() != kernel.bindings.len() {
            let detail = format!(
                "{} defines and {} bindings given, {} and {} described",
                defines.len(),
                bindings.len(),
                kernel.defines.len(),
                kernel.bindings.len()
            );
            return Err(Error::Kernel { kernel: kernel.name.into(), detail });
        }
        let (defines, params, tensors) = (defines.to_vec(), params.to_vec(), bindings.to_vec());
        Ok(Request { kernel, defines, params, tensors, groups, flops })
    }
}

/// The given tensors in the order of the kernel's bindings.
fn place(
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
