//! Kernels as data: a static [`KernelOf`] says what a WGSL shader binds, which parameters
//! it takes and in which variants it exists; composing fills the template in and
//! reflection proves that both sides agree.
//!
//! A shader is a Jinja template (crate `minijinja`) so that hot loops are
//! unrolled by text and tile sizes are literal constants: naga writes every
//! loop as `while(true)` for HLSL and MSL, and an override constant cannot
//! size a function array.

mod compose;
mod defines;
mod guarded;
mod reflect;
mod widen;

pub use compose::{compose, parse};
pub use defines::{
    AllValues, DefineValue, Defines, Domain, Every, Examples, capitals, listed_numbers,
};
pub use guarded::guarded;
pub use reflect::{bind_writable, check};
pub use widen::widen;

use std::marker::PhantomData;
use std::ops::Deref;

/// How a shader uses a storage binding. `Write` promises that the kernel
/// defines every element and reads none; `ReadWrite` keeps the old contents
/// (accumulation, in-place updates). Both are `read_write` in WGSL.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Only read.
    Read,
    /// Every element written, none read.
    Write,
    /// Old contents matter.
    ReadWrite,
    /// `ReadWrite` in variants with the define `ACC` set (the result is added
    /// to what is there), `Write` in the others.
    Accumulate,
}

/// One storage binding; its number in the shader is its position in
/// [`Kernel::bindings`] plus one (0 is the parameter block).
#[derive(Debug, Clone, Copy)]
pub struct Binding {
    /// The WGSL variable.
    pub name: &'static str,
    /// Use by the shader.
    pub access: Access,
    /// Present only if this define is non-zero.
    pub when: Option<&'static str>,
    /// Holds halves (`array<vec2<u32>>`) if this define is non-zero.
    pub half: Option<&'static str>,
    /// The result of the same shape that may overwrite what is read here, element
    /// by element: absent where the define `INPLACE` is set, and the result then
    /// holds the operand before. A plan sets it where this is the operand's last use.
    pub overwritten_by: Option<&'static str>,
}

/// A read binding.
pub const fn read(name: &'static str) -> Binding {
    Binding::new(name, Access::Read)
}

/// A fully written binding.
pub const fn write(name: &'static str) -> Binding {
    Binding::new(name, Access::Write)
}

/// A binding updated in place.
pub const fn read_write(name: &'static str) -> Binding {
    Binding::new(name, Access::ReadWrite)
}

/// A result that is assigned, or added where the define `ACC` is set.
pub const fn accumulate(name: &'static str) -> Binding {
    Binding::new(name, Access::Accumulate)
}

impl Binding {
    const fn new(name: &'static str, access: Access) -> Self {
        Binding { name, access, when: None, half: None, overwritten_by: None }
    }

    /// Makes the binding conditional on `define` being non-zero.
    pub const fn when(mut self, define: &'static str) -> Self {
        self.when = Some(define);
        self
    }

    /// Makes the elements halves where `define` is non-zero.
    pub const fn half(mut self, define: &'static str) -> Self {
        self.half = Some(define);
        self
    }

    /// Lets `result` overwrite this operand, see [`Binding::overwritten_by`].
    pub const fn overwritten_by(mut self, result: &'static str) -> Self {
        self.overwritten_by = Some(result);
        self
    }
}

/// A WGSL kernel and everything the host must know to bind it. [`KernelOf::new`] makes it.
#[derive(Debug)]
pub struct Kernel {
    /// Unique name, also the label of its pipelines.
    pub name: &'static str,
    /// The template's text.
    pub source: &'static str,
    /// Storage bindings in order.
    pub bindings: &'static [Binding],
    /// Fields of the uniform `Params` struct: name and byte offset.
    pub params: &'static [(&'static str, usize)],
    /// Defines the template may use; a dispatch gives a value to each.
    pub defines: &'static [&'static str],
    /// Whether the declaration of the defines allows these values.
    pub allows: fn(&[i64]) -> bool,
}

/// What immediates hold: see `shaders/uniform.wgsl`.
pub const DIGITS: [u32; 32] = {
    let mut digits = [0; 32];
    let mut i = 0;
    while i < digits.len() {
        digits[i] = i as u32;
        i += 1;
    }
    digits
};

impl Kernel {
    /// Whether a variant (by its define `UNI`) takes [`DIGITS`] as immediates.
    pub fn uses_immediates(&self, defines: &[i64]) -> bool {
        self.define(defines, "UNI") != 0
    }

