//! What a pickle may hold: Python values, names, storages and tensors, all in one arena.

/// Longest pickle that is read; a network with 10,000 tensors needs about 2 MB.
pub(in crate::checkpoint) const MAX_PICKLE: usize = 16 << 20;
/// Most values of one pickle; a tensor takes about 20.
pub(super) const MAX_VALUES: usize = 1 << 21;
/// Deepest nesting; a checkpoint with its optimizer has about 6.
pub(super) const MAX_DEPTH: usize = 64;
/// Most axes of a tensor.
pub(super) const MAX_RANK: usize = 16;

/// Number of a value in its pickle.
pub(in crate::checkpoint) type Id = u32;

/// Type of a storage's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Element {
    F16,
    Bf16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    Bool,
}

impl Element {
    /// By the name of its class in the module `torch`.
    pub(super) fn by_class(name: &str) -> Option<Element> {
        Some(match name {
            "HalfStorage" => Element::F16,
            "BFloat16Storage" => Element::Bf16,
            "FloatStorage" => Element::F32,
            "DoubleStorage" => Element::F64,
            "CharStorage" => Element::I8,
            "ShortStorage" => Element::I16,
            "IntStorage" => Element::I32,
            "LongStorage" => Element::I64,
            "ByteStorage" => Element::U8,
            "BoolStorage" => Element::Bool,
            _ => return None,
        })
    }

    /// Bytes of one element in a file.
    pub(in crate::checkpoint) fn size(self) -> usize {
        match self {
            Element::I8 | Element::U8 | Element::Bool => 1,
            Element::F16 | Element::Bf16 | Element::I16 => 2,
            Element::F32 | Element::I32 => 4,
            Element::F64 | Element::I64 => 8,
        }
    }
}

/// What a pickle may refer to by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

impl Global {
    pub(super) fn by_name(module: &str, name: &str) -> Result<Global, String> {
        Ok(match (module, name) {
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch._utils", "_rebuild_tensor" | "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            _ => match (module, Element::by_class(name)) {
                ("torch", Some(element)) => Global::Storage(element),
                _ => {
                    return Err(format!(
                        "it refers to `{module}.{name}`, which no checkpoint of tensors needs; \
                         save the network's state_dict()"
                    ));
                }
            },
        })
    }
}

/// A storage: elements that tensors are views of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::checkpoint) struct StorageRef<'a> {
    pub(in crate::checkpoint) element: Element,
    /// Its name in the file.
    pub(in crate::checkpoint) key: &'a str,
    /// Elements.
    pub(in crate::checkpoint) count: usize,
}

/// A tensor: a view of a storage, checked to lie inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::checkpoint) struct TensorRef<'a> {
    pub(in crate::checkpoint) storage: StorageRef<'a>,
    /// Its first element.
    pub(in crate::checkpoint) offset: usize,
    pub(in crate::checkpoint) shape: Vec<usize>,
    /// Elements of the storage from one index of an axis to the next.
    pub(in crate::checkpoint) stride: Vec<usize>,
    /// Product of the shape.
    pub(in crate::checkpoint) len: usize,
}

impl<'a> TensorRef<'a> {
    /// # Errors
    /// If some element would lie outside of the storage.
    pub(super) fn new(
        storage: StorageRef<'a>,
        offset: usize,
        shape: Vec<usize>,
        stride: Vec<usize>,
    ) -> Result<Self, String> {
        let describe = || {
            format!(
                "a tensor of shape {shape:?}, strides {stride:?} and offset {offset} in a storage \
                 of {} elements",
                storage.count
            )
        };
        if shape.len() != stride.len() || shape.len() > MAX_RANK {
            return Err(describe());
        }
        let len = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d)).ok_or_else(describe)?;
        // One past the last element; an empty tensor has none.
        let end = shape
            .iter()
            .zip(&stride)
            .try_fold(offset, |at, (&d, &s)| at.checked_add(d.saturating_sub(1).checked_mul(s)?));
        let inside = if len == 0 {
            offset <= storage.count
        } else {
            end.is_some_and(|last| last < storage.count)
        };
        if !inside {
            return Err(describe());
        }
        Ok(TensorRef { storage, offset, shape, stride, len })
    }

    /// Whether its elements lie one after the other, row-major.
    pub(in crate::checkpoint) fn is_dense(&self) -> bool {
        if self.len == 0 {
            return true;
        }
        // At most `len`.
        let mut expected = 1;
        self.shape.iter().zip(&self.stride).rev().all(|(&d, &s)| {
            let fits = d == 1 || s == expected;
            expected *= d;
            fits
        })
    }
}

