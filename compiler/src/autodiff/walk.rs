//! The walk through one graph: a copy of it, and behind that the gradients of its values, last to first.

use std::collections::{BTreeSet, HashMap};

use ir::entity::Id;
use ir::graph::{Def, Graph};
use ir::op::control::{Repeat, Scan};
use ir::op::elementwise::Add;
use ir::op::{Op, OpDef};
use ir::vjp::{Gradient, Zero, filled};
use ir::{BuildError, Builder, DType, TensorType, ValueId};

use super::AutodiffError;

/// What of a graph leads to wanted gradients.
pub(super) struct Source<'a> {
    /// Parameters, by key.
    pub(super) wanted: &'a dyn Fn(&str) -> bool,
    /// Inputs, by position.
    pub(super) varying: &'a dyn Fn(usize) -> bool,
    /// Bodies that hold wanted parameters, by name.
    pub(super) body_varies: &'a dyn Fn(&str) -> bool,
}

/// A graph in the making.
pub(super) struct Walk {
    pub(super) b: Builder,
    /// The copy of each value of the graph that is walked through.
    pub(super) map: Vec<ValueId>,
    /// For each value of the copy, whether it follows from something whose gradient is wanted.
    varying: Vec<bool>,
    gradients: HashMap<ValueId, ValueId>,
    /// Why gradients ended, wherever they did.
    pub(super) zeros: BTreeSet<Zero>,
}

impl Walk {
    pub(super) fn new(name: &str) -> Self {
        Self {
            b: Builder::new(name),
            map: Vec::new(),
            varying: Vec::new(),
            gradients: HashMap::new(),
            zeros: BTreeSet::new(),
        }
    }

    /// Copies a graph, without its states, and notes what varies with what is wanted. Repeats that do become scans.
    pub(super) fn copy(&mut self, graph: &Graph, source: Source<'_>) -> Result<(), AutodiffError> {
        let mut n_inputs = 0;
        for value in graph.values.values() {
            let name = value.name.as_deref();
            let (copy, varies) = match &value.def {
                Def::Input => {
                    n_inputs += 1;
                    let varies = (source.varying)(n_inputs - 1);
                    (self.b.input(name.unwrap_or("input"), value.ty.clone()), varies)
                }
                Def::Param { key } => (self.b.param(name.unwrap_or(key), key, value.ty.clone()), (source.wanted)(key)),
                Def::State { key } if value.ty.dtype != DType::F32 => {
                    return Err(AutodiffError::State { key: key.to_string(), ty: value.ty.clone() });
                }
                Def::State { .. } => (filled(&mut self.b, 0.0, &value.ty.shape)?, false),
                Def::Const(constant) => (self.b.constant(name, value.ty.clone(), constant.values()), false),
                Def::Op { op, inputs } => {
                    let operands: Vec<ValueId> = inputs.iter().map(|input| self.map[input.index()]).collect();
                    let varies = operands.iter().any(|&operand| self.varies(operand))
                        || op.body().is_some_and(|(body, _)| (source.body_varies)(body));
                    let op = match op {
                        Op::Repeat(Repeat { body, count }) if varies => {
                            Scan { body: body.clone(), count: *count, stacked: 0, reverse: 0 }.into()
                        }
                        op => op.clone(),
                    };
                    let copy = match name {
                        Some(name) => self.b.named(name, op, &operands)?,
                        None => self.b.op(op, &operands)?,
                    };
                    (copy, varies)
                }
            };
            self.map.push(copy);
            self.varying.resize(self.b.graph().values.len(), false);
            self.varying[copy.index()] |= varies;
        }
        Ok(())
    }

    /// Whether a value of the copy follows from something whose gradient is wanted.
    pub(super) fn varies(&self, value: ValueId) -> bool {
        self.varying.get(value.index()).is_some_and(|varies| *varies)
    }

    /// The gradient of a value of the copy, if anything flowed back to it.
    pub(super) fn gradient(&self, value: ValueId) -> Option<ValueId> {
        self.gradients.get(&value).copied()
    }

    /// Adds to the gradient of a value.
    pub(super) fn add(&mut self, value: ValueId, gradient: ValueId) -> Result<(), BuildError> {
        let sum = match self.gradient(value) {
            Some(other) => self.b.op(Add {}, &[other, gradient])?,
            None => gradient,
        };
        self.gradients.insert(value, sum);
        Ok(())
    }

    pub(super) fn add_if_varying(&mut self, value: ValueId, gradient: ValueId) -> Result<(), BuildError> {
        if self.varies(value) { self.add(value, gradient) } else { Ok(()) }
    }

    /// Walks back through the copy. `scan` gives the gradients of what scans read.
    pub(super) fn reverse(
        &mut self,
        scan: &mut dyn FnMut(&mut Walk, ValueId) -> Result<(), AutodiffError>,
    ) -> Result<(), AutodiffError> {
        for index in (0..self.varying.len()).rev() {
            let value = ValueId::new(index);
            let Some(dy) = self.gradient(value).filter(|_| self.varies(value)) else { continue };
            let Def::Op { op, inputs } = self.b.graph().values[value].def.clone() else { continue };
            if matches!(op, Op::Scan(_)) {
                scan(self, value)?;
                continue;
            }
            let gradients = op.vjp(&mut self.b, &inputs, value, dy);
            let label = || self.b.graph().label(value);
            let gradients = gradients.map_err(|source| AutodiffError::Vjp { value: label(), source })?;
            for (&input, gradient) in inputs.iter().zip(gradients) {
                match gradient {
                    Gradient::Of(gradient) => self.add_if_varying(input, gradient)?,
                    Gradient::Zero(zero) if self.varies(input) => {
                        self.zeros.insert(zero);
                    }
                    Gradient::Zero(_) => {}
                }
            }
        }
        Ok(())
    }

    /// The wanted parameters that something flowed back to: key, type and gradient.
    pub(super) fn params(
        &mut self,
        wanted: &dyn Fn(&str) -> bool,
    ) -> Result<Vec<(String, TensorType, ValueId)>, BuildError> {
        let params: Vec<(ValueId, String)> =
            self.b.graph().params().filter(|(_, key)| wanted(key)).map(|(id, key)| (id, key.to_string())).collect();
        let mut found: Vec<(String, TensorType, ValueId)> = Vec::new();
        for (id, key) in params {
            let Some(gradient) = self.gradient(id) else { continue };
            match found.iter().position(|(known, _, _)| *known == key) {
                // One tensor may stand in a graph as several values.
                Some(at) => found[at].2 = self.b.op(Add {}, &[found[at].2, gradient])?,
                None => found.push((key, self.b.ty(id).clone(), gradient)),
            }
        }
        Ok(found)
    }
}
