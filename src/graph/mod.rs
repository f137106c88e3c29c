//! The graph of a network: tensors, parameters and nodes, described once and
//! lowered to an inference or a training plan.
//!
//! A [`Graph`] is built front to back by the functions of [`crate::ops`].
//! [`Lower`] turns its nodes into dispatches (and, walking backwards, their
//! gradients); [`Plan`] assigns memory. Nothing here touches a device.

mod choice;
mod dispatch;
mod in_place;
mod launch;
mod lower;
mod memory;
mod nodes;
mod notes;
mod packing;
mod params;
mod plan;
mod tensor;
mod walk;

pub use crate::tuning::{Tuning, shape_name};
pub use choice::{CHOICES, Choice, Why, bucket};
pub use dispatch::{Cost, Dispatch};
pub use launch::{Launch, NamedTensor};
pub use lower::{Lower, Target};
pub(crate) use memory::GUARD;
pub use memory::{Place, PlanOptions, Slots, assign_slots, verify_slots};
pub use nodes::{Graph, Node, Op};
pub use params::{FileLayout, Init, ParamInfo, ParamLayout};
pub use plan::{Plan, PlanReport};
pub use tensor::{DType, FlatKind, Storage, TensorId, TensorInfo};
