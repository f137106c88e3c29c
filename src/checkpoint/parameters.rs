//! Parameters from and to named tensors in the reference's layout.

use super::tensor::Tensor;
use super::tensor_file::TensorFile;
use crate::Result;
use crate::graph::ParamInfo;
use std::collections::HashSet;

/// Takes the tensors called `prefix` + name from `file`, in device layout.
///
/// # Errors
/// A line that lists the first names that are missing or left over and the
/// first shapes that differ.
pub fn parameters(
    params: &[ParamInfo],
    file: &TensorFile,
    prefix: &str,
) -> std::result::Result<Vec<Vec<f32>>, String> {
    check_parameters(params, file, prefix)?;
    let value = |p: &ParamInfo| {
        let name = format!("{prefix}{}", p.name);
        let tensor = file.tensors.get(&name).ok_or_else(|| format!("{name} is missing"))?;
        Ok(p.to_device(&tensor.to_f32().map_err(|e| format!("{name}: {e}"))?))
    };
    params.iter().map(value).collect()
}

/// Checks that the tensors called `prefix` + name in `file` are those of the
/// network: names, shapes, and that they are floats.
///
/// # Errors
/// As [`parameters`].
pub fn check_parameters(
    params: &[ParamInfo],
    file: &TensorFile,
    prefix: &str,
) -> std::result::Result<(), String> {
    let mut faults = Vec::new();
    let mut expected = HashSet::with_capacity(params.len());
    for p in params {
        let name = format!("{prefix}{}", p.name);
        match file.tensors.get(&name) {
            None => faults.push(format!("{name} is missing")),
            Some(t) if t.shape != p.file_shape() => faults.push(format!(
                "{name} is {:?}, the network needs {:?}",
                t.shape,
                p.file_shape()
            )),
            Some(t) if !t.data.is_float() => {
                faults.push(format!("{name} holds {:?}, floats are needed", t.data.dtype()));
            }
            Some(_) => {}
        }
        expected.insert(name);
    }
    let extra = file.tensors.keys().filter(|k| k.starts_with(prefix) && !expected.contains(*k));
    faults.extend(extra.map(|k| format!("{k} is not part of the network")));
    match faults.len() {
        0 => Ok(()),
        n => {
            faults.truncate(3);
            let more =
                if n > 3 { format!(" (and {} more differences)", n - 3) } else { String::new() };
            Err(format!("does not fit its configuration: {}{more}", faults.join("; ")))
        }
    }
}

/// Named tensors in the reference's layout from values in device layout.
///
/// # Errors
/// [`crate::Error::Shape`] if a value has another length than its parameter.
pub fn parameters_to_tensors(
    params: &[ParamInfo],
    values: &[Vec<f32>],
    prefix: &str,
) -> Result<Vec<(String, Tensor)>> {
    let convert = |(p, v): (&ParamInfo, &Vec<f32>)| {
        Ok((format!("{prefix}{}", p.name), Tensor::f32(p.file_shape(), p.to_file(v))?))
    };
    params.iter().zip(values).map(convert).collect()
}