    /// Whether a variant (by its define `SUBGROUP`) calculates within subgroups, which
    /// a device must offer: see `shaders/subgroup.wgsl`.
    pub fn uses_subgroups(&self, defines: &[i64]) -> bool {
        self.define(defines, "SUBGROUP") != 0
    }

    /// The value of `name` among `defines`; names are checked by a test of
    /// every kernel, so an unknown one counts as 0.
    pub fn define(&self, defines: &[i64], name: &str) -> i64 {
        self.defines.iter().position(|d| *d == name).map_or(0, |i| defines[i])
    }

    /// A variant as text: "VEC=1 ACC=0".
    pub fn variant_name(&self, defines: &[i64]) -> String {
        let pairs = self.defines.iter().zip(defines).map(|(name, value)| format!("{name}={value}"));
        pairs.collect::<Vec<_>>().join(" ")
    }

    /// The bindings present under `defines`, with their binding numbers and
    /// [`Access::Accumulate`] resolved.
    pub fn active_bindings<'a>(
        &'a self,
        defines: &'a [i64],
    ) -> impl Iterator<Item = (u32, Binding)> + 'a {
        let in_place = self.define(defines, "INPLACE") != 0;
        let overwrites =
            |b: &Binding| self.bindings.iter().any(|o| o.overwritten_by == Some(b.name));
        self.bindings.iter().enumerate().filter_map(move |(i, b)| {
            let on = b.when.is_none_or(|w| self.define(defines, w) != 0)
                && !(in_place && b.overwritten_by.is_some());
            let access = match (b.access, self.define(defines, "ACC") != 0) {
                (Access::Write | Access::Accumulate, _) if in_place && overwrites(b) => {
                    Access::ReadWrite
                }
                (Access::Accumulate, true) => Access::ReadWrite,
                (Access::Accumulate, false) => Access::Write,
                (other, _) => other,
            };
            on.then_some((i as u32 + 1, Binding { access, ..*b }))
        })
    }
}

/// A [`Kernel`] together with the types of its uniform block and its defines, so that a
/// launch can give no others.
#[derive(Debug)]
pub struct KernelOf<P, D> {
    kernel: Kernel,
    only: fn(&D) -> bool,
    types: PhantomData<fn() -> P>,
}

impl<P: Params, D: Defines> KernelOf<P, D> {
    /// Describes the shader `source`. `name` is unique, and `bindings` are in the
    /// order of the shader.
    pub const fn new(
        name: &'static str,
        source: &'static str,
        bindings: &'static [Binding],
    ) -> Self {
        let kernel = Kernel {
            name,
            source,
            bindings,
            params: P::FIELDS,
            defines: D::NAMES,
            allows: |numbers| D::from_numbers(numbers).is_some_and(D::is_variant),
        };
        KernelOf { kernel, only: |_| true, types: PhantomData }
    }

    /// Of the variants that the defines allow, the kernel has only those that satisfy
    /// `only`: for several kernels that share one shader.
    pub const fn only(mut self, only: fn(&D) -> bool) -> Self {
        self.only = only;
        self
    }

    /// Whether the kernel has this variant.
    pub fn has(&self, defines: D) -> bool {
        defines.is_variant() && (self.only)(&defines)
    }

    /// The kernel and all its variants, for tests that compile them.
    pub fn with_variants(&'static self) -> (&'static Kernel, Vec<Vec<i64>>) {
        let variants = D::variants().into_iter().filter(|d| (self.only)(d));
        (&self.kernel, variants.map(D::numbers).collect())
    }
}

impl<P, D> Deref for KernelOf<P, D> {
    type Target = Kernel;

    fn deref(&self) -> &Kernel {
        &self.kernel
    }
}

/// A uniform block that [`params!`](crate::params) made.
pub trait Params: bytemuck::Pod {
    /// Names of the fields and their offsets in bytes, compared with the shader.
    const FIELDS: &'static [(&'static str, usize)];
}

/// Defines a plain uniform block of 32-bit scalars: a `repr(C)` struct and
/// its [`FIELDS`](crate::kernel::Params::FIELDS), which are compared with the shader.
#[macro_export]
macro_rules! params {
    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$fmeta:meta])* $field:ident : $ty:ty),+ $(,)?
    }) => {
        $(#[$meta])*
        #[repr(C)]
        #[derive(Debug, Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
        $vis struct $name { $($(#[$fmeta])* pub $field: $ty),+ }
        impl $crate::kernel::Params for $name {
            const FIELDS: &'static [(&'static str, usize)] =
                &[$((stringify!($field), std::mem::offset_of!($name, $field))),+];
        }
    };
}
