//! Golden files: a reader, and a checker that compares a case tensor by tensor
//! and insists that none is left out.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use super::{rel_err, strided};

/// Stored elements of an `act.*` tensor.
pub const ACT_LIMIT: usize = 4096;
/// Stored elements of a gradient or weight.
pub const PARAM_LIMIT: usize = 512;

/// The values of one tensor, row-major in the reference's layout.
#[derive(Debug, Clone, PartialEq)]
pub enum Values {
    F32(Vec<f32>),
    F64(Vec<f64>),
    I64(Vec<i64>),
}

impl Values {
    fn as_f64(&self) -> Vec<f64> {
        match self {
            Values::F32(v) => v.iter().map(|&x| x.into()).collect(),
            Values::F64(v) => v.clone(),
            Values::I64(v) => v.iter().map(|&x| x as f64).collect(),
        }
    }
}

/// One stored tensor.
#[derive(Debug, Clone, PartialEq)]
pub struct Tensor {
    pub shape: Vec<usize>,
    pub values: Values,
}

/// One golden file.
pub struct Golden {
    pub path: PathBuf,
    /// What the file is about: "unet", "train", "schedules", ...
    pub kind: String,
    /// The metadata's `config`.
    pub config: Value,
    pub tensors: BTreeMap<String, Tensor>,
    /// Names asked for so far.
    read: RefCell<BTreeSet<String>>,
}

impl Golden {
    /// Reads a file; the error names it and what is wrong.
    pub fn read(path: &Path) -> Result<Golden, String> {
        let context = |e: &dyn std::fmt::Display| format!("{}: {e}", path.display());
        let bytes = std::fs::read(path).map_err(|e| context(&e))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| context(&e))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let text = metadata.get("config").ok_or_else(|| context(&"no config in its metadata"))?;
        let config: Value = serde_json::from_str(text).map_err(|e| context(&e))?;
        let file = SafeTensors::deserialize(&bytes).map_err(|e| context(&e))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.iter() {
            let values = decode(view.dtype(), view.data())
                .ok_or_else(|| context(&format!("{name} has type {:?}", view.dtype())))?;
            tensors.insert(name.to_owned(), Tensor { shape: view.shape().to_vec(), values });
        }
        // The schedules file has no model and an empty config.
        let kind = match config.get("kind").and_then(Value::as_str) {
            Some(kind) => kind.to_owned(),
            None if metadata.contains_key("source") && tensors.contains_key("in.lsm_ts") => {
                "schedules".to_owned()
            }
            None => return Err(context(&"its config has no kind")),
        };
        Ok(Golden { path: path.to_owned(), kind, config, tensors, read: RefCell::default() })
    }

    /// The file's name without folder and extension.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// A string of the config, as `salt`.
    pub fn config_str(&self, field: &str) -> Result<&str, String> {
        self.config[field]
            .as_str()
            .ok_or_else(|| format!("{}: config has no {field}", self.path.display()))
    }

    /// A count of the config by JSON pointer, as `/model/image_size`.
    pub fn config_usize(&self, pointer: &str) -> Result<usize, String> {
        self.config
            .pointer(pointer)
            .and_then(Value::as_u64)
            .map(|n| n as usize)
            .ok_or_else(|| format!("{}: config has no count {pointer}", self.path.display()))
    }

    /// A number of the config by JSON pointer, as `/optim/lr`.
    pub fn config_f64(&self, pointer: &str) -> Result<f64, String> {
        self.config
            .pointer(pointer)
            .and_then(Value::as_f64)
            .ok_or_else(|| format!("{}: config has no number {pointer}", self.path.display()))
    }

    /// A tensor that must be there.
    pub fn tensor(&self, name: &str) -> Result<&Tensor, String> {
        self.read.borrow_mut().insert(name.to_owned());
        self.tensors.get(name).ok_or_else(|| format!("{}: no tensor {name}", self.path.display()))
    }

    /// A stored integer tensor (`in.t`, `in.y`, kept steps).
    pub fn i64s(&self, name: &str) -> Result<&[i64], String> {
        match &self.tensor(name)?.values {
            Values::I64(values) => Ok(values),
            _ => Err(format!("{}: {name} does not hold i64", self.path.display())),
        }
    }

    /// A stored tensor of any type, as float64.
    pub fn f64s(&self, name: &str) -> Result<Vec<f64>, String> {
        Ok(self.tensor(name)?.values.as_f64())
    }
}

fn decode(dtype: Dtype, bytes: &[u8]) -> Option<Values> {
    Some(match dtype {
        Dtype::F32 => Values::F32(words(bytes).map(f32::from_le_bytes).collect()),
        Dtype::F64 => Values::F64(words(bytes).map(f64::from_le_bytes).collect()),
        Dtype::I64 => Values::I64(words(bytes).map(i64::from_le_bytes).collect()),
        _ => return None,
    })
}

fn words<const N: usize>(bytes: &[u8]) -> impl Iterator<Item = [u8; N]> + '_ {
    bytes.as_chunks::<N>().0.iter().copied()
}

/// Compares a case with what was computed, and keeps account: the worst error
/// seen, what failed, and which tensors nobody looked at.
pub struct Checker<'a> {
    pub golden: &'a Golden,
    checked: BTreeSet<String>,
    failures: Vec<String>,
    worst: (f64, String),
}

