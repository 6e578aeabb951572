//! From a graph to its e-graph, and from the chosen nodes back to a graph.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use egg::Id;
use ir::builder::is_commutative;
use ir::graph::{Constant, Def, Update, Value};
use ir::{Graph, TensorType, ValueId};

use super::analysis::{LeafFact, Problem, infer_node};
use super::extract::Choices;
use super::{EGraph, ENode, Facts};

/// A graph in its e-graph.
pub struct Loaded {
    /// The e-graph: every value is a class of its own, but for equal ones.
    pub egraph: EGraph,
    /// For each value of the graph, in order, the term that it is. Not canonical, so that proofs start from the very term.
    pub terms: Vec<Id>,
}

impl Loaded {
    /// The e-graph of a graph; with `proofs`, one that can explain its merges.
    pub fn new(graph: &Graph, proofs: bool) -> Self {
        let mut egraph = EGraph::new(Facts::default());
        if proofs {
            egraph = egraph.with_explanations_enabled();
        }
        let mut terms: Vec<Id> = Vec::with_capacity(graph.values.len());
        for (id, value) in graph.values.iter() {
            let node = match &value.def {
                Def::Const(constant) => ENode::Const(value.ty.clone(), constant.clone()),
                Def::Op { op, inputs } => {
                    let mut children: Vec<Id> = inputs.iter().map(|input| terms[index(*input)]).collect();
                    children.extend(op.attrs().into_iter().map(|attr| egraph.add_uncanonical(ENode::Attr(attr))));
                    ENode::op(op.name(), children).expect("an op has its own number of inputs and attributes")
                }
                Def::Input | Def::Param { .. } | Def::State { .. } => {
                    let is_param = matches!(value.def, Def::Param { .. });
                    egraph.analysis.leaves.insert(id, LeafFact { ty: value.ty.clone(), is_param });
                    ENode::Value(id)
                }
            };
            terms.push(egraph.add_uncanonical(node));
        }
        egraph.rebuild();
        Self { egraph, terms }
    }

    /// The class of a value.
    pub fn class(&self, value: ValueId) -> Id {
        self.egraph.find(self.terms[index(value)])
    }

    /// The classes that must be computed: those of the outputs, then those of the updates.
    pub fn roots(&self, graph: &Graph) -> Vec<Id> {
        let updates = graph.updates.iter().map(|update| update.value);
        graph.outputs.iter().copied().chain(updates).map(|value| self.class(value)).collect()
    }
}

fn index(value: ValueId) -> usize {
    ir::entity::Id::index(value)
}

/// The graph of the chosen nodes. It keeps the source's inputs, outputs, updates, and the name of each value whose class has one.
///
/// # Errors
///
/// If a chosen node is ill-typed, which is a bug.
pub fn store(source: &Graph, loaded: &Loaded, choices: &Choices) -> Result<Graph, Problem> {
    let mut names: BTreeMap<Id, Arc<str>> = BTreeMap::new();
    for (id, value) in source.values.iter() {
        if let Some(name) = &value.name {
            names.entry(loaded.class(id)).or_insert_with(|| name.clone());
        }
    }
    let mut ctx = Ctx {
        source,
        loaded,
        choices,
        names,
        graph: Graph::new(&source.name),
        made: BTreeMap::new(),
        equal: HashMap::new(),
    };
    for &input in &source.inputs {
        let value = ctx.leaf(input);
        ctx.graph.inputs.push(value);
    }
    for &output in &source.outputs {
        let value = ctx.class(loaded.class(output))?;
        ctx.graph.outputs.push(value);
    }
    for update in &source.updates {
        // A state that is only written is no part of what was chosen.
        let (state, value) = (ctx.leaf(update.state), ctx.class(loaded.class(update.value))?);
        ctx.graph.updates.push(Update { state, value });
    }
    Ok(ctx.graph)
}

struct Ctx<'a> {
    source: &'a Graph,
    loaded: &'a Loaded,
    choices: &'a Choices,
    names: BTreeMap<Id, Arc<str>>,
    graph: Graph,
    made: BTreeMap<Id, ValueId>,
    equal: HashMap<(TensorType, Constant), ValueId>,
}

impl Ctx<'_> {
    /// Copies an input, a parameter or a state.
    fn leaf(&mut self, value: ValueId) -> ValueId {
        let class = self.loaded.class(value);
        if let Some(&made) = self.made.get(&class) {
            return made;
        }
        let made = self.graph.values.push(self.source.values[value].clone());
        self.made.insert(class, made);
        made
    }

    /// Computes a class, operands first.
    fn class(&mut self, class: Id) -> Result<ValueId, Problem> {
        if let Some(&made) = self.made.get(&class) {
            return Ok(made);
        }
        let node = &self.choices.nodes[&class];
        let made = match node {
            ENode::Value(value) => return Ok(self.leaf(*value)),
            ENode::Const(ty, constant) => {
                let key = (ty.clone(), constant.clone());
                match self.equal.get(&key) {
                    Some(&made) => made,
                    None => {
                        let made = self.push(class, ty.clone(), Def::Const(constant.clone()));
                        self.equal.insert(key, made);
                        made
                    }
                }
            }
            ENode::Op { .. } => {
                let egraph = &self.loaded.egraph;
                let (op, _, ty) = infer_node(egraph, node)?;
                let (_, inputs, _) = node.parts().expect("an op has parts");
                let mut operands = Vec::with_capacity(inputs.len());
                for &input in inputs {
                    operands.push(self.class(egraph.find(input))?);
                }
                if is_commutative(&op) {
                    operands.sort_by_key(|&operand| (self.rank(operand), operand));
                }
                self.push(class, ty, Def::Op { op, inputs: operands.into_iter().collect() })
            }
            ENode::Attr(_) => unreachable!("a tensor's class has no attributes"),
        };
        self.made.insert(class, made);
        Ok(made)
    }

    fn push(&mut self, class: Id, ty: TensorType, def: Def) -> ValueId {
        self.graph.values.push(Value { name: self.names.get(&class).cloned(), ty, def })
    }

    /// The canonical order of operands, as [`ir::Builder`] has it.
    fn rank(&self, value: ValueId) -> u8 {
        match self.graph.values[value].def {
            Def::Op { .. } | Def::Input | Def::State { .. } => 0,
            Def::Param { .. } => 1,
            Def::Const(_) => 2,
        }
    }
}
