//! The stack machine: one step for each opcode.

use std::collections::HashMap;

use super::values::{Global, Id, MAX_RANK, MAX_VALUES, Pickle, StorageRef, TensorRef, Value};

/// Runs one pickle.
pub(super) struct Machine<'a> {
    bytes: &'a [u8],
    at: usize,
    values: Vec<Value<'a>>,
    stack: Vec<Id>,
    /// Heights of the stack at the open marks.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
}

impl<'a> Machine<'a> {
    /// A machine before the pickle at the start of `bytes`.
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Machine {
            bytes,
            at: 0,
            values: Vec::new(),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: HashMap::new(),
        }
    }

    /// Reads the pickle to its end.
    ///
    /// # Errors
    /// What is wrong with it and at which byte.
    pub(super) fn run(mut self) -> Result<Pickle<'a>, String> {
        let root = self.steps().map_err(|why| format!("pickle, byte {}: {why}", self.at))?;
        Ok(Pickle { values: self.values, root, length: self.at })
    }

    fn steps(&mut self) -> Result<Id, String> {
        loop {
            let op = self.byte()?;
            if op == b'.' {
                return self.pop();
            }
            self.step(op)?;
        }
    }

    fn step(&mut self, op: u8) -> Result<(), String> {
        match op {
            // PROTO: all that differs are the opcodes in use. FRAME: a length.
            0x80 => self.take(1).map(drop),
            0x95 => self.take(8).map(drop),
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'0' => self.pop().map(drop),
            b'1' => self.pop_to_mark().map(drop),
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'J' | b'K' | b'M' | 0x8a | 0x8b => self.integer(op),
            b'G' => {
                self.take(8)?;
                self.push(Value::Float)
            }
            b'X' | b'T' | b'U' | 0x8c | 0x8d => self.string(op),
            b'B' | b'C' | 0x8e => {
                let size = self.length(op)?;
                self.take(size)?;
                self.push(Value::Bytes)
            }
            b']' => self.push(Value::List(Vec::new())),
            b')' => self.push(Value::Tuple(Vec::new())),
            b'}' => self.push(Value::Dict(Vec::new())),
            b't' | b'l' | b'd' | 0x85..=0x87 => self.collect(op),
            b'a' | b'e' | b's' | b'u' => self.extend(op),
            b'q' | b'r' | 0x94 => self.memoize(op),
            b'h' | b'j' => self.recall(op),
            b'c' | 0x93 => self.global(op),
            b'R' => self.reduce(),
            b'b' => self.build(),
            b'Q' => self.persistent(),
            other => Err(format!("opcode 0x{other:02x} is not one that torch.save writes")),
        }
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], String> {
        let end = self.at.checked_add(count).filter(|&end| end <= self.bytes.len());
        let end = end.ok_or("the file ends in the middle of it")?;
        let taken = &self.bytes[self.at..end];
        self.at = end;
        Ok(taken)
    }

    fn byte(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    /// An unsigned little-endian integer of `bytes` bytes.
    fn unsigned(&mut self, bytes: usize) -> Result<usize, String> {
        let value = self.take(bytes)?.iter().rev().fold(0u64, |n, &b| n << 8 | u64::from(b));
        usize::try_from(value).map_err(|_| format!("a length of {value}"))
    }

    /// The length before a string or bytes.
    fn length(&mut self, op: u8) -> Result<usize, String> {
        self.unsigned(match op {
            b'U' | b'C' | 0x8c => 1,
            0x8d | 0x8e => 8,
            _ => 4,
        })
    }

    fn line(&mut self) -> Result<&'a str, String> {
        let rest = &self.bytes[self.at..];
        let end = rest.iter().position(|&b| b == b'\n');
        let line = self.take(end.unwrap_or(rest.len()))?;
        self.take(1)?;
        text(line)
    }

    fn push(&mut self, value: Value<'a>) -> Result<(), String> {
        if self.values.len() == MAX_VALUES {
            return Err(format!("it holds more than {MAX_VALUES} values"));
        }
        self.stack.push(self.values.len() as Id);
        self.values.push(value);
        Ok(())
    }

    /// The value on top, which must lie above the last mark.
    fn top(&self) -> Result<Id, String> {
        let floor = self.marks.last().copied().unwrap_or(0);
        self.stack.get(floor..).and_then(|s| s.last()).copied().ok_or("an empty stack".into())
    }

    fn pop(&mut self) -> Result<Id, String> {
        let id = self.top()?;
        self.stack.pop();
        Ok(id)
    }

    fn pop_to_mark(&mut self) -> Result<Vec<Id>, String> {
        let mark = self.marks.pop().ok_or("no mark on the stack")?;
        Ok(self.stack.split_off(mark))
    }

    fn value(&self, id: Id) -> &Value<'a> {
        &self.values[id as usize]
    }

    fn integer(&mut self, op: u8) -> Result<(), String> {
        let value = match op {
            b'K' => Value::Int(self.unsigned(1)? as i64),
            b'M' => Value::Int(self.unsigned(2)? as i64),
            b'J' => Value::Int(i64::from(self.unsigned(4)? as u32 as i32)),
            _ => {
                let size = self.unsigned(if op == 0x8a { 1 } else { 4 })?;
                long(self.take(size)?)
            }
        };
        self.push(value)
    }

    fn string(&mut self, op: u8) -> Result<(), String> {
        let size = self.length(op)?;
        let string = text(self.take(size)?)?;
        self.push(Value::Str(string))
    }

    /// Tuples, lists and dicts of what is on the stack.
    fn collect(&mut self, op: u8) -> Result<(), String> {
        let ids = match op {
            0x85..=0x87 => {
                let mut ids = Vec::new();
                for _ in 0..op - 0x84 {
                    ids.push(self.pop()?);
                }
                ids.reverse();
                ids
            }
            _ => self.pop_to_mark()?,
        };
        self.push(match op {
            b'l' => Value::List(ids),
            b'd' => Value::Dict(pairs(ids)?),
            _ => Value::Tuple(ids),
        })
    }

    /// Adds to the list or dict on the stack.
    fn extend(&mut self, op: u8) -> Result<(), String> {
        let ids = match op {
            b'a' => vec![self.pop()?],
            b's' => {
                let value = self.pop()?;
                vec![self.pop()?, value]
            }
            _ => self.pop_to_mark()?,
        };
        let target = self.top()?;
        let to_list = matches!(op, b'a' | b'e');
        match &mut self.values[target as usize] {
            Value::List(list) if to_list => list.extend(ids),
            Value::Dict(dict) if !to_list => dict.extend(pairs(ids)?),
            other => return Err(format!("something is added to {}", other.kind())),
        }
        Ok(())
    }

    fn memoize(&mut self, op: u8) -> Result<(), String> {
        let key = match op {
            b'q' => self.unsigned(1)? as u32,
            b'r' => self.unsigned(4)? as u32,
            _ => self.memo.len() as u32,
        };
        let id = self.top()?;
        self.memo.insert(key, id);
        if self.memo.len() > MAX_VALUES {
            return Err(format!("it remembers more than {MAX_VALUES} values"));
        }
        Ok(())
    }

    fn recall(&mut self, op: u8) -> Result<(), String> {
        let key = self.unsigned(if op == b'h' { 1 } else { 4 })? as u32;
        let id = self.memo.get(&key).ok_or_else(|| format!("value {key} was never remembered"))?;
        self.stack.push(*id);
        Ok(())
    }

    fn global(&mut self, op: u8) -> Result<(), String> {
        let (module, name) = if op == b'c' {
            (self.line()?, self.line()?)
        } else {
            let (name, module) = (self.pop()?, self.pop()?);
            match (self.value(module), self.value(name)) {
                (Value::Str(module), Value::Str(name)) => (*module, *name),
                _ => return Err("a name that is no string".into()),
            }
        };
        self.push(Value::Global(Global::by_name(module, name)?))
    }

    /// What a "call" yields: the four known ones are understood, not made.
    fn reduce(&mut self) -> Result<(), String> {
        let (args, callee) = (self.pop()?, self.pop()?);
        let Value::Tuple(args) = self.value(args) else {
            return Err("a call whose arguments are no tuple".into());
        };
        let made = match (self.value(callee), &args[..]) {
            (Value::Global(Global::OrderedDict), []) => Value::Dict(Vec::new()),
            (Value::Global(Global::RebuildTensor), &[storage, offset, shape, stride, ..]) => {
                self.tensor(storage, offset, shape, stride)?
            }
            (Value::Global(Global::RebuildParameter), &[data, ..]) => match self.value(data) {
                Value::Tensor(tensor) => Value::Tensor(tensor.clone()),
                other => return Err(format!("a parameter made of {}", other.kind())),
            },
            (Value::Global(global), args) => {
                return Err(format!("{global:?} called with {} arguments", args.len()));
            }
            (other, _) => return Err(format!("a call of {}", other.kind())),
        };
        self.push(made)
    }

    fn tensor(&self, storage: Id, offset: Id, shape: Id, stride: Id) -> Result<Value<'a>, String> {
        let Value::Storage(storage) = self.value(storage) else {
            return Err("a tensor without a storage".into());
        };
        let (offset, shape, stride) =
            (self.count(offset)?, self.counts(shape)?, self.counts(stride)?);
        Ok(Value::Tensor(Box::new(TensorRef::new(*storage, offset, shape, stride)?)))
    }

    fn count(&self, id: Id) -> Result<usize, String> {
        match self.value(id) {
            Value::Int(n) => usize::try_from(*n).map_err(|_| format!("{n} where a count belongs")),
            other => Err(format!("{} where a count belongs", other.kind())),
        }
    }

    fn counts(&self, id: Id) -> Result<Vec<usize>, String> {
        match self.value(id) {
            Value::Tuple(ids) if ids.len() <= MAX_RANK => {
                ids.iter().map(|&id| self.count(id)).collect()
            }
            Value::Tuple(ids) => Err(format!("a tensor of {} axes", ids.len())),
            other => Err(format!("{} where a shape belongs", other.kind())),
        }
    }

    /// Attributes of an object. An OrderedDict of tensors carries versions of
    /// its modules, which nothing here depends on.
    fn build(&mut self) -> Result<(), String> {
        self.pop()?;
        match self.value(self.top()?) {
            Value::Dict(_) => Ok(()),
            other => Err(format!("attributes of {}", other.kind())),
        }
    }

    /// A persistent id is a storage: ("storage", class, key, location, elements).
    /// The location ("cpu", "cuda:0") does not matter.
    fn persistent(&mut self) -> Result<(), String> {
        let id = self.pop()?;
        let Value::Tuple(parts) = self.value(id) else {
            return Err("a persistent id that is no tuple".into());
        };
        let &[tag, class, key, _, count, ref more @ ..] = &parts[..] else {
            return Err(format!("a persistent id of {} parts", parts.len()));
        };
        // The legacy format has one more: a view of another storage, long unused.
        if more.iter().any(|&id| *self.value(id) != Value::None) {
            return Err("a storage that is a view of another one".into());
        }
        match (self.value(tag), self.value(class), self.value(key)) {
            (Value::Str("storage"), Value::Global(Global::Storage(element)), Value::Str(key)) => {
                let storage = StorageRef { element: *element, key, count: self.count(count)? };
                self.push(Value::Storage(storage))
            }
            _ => Err("a persistent id that is no storage".into()),
        }
    }
}

fn text(bytes: &[u8]) -> Result<&str, String> {
    std::str::from_utf8(bytes).map_err(|_| "a string that is not UTF-8".into())
}

/// An integer in two's complement, little-endian; no bytes are 0.
fn long(bytes: &[u8]) -> Value<'_> {
    if bytes.len() > 8 {
        return Value::Long(bytes);
    }
    let fill = if bytes.last().is_some_and(|b| b & 0x80 != 0) { 0xff } else { 0 };
    let mut wide = [fill; 8];
    wide[..bytes.len()].copy_from_slice(bytes);
    Value::Int(i64::from_le_bytes(wide))
}

/// Members of a dict, which must be keys with their values.
fn pairs(ids: Vec<Id>) -> Result<Vec<Id>, String> {
    if ids.len().is_multiple_of(2) { Ok(ids) } else { Err("a key without a value".into()) }
}