impl<'a> Checker<'a> {
    pub fn new(golden: &'a Golden) -> Self {
        Checker {
            golden,
            checked: BTreeSet::new(),
            failures: Vec::new(),
            worst: (0.0, "nothing differs".to_owned()),
        }
    }

    /// The stored tensor `name` against `ours`, whole: relative l2 error.
    pub fn close(&mut self, name: &str, ours: &[f64], tolerance: f64) -> Result<(), String> {
        let theirs = self.golden.f64s(name)?;
        self.record(name, rel_err(ours, &theirs), tolerance);
        Ok(())
    }

    /// [`close`](Self::close) for float32 results.
    pub fn close_f32(&mut self, name: &str, ours: &[f32], tolerance: f64) -> Result<(), String> {
        let theirs = self.golden.f64s(name)?;
        self.record(name, rel_err(ours, &theirs), tolerance);
        Ok(())
    }

    /// A stored integer tensor against `ours`: every element the same.
    pub fn exact(&mut self, name: &str, ours: &[i64]) -> Result<(), String> {
        let same = self.golden.i64s(name)? == ours;
        self.record(name, if same { 0.0 } else { f64::INFINITY }, 0.0);
        Ok(())
    }

    /// A thinned-out tensor (`act.*`, `g0.*`) against all of `ours`, in the
    /// reference's layout, and its `#norm` where the file has one.
    pub fn close_strided(
        &mut self,
        name: &str,
        ours: &[f32],
        limit: usize,
        tolerance: f64,
    ) -> Result<(), String> {
        self.close_f32(name, &strided(ours, limit), tolerance)?;
        if self.golden.tensors.contains_key(&norm_key(name)) {
            self.close_norm(name, ours, tolerance)?;
        }
        Ok(())
    }

    /// A thinned-out tensor by the share of its elements that are within
    /// `distance` of `ours`: for weights after AdamW's sign-like first steps,
    /// where a gradient near zero may send a few elements the other way.
    pub fn mostly_close(
        &mut self,
        name: &str,
        ours: &[f32],
        limit: usize,
        distance: f64,
        allowed_share: f64,
    ) -> Result<(), String> {
        let theirs = self.golden.f64s(name)?;
        let ours = strided(ours, limit);
        let agree =
            ours.iter().zip(&theirs).filter(|(a, b)| (f64::from(**a) - *b).abs() <= distance);
        let off = theirs.len().max(ours.len()) - agree.count();
        self.record(name, off as f64 / theirs.len().max(1) as f64, allowed_share);
        Ok(())
    }

    /// Only `name#norm`, the stored [l2 norm, sum] of a tensor, against all of
    /// `ours`. The sum of many elements may cancel, so its error is taken
    /// relative to the most that errors of `tolerance` can add up to.
    pub fn close_norm(&mut self, name: &str, ours: &[f32], tolerance: f64) -> Result<(), String> {
        let key = norm_key(name);
        let stored = self.golden.f64s(&key)?;
        let [norm, sum] = stored[..] else {
            return Err(format!("{}: {key} is not [norm, sum]", self.golden.path.display()));
        };
        let our_norm = ours.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
        let our_sum = ours.iter().map(|&x| f64::from(x)).sum::<f64>();
        let scale = if norm > 0.0 { norm } else { 1.0 };
        let norm_error = (our_norm - norm).abs() / scale;
        let sum_error = (our_sum - sum).abs() / (scale * (ours.len().max(1) as f64).sqrt());
        let worst = if norm_error.is_nan() || sum_error.is_nan() {
            f64::INFINITY
        } else {
            norm_error.max(sum_error)
        };
        self.record(&key, worst, tolerance);
        Ok(())
    }

    /// Marks a tensor as dealt with, with an error measured elsewhere.
    pub fn record(&mut self, name: &str, error: f64, tolerance: f64) {
        self.checked.insert(name.to_owned());
        if error > self.worst.0 {
            self.worst = (error, name.to_owned());
        }
        // A NaN does not hold either.
        let holds = error <= tolerance;
        if !holds {
            self.failures.push(format!("{name}: error {error:.3e} > {tolerance:.1e}"));
        }
    }

    /// The worst error and its tensor, or every failure: a comparison that
    /// did not hold, a result that nothing checked, an input that nothing read.
    pub fn finish(mut self) -> Result<(f64, String), String> {
        let read = self.golden.read.borrow();
        for name in self.golden.tensors.keys() {
            let used = if name.starts_with("in.") { &*read } else { &self.checked };
            if !used.contains(name) {
                self.failures.push(format!("{name}: not checked"));
            }
        }
        if self.failures.is_empty() {
            return Ok(self.worst);
        }
        Err(format!("{}:\n    {}", self.golden.path.display(), self.failures.join("\n    ")))
    }
}

fn norm_key(name: &str) -> String {
    format!("{name}#norm")
}

/// The golden files of `folder`, sorted; an empty folder is an error.
pub fn golden_files(folder: &Path) -> Result<Vec<PathBuf>, String> {
    let context = |e: &dyn std::fmt::Display| format!("{}: {e}", folder.display());
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(|e| context(&e))? {
        let path = entry.map_err(|e| context(&e))?.path();
        if path.extension().is_some_and(|extension| extension == "safetensors") {
            files.push(path);
        }
    }
    if files.is_empty() {
        return Err(context(&"no *.safetensors file"));
    }
    files.sort();
    Ok(files)
}
