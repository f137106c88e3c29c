//! The graph: nodes, each one use of an op, and the tensors and parameters between them.

use super::launch::NamedTensor;
use super::lower::Lower;
use super::notes::Notes;
use super::params::{ParamInfo, ParamLayout};
use super::tensor::{DType, Storage, TensorId, TensorInfo};
use crate::{Error, Result};
use std::any::Any;
use std::collections::HashMap;
use std::sync::Arc;

/// An operation: how it runs forward and how its gradient is formed.
///
/// Contract of `backward`: read dy with [`Lower::grad`] (it may be any
/// tensor, never assume ones), and add to every input that wants a gradient
/// through [`Lower::grad_target`], whose [`Target`](super::lower::Target) says whether to add or to assign.
pub trait Op: std::fmt::Debug + Send + Sync {
    /// The op's name in the field: "conv2d".
    fn name(&self) -> &'static str;
    /// Emits the forward dispatches of `node`.
    fn forward(&self, lower: &mut Lower, node: &Node) -> Result<()>;
    /// Emits the dispatches of its gradients.
    fn backward(&self, lower: &mut Lower, node: &Node) -> Result<()>;
}

/// One use of an op.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it does.
    pub op: Arc<dyn Op>,
    /// Operands, parameters included, in the op's order.
    pub inputs: Vec<TensorId>,
    /// The op's names for them, in the same order.
    pub input_names: Vec<&'static str>,
    /// Results; the first is the main one, others are saved for backward.
    pub outputs: Vec<TensorId>,
    /// The op's names for them, in the same order.
    pub output_names: Vec<&'static str>,
    /// Dotted path in the network ("input_blocks.1.0").
    pub scope: String,
    /// Recomputation region, if any.
    pub region: Option<u32>,
}

impl Node {
    /// The operand that the op calls `name`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is none.
    pub fn input(&self, name: &str) -> Result<TensorId> {
        self.optional_input(name).ok_or_else(|| self.lacks("input", name))
    }

    /// The operand that the op calls `name`, if it was given.
    pub fn optional_input(&self, name: &str) -> Option<TensorId> {
        find(&self.input_names, &self.inputs, name)
    }

    /// The result that the op calls `name`.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is none.
    pub fn output(&self, name: &str) -> Result<TensorId> {
        self.optional_output(name).ok_or_else(|| self.lacks("output", name))
    }

    /// The result that the op calls `name`, if it is wanted.
    pub fn optional_output(&self, name: &str) -> Option<TensorId> {
        find(&self.output_names, &self.outputs, name)
    }

    fn lacks(&self, what: &str, name: &str) -> Error {
        Error::shape(self.op.name(), format!("the node {} has no {what} `{name}`", self.scope))
    }
}

fn find(names: &[&str], tensors: &[TensorId], name: &str) -> Option<TensorId> {
    names.iter().position(|n| *n == name).map(|at| tensors[at])
}

/// A network under construction or finished.
#[derive(Debug, Default, Clone)]
pub struct Graph {
    /// All tensors; a [`TensorId`] is an index.
    pub tensors: Vec<TensorInfo>,
    /// Nodes in execution order.
    pub nodes: Vec<Node>,
    /// Trainable parameters in the order in which they were described.
    pub params: Vec<ParamInfo>,
    /// Tensors worth looking at, by name (block outputs).
    pub taps: Vec<(String, TensorId)>,
    /// Whether [`crate::ops::conv2d`] and [`crate::ops::group_norm`] give their
    /// results in half precision. A convolution of such a result binds its
    /// weight as half, too; ops without parameters give what they are given.
    /// Set before a network is described, it makes the network's torso half (all
    /// blocks but the head), as the reference's `use_fp16` does; embeddings,
    /// norms and linear layers keep 32-bit parameters.
    pub half: bool,
    /// Bit l set: blocks at resolution level l (0 = full size, the last level
    /// includes the middle, blocks between levels count to the larger) become
    /// [checkpoint](Graph::checkpoint) regions, whatever their network's
    /// options say. For a planner to set before the network is described.
    pub recompute_levels: u32,
    /// What ops tell each other about tensors.
    pub(super) notes: Notes,
    scope: Vec<String>,
    region: Option<u32>,
    regions: u32,
}