/// One Python value.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::checkpoint) enum Value<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer of more than 64 bits: two's complement, little-endian.
    Long(&'a [u8]),
    Float,
    Str(&'a str),
    Bytes,
    Tuple(Vec<Id>),
    List(Vec<Id>),
    /// Keys and values in turn; also an OrderedDict.
    Dict(Vec<Id>),
    Global(Global),
    Storage(StorageRef<'a>),
    Tensor(Box<TensorRef<'a>>),
}

impl Value<'_> {
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Value::None => "None",
            Value::Bool(_) => "a bool",
            Value::Int(_) | Value::Long(_) => "an integer",
            Value::Float => "a float",
            Value::Str(_) => "a string",
            Value::Bytes => "bytes",
            Value::Tuple(_) => "a tuple",
            Value::List(_) => "a list",
            Value::Dict(_) => "a dict",
            Value::Global(_) => "a name",
            Value::Storage(_) => "a storage",
            Value::Tensor(_) => "a tensor",
        }
    }

    pub(super) fn members(&self) -> &[Id] {
        match self {
            Value::Tuple(ids) | Value::List(ids) | Value::Dict(ids) => ids,
            _ => &[],
        }
    }
}

/// A pickle that was read to its end.
#[derive(Debug)]
pub(in crate::checkpoint) struct Pickle<'a> {
    pub(super) values: Vec<Value<'a>>,
    pub(super) root: Id,
    /// Bytes that it took.
    pub(in crate::checkpoint) length: usize,
}

impl<'a> Pickle<'a> {
    /// The value that was pickled.
    pub(in crate::checkpoint) fn root(&self) -> &Value<'a> {
        self.get(self.root)
    }

    /// A value that another one holds.
    pub(in crate::checkpoint) fn get(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    /// Every storage that was mentioned.
    pub(in crate::checkpoint) fn storages(&self) -> impl Iterator<Item = StorageRef<'a>> + '_ {
        self.values.iter().filter_map(|v| match v {
            Value::Storage(storage) => Some(*storage),
            _ => None,
        })
    }

    /// The tensors of a dict by their names; nothing for any other value.
    pub(in crate::checkpoint) fn named_tensors<'p>(
        &'p self,
        dict: &'p Value<'a>,
    ) -> impl Iterator<Item = (&'a str, &'p TensorRef<'a>)> {
        self.entries(dict).filter_map(|(name, value)| match value {
            Value::Tensor(tensor) => Some((name, tensor.as_ref())),
            _ => None,
        })
    }

    /// The entries of a dict whose keys are strings; nothing for any other value.
    pub(in crate::checkpoint) fn entries<'p>(
        &'p self,
        dict: &'p Value<'a>,
    ) -> impl Iterator<Item = (&'a str, &'p Value<'a>)> {
        let ids: &[Id] = if let Value::Dict(ids) = dict { ids } else { &[] };
        ids.as_chunks::<2>().0.iter().filter_map(|&[key, value]| match self.get(key) {
            Value::Str(name) => Some((*name, self.get(value))),
            _ => None,
        })
    }

    /// Walks all that the root holds, depth first.
    ///
    /// # Errors
    /// If a value contains itself or values nest deeper than [`MAX_DEPTH`].
    pub(super) fn check_nesting(&self) -> Result<(), String> {
        #[derive(Clone, Copy, PartialEq)]
        enum Mark {
            New,
            Open,
            Done,
        }
        let mut marks = vec![Mark::New; self.values.len()];
        let mut path: Vec<(Id, usize)> = vec![(self.root, 0)];
        while let Some((id, next)) = path.last_mut() {
            marks[*id as usize] = Mark::Open;
            let Some(&child) = self.values[*id as usize].members().get(*next) else {
                marks[*id as usize] = Mark::Done;
                path.pop();
                continue;
            };
            *next += 1;
            match marks[child as usize] {
                Mark::Open => return Err("a value contains itself".into()),
                Mark::New if path.len() >= MAX_DEPTH => {
                    return Err(format!("values nest deeper than {MAX_DEPTH}"));
                }
                Mark::New => path.push((child, 0)),
                Mark::Done => {}
            }
        }
        Ok(())
    }
}
