//! Lowering: from nodes to dispatches, forward and backward.

use super::choice::Chooser;
use super::lower::Lower;
use super::nodes::{Graph, Node};
use super::tensor::{Storage, TensorId};
use crate::Result;
use crate::caps::Caps;
use std::collections::{HashMap, HashSet};

impl Lower {
    /// Starts with the graph's own tensors. Variants are taken as `caps`
    /// force them or are tuned.
    pub fn new(graph: &Graph, caps: &Caps) -> Self {
        Lower {
            caps: caps.clone(),
            tensors: graph.tensors.clone(),
            dispatches: Vec::new(),
            chooser: Chooser::of(caps),
            grads: HashMap::new(),
            recomputed: HashMap::new(),
            requires_grad: HashSet::new(),
            accumulate_params: false,
            freeze_params: false,
            notes: graph.notes.clone(),
            prepared_room: 0,
            label: String::new(),
            node_index: 0,
        }
    }

    /// Lowers every node of the graph that it was made of forward.
    pub fn forward(&mut self, graph: &Graph) -> Result<()> {
        for (i, node) in graph.nodes.iter().enumerate() {
            self.forward_node(i, node)?;
        }
        Ok(())
    }

    fn forward_node(&mut self, index: usize, node: &Node) -> Result<()> {
        self.label = format!("{}:{}", node.scope, node.op.name());
        self.node_index = index as u32;
        node.op.forward(self, node)
    }

    /// Walks the nodes of the graph that it was made of backwards. `seeds` give d loss / d tensor for the
    /// outputs; gradients are formed for `inputs` and, unless frozen, all parameters.
    pub fn backward(
        &mut self,
        graph: &Graph,
        seeds: &[(TensorId, TensorId)],
        inputs: &[TensorId],
    ) -> Result<()> {
        self.requires_grad = inputs.iter().copied().collect();
        for (i, t) in graph.tensors.iter().enumerate() {
            if matches!(t.storage, Storage::Param(_)) && !self.freeze_params {
                self.requires_grad.insert(TensorId(i as u32));
            }
        }
        for node in &graph.nodes {
            if node.inputs.iter().any(|i| self.requires_grad.contains(i)) {
                self.requires_grad.extend(node.outputs.iter().copied());
            }
        }
        self.grads.extend(seeds.iter().copied());
        let mut current = None;
        for (i, node) in graph.nodes.iter().enumerate().rev() {
            if node.region.is_some() && node.region != current {
                self.recompute(graph, node.region)?;
            }
            current = node.region;
            let wanted = node.inputs.iter().any(|i| self.requires_grad.contains(i));
            let reached = node.outputs.iter().any(|o| self.grads.contains_key(o));
            if wanted && reached {
                self.label = format!("{}:{}.backward", node.scope, node.op.name());
                self.node_index = i as u32;
                node.op.backward(self, node)?;
            }
        }
        Ok(())
    }

    /// Lowers a region's nodes once more onto fresh tensors. The values that
    /// other parts of the graph read keep their first copy, so only what is
    /// inside the region is held twice in time.
    fn recompute(&mut self, graph: &Graph, region: Option<u32>) -> Result<()> {
        self.recomputed.clear();
        let inside = |n: &&Node| n.region == region;
        for node in graph.nodes.iter().filter(inside) {
            for id in &node.outputs {
                let mut info = self.tensors[id.index()].clone();
                info.storage = Storage::Slot;
                let fresh = self.push_tensor(info);
                self.recomputed.insert(*id, fresh);
            }
        }
        for (i, node) in graph.nodes.iter().enumerate().filter(|(_, n)| inside(n)) {
            self.forward_node(i, node)?;
        }
        Ok(())
    }
}
