//! Defines: the named constants of a kernel's template. Each combination of their
//! values is a variant of the kernel, with a text and a pipeline of its own.
//!
//! [`defines!`](crate::defines) declares them as a struct. From this one place follow
//! the names in the template, the list of all variants, and the check that a launch
//! asks for one of them.

use std::fmt::Debug;
use std::ops::RangeInclusive;

/// The struct that [`defines!`](crate::defines) makes: one value of it is a variant.
pub trait Defines: Copy + Debug + 'static {
    /// The names in the template, in the order of the fields.
    const NAMES: &'static [&'static str];

    /// The numbers that the template sees, in the order of the fields.
    fn numbers(self) -> Vec<i64>;

    /// The reverse of [`Defines::numbers`]; `None` if a field has no such value.
    fn from_numbers(numbers: &[i64]) -> Option<Self>;

    /// For each field the numbers that its domain lists.
    fn domains() -> Vec<Vec<i64>>;

    /// Whether each value lies in its domain and the rule holds.
    fn is_variant(self) -> bool;

    /// All variants: the product of the domains, as far as the rule allows.
    fn variants() -> Vec<Self> {
        let mut rows = vec![Vec::new()];
        for domain in Self::domains() {
            let longer = |row: &Vec<i64>| {
                let row = row.clone();
                domain.clone().into_iter().map(move |number| [&row[..], &[number]].concat())
            };
            rows = rows.iter().flat_map(longer).collect();
        }
        let variants = rows.iter().filter_map(|row| Self::from_numbers(row));
        variants.filter(|variant| variant.is_variant()).collect()
    }
}

/// A kernel without defines has one variant.
impl Defines for () {
    const NAMES: &'static [&'static str] = &[];

    fn numbers(self) -> Vec<i64> {
        Vec::new()
    }

    fn from_numbers(numbers: &[i64]) -> Option<Self> {
        numbers.is_empty().then_some(())
    }

    fn domains() -> Vec<Vec<i64>> {
        Vec::new()
    }

    fn is_variant(self) -> bool {
        true
    }
}

/// The type of a define: `bool`, `u32`, or an enum that [`defines!`](crate::defines) made.
pub trait DefineValue: Copy + PartialEq + Debug + 'static {
    /// The number that the template sees.
    fn number(self) -> i64;

    /// The value that this number stands for, if there is one.
    fn from_number(number: i64) -> Option<Self>;
}

/// A type with few values, all of which a define may take.
pub trait AllValues: DefineValue {
    /// All of them.
    fn all() -> Vec<Self>;
}

impl DefineValue for bool {
    fn number(self) -> i64 {
        self.into()
    }

    fn from_number(number: i64) -> Option<Self> {
        match number {
            0 => Some(false),
            1 => Some(true),
            _ => None,
        }
    }
}

impl AllValues for bool {
    fn all() -> Vec<Self> {
        vec![false, true]
    }
}

impl DefineValue for u32 {
    fn number(self) -> i64 {
        self.into()
    }

    fn from_number(number: i64) -> Option<Self> {
        number.try_into().ok()
    }
}

/// The values that a define may take.
pub trait Domain<T> {
    /// Those for which variants are listed.
    fn listed(&self) -> Vec<T>;

    /// Whether a launch may use `value`.
    fn contains(&self, value: T) -> bool;
}

/// The domain of a field that names no other: all values of its type.
#[derive(Debug, Clone, Copy)]
pub struct Every;

impl<T: AllValues> Domain<T> for Every {
    fn listed(&self) -> Vec<T> {
        T::all()
    }

    fn contains(&self, value: T) -> bool {
        T::all().contains(&value)
    }
}

impl<T: DefineValue, const N: usize> Domain<T> for [T; N] {
    fn listed(&self) -> Vec<T> {
        self.to_vec()
    }

    fn contains(&self, value: T) -> bool {
        self.as_slice().contains(&value)
    }
}

/// A range with too many values to list: a launch may use all of them, and variants are
/// listed for some examples.
#[derive(Debug, Clone)]
pub struct Examples<const N: usize> {
    /// What a launch may use.
    pub range: RangeInclusive<u32>,
    /// What is listed.
    pub listed: [u32; N],
}

impl<const N: usize> Domain<u32> for Examples<N> {
    fn listed(&self) -> Vec<u32> {
        self.listed.to_vec()
    }

    fn contains(&self, value: u32) -> bool {
        self.range.contains(&value)
    }
}

/// The numbers that `domain` lists.
pub fn listed_numbers<T: DefineValue>(domain: &impl Domain<T>) -> Vec<i64> {
    domain.listed().into_iter().map(T::number).collect()
}

/// `name` in capitals: a field's name as the template knows it.
pub const fn capitals<const N: usize>(name: &str) -> [u8; N] {
    let (mut capitals, mut i) = ([0; N], 0);
    while i < N {
        capitals[i] = name.as_bytes()[i].to_ascii_uppercase();
        i += 1;
    }
    capitals
}

