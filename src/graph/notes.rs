//! What ops tell each other about tensors. The types of the notes belong to the ops.

use super::tensor::TensorId;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::sync::Arc;

/// Notes on tensors, one of each type.
#[derive(Debug, Default, Clone)]
pub(super) struct Notes(HashMap<(TensorId, TypeId), Arc<dyn Any + Send + Sync>>);

impl Notes {
    /// Replaces the note of this type on `id`.
    pub fn set<T: Any + Send + Sync>(&mut self, id: TensorId, note: T) {
        self.0.insert((id, TypeId::of::<T>()), Arc::new(note));
    }

    /// The note of this type on `id`.
    pub fn get<T: Any + Copy>(&self, id: TensorId) -> Option<T> {
        self.0.get(&(id, TypeId::of::<T>()))?.downcast_ref().copied()
    }
}
