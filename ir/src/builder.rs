//! The one way to make values: infers types, brings operands into canonical order, and never makes the same value twice.

use std::collections::HashMap;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::entity::Id;
use crate::graph::{Constant, Def, Graph, Update, Value, ValueId};
use crate::op::{Attr, Op, OpDef, TypeError, elementwise};
use crate::shape::TensorType;

/// An op was given inputs that do not fit it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{op}`{} of ({types}): {source}", name.as_ref().map(|name| format!(" for `{name}`")).unwrap_or_default())]
pub struct BuildError {
    /// The op.
    pub op: &'static str,
    /// The name that its result was to have.
    pub name: Option<String>,
    /// The types of the inputs.
    pub types: String,
    /// What does not fit.
    pub source: Box<TypeError>,
}

/// Builds one graph.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    made: HashMap<OpKey, ValueId>,
}

/// What makes two results of ops the same value: name, attributes and operands.
type OpKey = (&'static str, SmallVec<[Attr; 4]>, SmallVec<[ValueId; 4]>);

impl Builder {
    /// A builder of an empty graph.
    pub fn new(name: &str) -> Self {
        Self { graph: Graph::new(name), made: HashMap::new() }
    }

    /// An input, given by the caller at each run.
    pub fn input(&mut self, name: &str, ty: TensorType) -> ValueId {
        let value = self.push(Some(name), ty, Def::Input);
        self.graph.inputs.push(value);
        value
    }

    /// A parameter: the tensor called `key` in a checkpoint.
    pub fn param(&mut self, name: &str, key: &str, ty: TensorType) -> ValueId {
        self.push(Some(name), ty, Def::Param { key: Arc::from(key) })
    }

    /// A state, kept from run to run under `key`.
    pub fn state(&mut self, name: &str, key: &str, ty: TensorType) -> ValueId {
        self.push(Some(name), ty, Def::State { key: Arc::from(key) })
    }

    /// A constant.
    pub fn constant(&mut self, name: Option<&str>, ty: TensorType, values: impl IntoIterator<Item = f64>) -> ValueId {
        self.push(name, ty, Def::Const(Constant::new(values)))
    }

    /// The result of an op; the value that already has it, if there is one.
    ///
    /// # Errors
    ///
    /// If the inputs do not fit the op.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, BuildError> {
        self.named_op(None, op, inputs)
    }

    /// As [`Builder::op`], with a name for the result.
    ///
    /// # Errors
    ///
    /// If the inputs do not fit the op.
    pub fn named(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, BuildError> {
        self.named_op(Some(name), op, inputs)
    }

    /// The type of a value made before.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        self.graph.ty(value)
    }

    /// The graph so far.
    pub fn graph(&self) -> &Graph {
        &self.graph
    }

    /// Says what a state becomes.
    pub fn update(&mut self, state: ValueId, value: ValueId) {
        self.graph.updates.push(Update { state, value });
    }

    /// The graph, with these outputs.
    pub fn finish(mut self, outputs: &[ValueId]) -> Graph {
        self.graph.outputs = outputs.to_vec();
        self.graph
    }

    fn named_op(&mut self, name: Option<&str>, op: impl Into<Op>, inputs: &[ValueId]) -> Result<ValueId, BuildError> {
        let op = op.into();
        let mut inputs: SmallVec<[ValueId; 4]> = inputs.into();
        if is_commutative(&op) {
            inputs.sort_by_key(|&input| (self.operand_rank(input), input));
        }
        let key = (op.name(), op.attrs(), inputs.clone());
        if let Some(&value) = self.made.get(&key) {
            return Ok(value);
        }
        let ty = self.infer(name, &op, &inputs)?;
        let value = self.push(name, ty, Def::Op { op, inputs });
        self.made.insert(key, value);
        Ok(value)
    }

    fn infer(&self, name: Option<&str>, op: &Op, inputs: &[ValueId]) -> Result<TensorType, BuildError> {
        let types: SmallVec<[&TensorType; 4]> = inputs.iter().map(|&input| self.graph.ty(input)).collect();
        op.infer(&types).map_err(|source| BuildError {
            op: op.name(),
            name: name.map(str::to_owned),
            types: types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "),
            source: Box::new(source),
        })
    }

    /// Computed values stand before parameters, and those before constants, so that a rule needs one form only.
    fn operand_rank(&self, value: ValueId) -> u8 {
        match self.graph.values[value].def {
            Def::Op { .. } | Def::Input | Def::State { .. } => 0,
            Def::Param { .. } => 1,
            Def::Const(_) => 2,
        }
    }

    fn push(&mut self, name: Option<&str>, ty: TensorType, def: Def) -> ValueId {
        debug_assert!(self.graph.operands_are_earlier(&def), "operands come from this builder");
        self.graph.values.push(Value { name: name.map(Arc::from), ty, def })
    }
}

impl Graph {
    fn operands_are_earlier(&self, def: &Def) -> bool {
        match def {
            Def::Op { inputs, .. } => inputs.iter().all(|input| input.index() < self.values.len()),
            _ => true,
        }
    }
}

/// Whether the order of an op's two inputs does not matter, bit for bit. That of minimum and maximum does: it picks one zero of two.
pub fn is_commutative(op: &Op) -> bool {
    use elementwise::{Add, Mul};
    matches!(op, Op::Add(Add {}) | Op::Mul(Mul {}))
}