impl Graph {
    /// An empty graph.
    pub fn new() -> Self {
        Self::default()
    }

    /// A tensor that the host writes before each run.
    pub fn input(&mut self, name: &str, shape: &[usize], dtype: DType) -> TensorId {
        self.add_tensor(name.into(), shape, dtype, Storage::Pinned)
    }

    /// A trainable parameter; its name is prefixed by the current scope.
    pub fn param(&mut self, info: ParamInfo) -> TensorId {
        self.param_as(info, DType::F32)
    }

    /// As [`param`](Self::param); with [`DType::F16`] it is read from a packed
    /// copy. What is trained is always 32 bits wide, and so is the gradient.
    pub fn param_as(&mut self, info: ParamInfo, dtype: DType) -> TensorId {
        let name = self.scoped(&info.name);
        let shape = info.shape.clone();
        let index = self.params.len();
        self.params.push(ParamInfo { name: name.clone(), ..info });
        self.add_tensor(name, &shape, dtype, Storage::Param(index))
    }

    /// The places of its parameters in flat buffers, in chunks of at most `max_bytes`.
    pub fn param_layout(&self, max_bytes: u64) -> ParamLayout {
        ParamLayout::with_packed(&self.params, &self.packed_params(), max_bytes)
    }

    /// For each parameter whether it is read as half.
    pub fn packed_params(&self) -> Vec<bool> {
        let mut packed = vec![false; self.params.len()];
        for t in &self.tensors {
            if let Storage::Param(p) = t.storage {
                packed[p] = t.dtype == DType::F16;
            }
        }
        packed
    }

