//! Reflection: a parsed shader must agree with its [`Kernel`] description.

use super::{Access, Binding, Kernel};
use crate::{Error, Result};
use naga::{AddressSpace, StorageAccess, TypeInner};

/// Compares binding names, numbers, access and the fields of `Params`.
///
/// # Errors
/// [`Error::Kernel`] naming the first difference.
pub fn check(kernel: &Kernel, defines: &[i64], module: &naga::Module) -> Result<()> {
    let fail = |detail: String| Error::Kernel { kernel: kernel.name.into(), detail };
    let mut expected: Vec<(u32, Binding)> = kernel.active_bindings(defines).collect();
    for (_, var) in module.global_variables.iter() {
        let Some(binding) = var.binding else { continue };
        let name = var.name.as_deref().unwrap_or("");
        match var.space {
            AddressSpace::Uniform if binding.binding == 0 => {
                check_params(kernel, module, var.ty).map_err(fail)?
            }
            AddressSpace::Storage { access } => {
                let at = expected
                    .iter()
                    .position(|(i, b)| *i == binding.binding && b.name == name)
                    .ok_or_else(|| {
                        fail(format!(
                            "`{name}` at binding {} is not in its description",
                            binding.binding
                        ))
                    })?;
                let (_, Binding { access: wanted, half, .. }) = expected.remove(at);
                if half.is_some_and(|h| kernel.define(defines, h) != 0)
                    && !is_packed(module, var.ty)
                {
                    return Err(fail(format!(
                        "`{name}` is no array<vec2<u32>> or <vec4<f16>>, but holds halves"
                    )));
                }
                let writes = access.contains(StorageAccess::STORE);
                if writes != (wanted != Access::Read) {
                    return Err(fail(format!(
                        "`{name}` is {wanted:?} in its description but {access:?} in WGSL"
                    )));
                }
            }
            _ => return Err(fail(format!("`{name}` has an unexpected binding"))),
        }
    }
    match expected.first() {
        Some((i, b)) => Err(fail(format!("`{}` (binding {i}) is missing in WGSL", b.name))),
        None => Ok(()),
    }
}

/// Declares the bindings whose bit is set in `writable_reads` as writable, though the shader only
/// reads them: for a launch that writes elsewhere in the same buffer.
pub fn bind_writable(module: &mut naga::Module, writable_reads: u32) {
    for (_, var) in module.global_variables.iter_mut() {
        let number = var.binding.as_ref().map(|b| b.binding);
        if let (Some(number), AddressSpace::Storage { access }) = (number, &mut var.space)
            && writable_reads >> number & 1 == 1
        {
            *access |= StorageAccess::STORE;
        }
    }
}

/// Whether a type is one that halves are stored in.
fn is_packed(module: &naga::Module, ty: naga::Handle<naga::Type>) -> bool {
    let TypeInner::Array { base, .. } = module.types[ty].inner else { return false };
    let packed = TypeInner::Vector { size: naga::VectorSize::Bi, scalar: naga::Scalar::U32 };
    let calculable = TypeInner::Vector { size: naga::VectorSize::Quad, scalar: naga::Scalar::F16 };
    [packed, calculable].contains(&module.types[base].inner)
}

fn check_params(
    kernel: &Kernel,
    module: &naga::Module,
    ty: naga::Handle<naga::Type>,
) -> std::result::Result<(), String> {
    let TypeInner::Struct { members, .. } = &module.types[ty].inner else {
        return Err("the parameter block is not a struct".into());
    };
    let found: Vec<(&str, usize)> =
        members.iter().map(|m| (m.name.as_deref().unwrap_or(""), m.offset as usize)).collect();
    if found != kernel.params {
        return Err(format!("Params differ: WGSL has {found:?}, Rust has {:?}", kernel.params));
    }
    Ok(())
}
