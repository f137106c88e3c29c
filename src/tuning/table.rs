//! The table: by choice and by shape the fastest candidate.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Which candidate was fastest: by choice, then by shape ("4096x64x64").
/// Entries that a lowering does not know are ignored, so a table outlives the
/// variants that it was measured with.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Tuning {
    entries: BTreeMap<String, BTreeMap<String, String>>,
}

impl Tuning {
    /// Prefers `candidate` for `op` at the bucketed `shape`.
    pub fn set(&mut self, op: &str, shape: &[usize], candidate: &str) {
        let shapes = self.entries.entry(op.into()).or_default();
        shapes.insert(shape_name(shape), candidate.into());
    }

    /// What was preferred.
    pub fn get(&self, op: &str, shape: &[usize]) -> Option<&str> {
        self.entries.get(op)?.get(&shape_name(shape)).map(String::as_str)
    }

    /// Takes over all entries of `newer`.
    pub fn merge(&mut self, newer: Tuning) {
        for (op, shapes) in newer.entries {
            self.entries.entry(op).or_default().extend(shapes);
        }
    }

    /// All entries as (choice, shape, candidate), in order of their names.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str, &str)> {
        self.entries.iter().flat_map(|(op, shapes)| {
            shapes.iter().map(|(shape, name)| (op.as_str(), shape.as_str(), name.as_str()))
        })
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.values().map(BTreeMap::len).sum()
    }

    /// True without entries.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// "4096x64x64".
pub fn shape_name(shape: &[usize]) -> String {
    shape.iter().map(usize::to_string).collect::<Vec<_>>().join("x")
}