    /// Appends a node and returns its outputs. `inputs` are the operands by the op's names
    /// for them ([`named!`](crate::named)); optional ones may be absent. `outputs` are names
    /// and shapes. Within the op, [`Node::input`] and [`Node::output`] find both.
    pub fn add_node(
        &mut self,
        op: impl Op + 'static,
        inputs: &[NamedTensor],
        outputs: &[(&'static str, &[usize])],
    ) -> Vec<TensorId> {
        self.add_node_as(op, inputs, outputs, DType::F32)
    }

    /// As [`add_node`](Self::add_node), with the element type of the main output (what
    /// is saved for backward beside it has 32 bits).
    pub fn add_node_as(
        &mut self,
        op: impl Op + 'static,
        inputs: &[NamedTensor],
        outputs: &[(&'static str, &[usize])],
        dtype: DType,
    ) -> Vec<TensorId> {
        let given = inputs.iter().filter_map(|(name, id)| Some((*name, (*id)?)));
        let (input_names, inputs) = given.unzip();
        let scope = self.scope.join(".");
        let (mut output_names, mut ids) = (Vec::new(), Vec::new());
        for (i, (name, shape)) in outputs.iter().enumerate() {
            let (suffix, dtype) =
                if i == 0 { (String::new(), dtype) } else { (format!("#{i}"), DType::F32) };
            let tensor = format!("{scope}:{}{suffix}", op.name());
            ids.push(self.add_tensor(tensor, shape, dtype, Storage::Slot));
            output_names.push(*name);
        }
        self.nodes.push(Node {
            op: Arc::new(op),
            inputs,
            input_names,
            outputs: ids.clone(),
            output_names,
            scope,
            region: self.region,
        });
        ids
    }

    /// Runs `build` with `name` appended to the scope.
    pub fn scope<T>(&mut self, name: impl Into<String>, build: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.into());
        let out = build(self);
        self.scope.pop();
        out
    }

    /// Runs `build` with [`half`](Self::half) off: a network's head.
    pub fn in_full<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
        let half = std::mem::take(&mut self.half);
        let out = build(self);
        self.half = half;
        out
    }

    /// Builds a region whose inner activations are recomputed in the
    /// backward walk instead of kept (Chen et al. 2016, "Training Deep Nets
    /// with Sublinear Memory Cost"). Regions do not nest.
    pub fn checkpoint<T>(&mut self, build: impl FnOnce(&mut Self) -> T) -> T {
        if self.region.is_some() {
            return build(self);
        }
        self.region = Some(self.regions);
        self.regions += 1;
        let out = build(self);
        self.region = None;
        out
    }

    /// Tells those who read or write `id` something about it. An op that can spare another
    /// one work finds by [`Lower::noted`] what that one has to say; a tensor has one note
    /// of each type.
    pub fn note<T: Any + Send + Sync>(&mut self, id: TensorId, note: T) {
        self.notes.set(id, note);
    }

    /// Records `id` under `name` for inspection.
    pub fn tap(&mut self, name: impl Into<String>, id: TensorId) {
        self.taps.push((name.into(), id));
    }

    /// A tensor's shape.
    pub fn shape(&self, id: TensorId) -> &[usize] {
        &self.tensors[id.index()].shape
    }

    /// A tensor's element type.
    pub fn dtype(&self, id: TensorId) -> DType {
        self.tensors[id.index()].dtype
    }

    /// Where a tensor lives.
    pub fn storage(&self, id: TensorId) -> Storage {
        self.tensors[id.index()].storage
    }

    /// Element type of a result of `channels` channels under [`Graph::half`].
    ///
    /// # Errors
    /// [`Error::Shape`] on behalf of `op` if they cannot be packed.
    pub fn result_dtype(&self, op: &'static str, channels: usize) -> Result<DType> {
        match (self.half, channels.is_multiple_of(4)) {
            (false, _) => Ok(DType::F32),
            (true, true) => Ok(DType::F16),
            (true, false) => Err(Error::shape(
                op,
                format!("{channels} channels cannot be stored as half, they are no multiple of 4"),
            )),
        }
    }

    /// Checks that two operands have the same element type.
    ///
    /// # Errors
    /// [`Error::Shape`] on behalf of `op` naming both.
    pub fn same_dtype(&self, op: &'static str, a: TensorId, b: TensorId) -> Result<DType> {
        let (da, db) = (self.dtype(a), self.dtype(b));
        if da == db {
            return Ok(da);
        }
        let [a, b] = [a, b].map(|id| &self.tensors[id.index()].name);
        Err(Error::shape(op, format!("{a} is {da:?}, {b} is {db:?}: cast one of them")))
    }

    /// A shape of exactly `R` extents.
    ///
    /// # Errors
    /// [`Error::Shape`] on behalf of `op` if the rank differs.
    pub fn dims<const R: usize>(&self, op: &'static str, id: TensorId) -> Result<[usize; R]> {
        let shape = self.shape(id);
        shape.try_into().map_err(|_| {
            Error::shape(
                op,
                format!(
                    "{} has shape {shape:?}, {R} extents are needed",
                    self.tensors[id.index()].name
                ),
            )
        })
    }

    /// Node `index` in a graph of its own: its operands become inputs and
    /// parameters there, of the same shapes and types. To measure one op of a
    /// network. Also returns its main output.
    pub fn isolate(&self, index: usize) -> (Graph, TensorId) {
        let node = &self.nodes[index];
        let mut alone = Graph::new();
        let mut place = HashMap::new();
        for id in &node.inputs {
            let TensorInfo { name, shape, dtype, storage } = self.tensors[id.index()].clone();
            place.entry(*id).or_insert_with(|| match storage {
                Storage::Param(p) => alone.param_as(self.params[p].clone(), dtype),
                _ => alone.input(&name, &shape, dtype),
            });
        }
        let inputs = node.inputs.iter().map(|id| place[id]).collect();
        let outputs: Vec<TensorId> = node
            .outputs
            .iter()
            .map(|id| {
                let TensorInfo { name, shape, dtype, .. } = self.tensors[id.index()].clone();
                alone.add_tensor(name, &shape, dtype, Storage::Slot)
            })
            .collect();
        let y = outputs[0];
        alone.nodes.push(Node { inputs, outputs, region: None, ..node.clone() });
        (alone, y)
    }

    fn scoped(&self, name: &str) -> String {
        self.scope.iter().map(String::as_str).chain([name]).collect::<Vec<_>>().join(".")
    }

    fn add_tensor(
        &mut self,
        name: String,
        shape: &[usize],
        dtype: DType,
        storage: Storage,
    ) -> TensorId {
        self.tensors.push(TensorInfo { name, shape: shape.to_vec(), dtype, storage });
        TensorId(self.tensors.len() as u32 - 1)
    }
}
