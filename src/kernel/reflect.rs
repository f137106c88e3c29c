//! Reflection: a parsed shader must agree with its [`Kernel`] description.

use super::{Access, Kernel};
use crate::{Error, Result};
use naga::{AddressSpace, StorageAccess, TypeInner};

/// Compares binding names, numbers, access and the fields of `Params`.
///
/// # Errors
/// [`Error::Kernel`] naming the first difference.
pub fn check(kernel: &Kernel, defines: &[i64], module: &naga::Module) -> Result<()> {
    let fail = |detail: String| Error::Kernel { kernel: kernel.name.into(), detail };
    let mut expected: Vec<(u32, &str, Access)> =
        kernel.active_bindings(defines).map(|(i, b)| (i, b.name, b.access)).collect();
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
                    .position(|(i, n, _)| *i == binding.binding && *n == name)
                    .ok_or_else(|| {
                        fail(format!(
                            "`{name}` at binding {} is not in its description",
                            binding.binding
                        ))
                    })?;
                let (_, _, wanted) = expected.remove(at);
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
        Some((i, name, _)) => Err(fail(format!("`{name}` (binding {i}) is missing in WGSL"))),
        None => Ok(()),
    }
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
