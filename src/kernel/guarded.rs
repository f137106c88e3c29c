//! Shaders for tensors with guard words around them, for tests.
//!
//! A test binds a tensor together with the words before and after it, so that a kernel
//! that leaves the tensor changes a word that the test knows. All indices must then
//! skip the words before. That is done on the composed text, so that shaders need not
//! know.

use super::widen::{element, without_comments};
use naga::{AddressSpace, Module, TypeInner};
use std::ops::Range;

/// Adds `bytes`, in elements, to every index into a storage array. `module` is what
/// `wgsl` parses to. Comments are dropped.
pub fn guarded(wgsl: &str, module: &Module, bytes: u64) -> String {
    let mut text = without_comments(wgsl);
    for (_, variable) in module.global_variables.iter() {
        let TypeInner::Array { stride, .. } = module.types[variable.ty].inner else { continue };
        let storage = matches!(variable.space, AddressSpace::Storage { .. });
        if let (true, Some(name)) = (storage, &variable.name) {
            text = shift(&text, name, bytes / u64::from(stride));
        }
    }
    text
}

/// Adds `by` to every index into `name`.
fn shift(text: &str, name: &str, by: u64) -> String {
    let mut out = String::with_capacity(2 * text.len());
    let mut rest = text;
    while let Some(Range { start, end }) = element(rest, name) {
        let index = shift(&rest[start + name.len() + 1..end - 1], name, by);
        out.push_str(&format!("{}{name}[{by} + ({index})]", &rest[..start]));
        rest = &rest[end..];
    }
    out + rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indices_into_storage_are_shifted_and_nothing_else() {
        let shader = "\
@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // x[i]
@group(0) @binding(2) var<storage, read_write> y: array<u32>;
var<workgroup> shared_x: array<f32, 4>;
fn f(i: u32) {
    shared_x[i] = x[y[i] + 1u][2];
    y[i] += 1u;
}
";
        let module = naga::front::wgsl::parse_str(shader).unwrap();
        let text = guarded(shader, &module, 256);
        assert!(text.contains("shared_x[i] = x[16 + (y[64 + (i)] + 1u)][2];"), "{text}");
        assert!(text.contains("y[64 + (i)] += 1u;"), "{text}");
        assert!(text.contains("x: array<vec4<f32>>;\n"), "{text}");
        naga::front::wgsl::parse_str(&text).unwrap();
    }
}