/// Declares the defines of a kernel, or an enum that is the type of one.
///
/// The template knows a field by its name in capitals. A `bool` is 0 or 1 there, an
/// enum the number beside its value. A number needs a domain, which follows `in`: an
/// array, or [`Examples`](crate::kernel::Examples) of a long range. `where` gives the rule
/// for combinations; without it all exist.
///
/// ```
/// demist::defines! {
///     /// In which order rows are walked.
///     pub enum Order { Up = 0, Down = 1 }
/// }
///
/// demist::defines! {
///     /// Variants of some kernel.
///     pub struct Variant {
///         /// Rows that an invocation owns.
///         rows: u32 in [1, 4],
///         order: Order,
///         /// Adds to the result instead of assigning it.
///         acc: bool,
///     }
///     where |v| v.rows == 4 || !v.acc
/// }
///
/// use demist::engine::kernel::Defines;
/// assert_eq!(Variant::NAMES, ["ROWS", "ORDER", "ACC"]);
/// assert_eq!(Variant::variants().len(), 6);
/// assert!(!Variant { rows: 1, order: Order::Up, acc: true }.is_variant());
/// ```
///
/// Some names have a meaning for the engine:
///
/// | define | meaning |
/// |---|---|
/// | `ACC` | bindings declared by [`accumulate`](crate::kernel::accumulate) are added to |
/// | `INPLACE` | operands with [`overwritten_by`](crate::kernel::Binding::overwritten_by) are absent; a plan sets it, a launch gives `false` |
/// | `UNI` | the kernel takes [`DIGITS`](crate::kernel::DIGITS) as immediates |
/// | `SUBGROUP` | the kernel calculates within subgroups |
/// | `COOP` | the kernel uses cooperative matrices of this size |
/// | `F16` | the kernel calculates in half precision |
#[macro_export]
macro_rules! defines {
    (@domain) => { $crate::kernel::Every };
    (@domain $domain:expr) => { $domain };
    (@rule $self:ident) => { true };
    (@rule $self:ident $variant:ident $rule:expr) => {{ let $variant = $self; $rule }};

    ($(#[$meta:meta])* $vis:vis enum $name:ident {
        $($(#[$vmeta:meta])* $value:ident = $number:literal),+ $(,)?
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis enum $name { $($(#[$vmeta])* $value = $number),+ }

        impl $crate::kernel::DefineValue for $name {
            fn number(self) -> i64 {
                self as i64
            }

            fn from_number(number: i64) -> Option<Self> {
                match number {
                    $($number => Some($name::$value),)+
                    _ => None,
                }
            }
        }

        impl $crate::kernel::AllValues for $name {
            fn all() -> Vec<Self> {
                vec![$($name::$value),+]
            }
        }
    };

    ($(#[$meta:meta])* $vis:vis struct $name:ident {
        $($(#[$fmeta:meta])* $field:ident : $ty:ident $(in $domain:expr)?),+ $(,)?
    } $(where |$variant:ident| $rule:expr)?) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $vis struct $name { $($(#[$fmeta])* pub $field: $ty),+ }

        impl $crate::kernel::Defines for $name {
            const NAMES: &'static [&'static str] = &[$({
                const CAPITALS: [u8; stringify!($field).len()] =
                    $crate::kernel::capitals(stringify!($field));
                match std::str::from_utf8(&CAPITALS) {
                    Ok(name) => name,
                    Err(_) => panic!("a field's name is no ASCII"),
                }
            }),+];

            fn numbers(self) -> Vec<i64> {
                vec![$($crate::kernel::DefineValue::number(self.$field)),+]
            }

            fn from_numbers(numbers: &[i64]) -> Option<Self> {
                let mut numbers = numbers.iter().copied();
                // Fields are evaluated in the order in which they are written.
                let variant = $name {
                    $($field: $crate::kernel::DefineValue::from_number(numbers.next()?)?),+
                };
                numbers.next().is_none().then_some(variant)
            }

            fn domains() -> Vec<Vec<i64>> {
                vec![$(
                    $crate::kernel::listed_numbers::<$ty>(&$crate::defines!(@domain $($domain)?))
                ),+]
            }

            fn is_variant(self) -> bool {
                $($crate::kernel::Domain::<$ty>::contains(
                    &$crate::defines!(@domain $($domain)?),
                    self.$field,
                ))&&+ && $crate::defines!(@rule self $($variant $rule)?)
            }
        }
    };
}

#[cfg(test)]
mod tests {
    use super::{Defines, Examples};

    crate::defines! {
        enum Kind { Plain = 0, Deep = 4 }
    }

    crate::defines! {
        struct Sample {
            kind: Kind,
            /// Divides a row.
            size: u32 in Examples { range: 1..=100, listed: [2, 3] },
            half_x: bool,
        }
        where |s| !s.half_x || s.size.is_multiple_of(2)
    }

    #[test]
    fn variants_are_the_product_of_the_domains_under_the_rule() {
        assert_eq!(Sample::NAMES, ["KIND", "SIZE", "HALF_X"]);
        let numbers: Vec<Vec<i64>> = Sample::variants().into_iter().map(|v| v.numbers()).collect();
        let expected =
            [[0, 2, 0], [0, 2, 1], [0, 3, 0], [4, 2, 0], [4, 2, 1], [4, 3, 0]].map(Vec::from);
        assert_eq!(numbers, expected);
        assert_eq!(<()>::variants(), [()]);
    }

    #[test]
    fn a_launch_may_use_more_than_the_examples_but_not_more_than_the_rule() {
        let sample = |size, half_x| Sample { kind: Kind::Deep, size, half_x };
        assert!(sample(100, true).is_variant() && sample(99, false).is_variant());
        assert!(!sample(101, false).is_variant() && !sample(99, true).is_variant());
    }

    #[test]
    fn numbers_that_stand_for_no_value_are_refused() {
        assert_eq!(Sample::from_numbers(&[4, 2, 1]).map(Defines::numbers), Some(vec![4, 2, 1]));
        for wrong in [&[1, 2, 1][..], &[4, -2, 1], &[4, 2, 2], &[4, 2], &[4, 2, 1, 0]] {
            assert_eq!(Sample::from_numbers(wrong), None, "{wrong:?}");
        }
    }
}
