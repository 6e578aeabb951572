//! A graph made again, value by value, with some of them replaced.

use std::collections::HashMap;

use ir::graph::{Def, Graph};
use ir::{BuildError, Builder, ValueId};

/// A graph that is being made again.
pub(super) struct Remake {
    pub(super) b: Builder,
    map: HashMap<ValueId, ValueId>,
}

impl Remake {
    /// Copies a graph without its outputs and updates. What `replace` gives stands in the place of a value; for the others there is a copy.
    ///
    /// # Errors
    ///
    /// Those of `replace`, and if an op does not fit what stands in the place of its operands.
    pub(super) fn new<E: From<BuildError>>(
        graph: &Graph,
        mut replace: impl FnMut(&mut Self, ValueId) -> Result<Option<ValueId>, E>,
    ) -> Result<Self, E> {
        let mut remake = Self { b: Builder::new(&graph.name), map: HashMap::new() };
        for (id, value) in graph.values.iter() {
            let copy = match replace(&mut remake, id)? {
                Some(other) => other,
                None => remake.copy(graph, id)?,
            };
            remake.map.insert(id, copy);
            debug_assert_eq!(remake.b.ty(copy), &value.ty, "what stands in a value's place has its type");
        }
        Ok(remake)
    }

    fn copy(&mut self, graph: &Graph, id: ValueId) -> Result<ValueId, BuildError> {
        let value = &graph.values[id];
        let (name, ty, b) = (value.name.as_deref(), value.ty.clone(), &mut self.b);
        Ok(match &value.def {
            Def::Input => b.input(name.unwrap_or("input"), ty),
            Def::Param { key } => b.param(name.unwrap_or(key), key, ty),
            Def::State { key } => b.state(name.unwrap_or(key), key, ty),
            Def::Const(constant) => b.constant(name, ty, constant.values()),
            Def::Op { op, inputs } => {
                let operands: Vec<ValueId> = inputs.iter().map(|input| self.map[input]).collect();
                match name {
                    Some(name) => b.named(name, op.clone(), &operands)?,
                    None => b.op(op.clone(), &operands)?,
                }
            }
        })
    }

    /// What stands in the place of a value.
    pub(super) fn of(&self, value: ValueId) -> ValueId {
        self.map[&value]
    }

    /// The graph with the updates and outputs of the one that it was made of, and all its inputs.
    pub(super) fn finish(mut self, graph: &Graph) -> Graph {
        for update in &graph.updates {
            self.b.update(self.map[&update.state], self.map[&update.value]);
        }
        let outputs: Vec<ValueId> = graph.outputs.iter().map(|output| self.map[output]).collect();
        self.b.finish(&outputs).compact()
    }
}
