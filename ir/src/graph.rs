//! Programs and their graphs: append-only, in SSA form, with named inputs, parameters, states and outputs.

use std::collections::HashMap;
use std::sync::Arc;

use petgraph::graph::{DiGraph, NodeIndex};
use smallvec::SmallVec;

use crate::dtype::DType;
use crate::entity::{Id, IdVec, id};
use crate::op::{Attr, Op, Real};
use crate::shape::{Dim, Shape, Symbol, TensorType};

id!(
    /// A value of one graph: an input, a parameter, a state, a constant, or the result of an op.
    ValueId,
    "v"
);

/// A whole program: the graphs of its repeated bodies, and last the entry, which uses them.
#[derive(Clone, Debug, PartialEq)]
pub struct Program {
    /// What it is called; no meaning.
    pub name: String,
    /// The symbols that stand in types.
    pub symbols: Vec<SymbolDecl>,
    /// Bodies before the graphs that repeat them; the last is the entry.
    pub graphs: Vec<Graph>,
}

/// A symbolic dimension and its bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SymbolDecl {
    /// The symbol.
    pub symbol: Symbol,
    /// The largest value it may take; the smallest is 0.
    pub max: u64,
}

/// One graph. Operands stand before their users, so the order of ids is an order of execution.
#[derive(Clone, Debug, PartialEq)]
pub struct Graph {
    /// Unique in the program.
    pub name: String,
    /// All values.
    pub values: IdVec<ValueId, Value>,
    /// The inputs, in order.
    pub inputs: Vec<ValueId>,
    /// The outputs, in order.
    pub outputs: Vec<ValueId>,
    /// What each state becomes when the graph has run.
    pub updates: Vec<Update>,
}

/// A state's value after the run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Update {
    /// A value defined as [`Def::State`].
    pub state: ValueId,
    /// Its new value, of the same type.
    pub value: ValueId,
}

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub struct Value {
    /// A name for people; it travels to plans and traces.
    pub name: Option<Arc<str>>,
    /// Its type.
    pub ty: TensorType,
    /// Where it comes from.
    pub def: Def,
}

/// Where a value comes from.
#[derive(Clone, Debug, PartialEq)]
pub enum Def {
    /// Given by the caller at each run.
    Input,
    /// A weight: constant over all runs. `{}` in the key of a repeated body stands for the round.
    Param {
        /// The tensor's name in a checkpoint of our own naming.
        key: Arc<str>,
    },
    /// Kept from run to run.
    State {
        /// A name unique in the program, with `{}` as in [`Def::Param`].
        key: Arc<str>,
    },
    /// Known here and now.
    Const(Constant),
    /// The result of an op.
    Op {
        /// The op.
        op: Op,
        /// Its inputs.
        inputs: SmallVec<[ValueId; 4]>,
    },
}

/// The elements of a constant, in row-major order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Constant(pub Arc<[Real]>);

impl Constant {
    /// A constant of these elements.
    pub fn new(values: impl IntoIterator<Item = f64>) -> Self {
        Self(values.into_iter().map(Real::new).collect())
    }

    /// The elements.
    pub fn values(&self) -> impl ExactSizeIterator<Item = f64> + '_ {
        self.0.iter().map(|value| value.get())
    }
}

impl Graph {
    /// A graph without values.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            values: IdVec::default(),
            inputs: Vec::new(),
            outputs: Vec::new(),
            updates: Vec::new(),
        }
    }

    /// The type of a value.
    pub fn ty(&self, value: ValueId) -> &TensorType {
        &self.values[value].ty
    }

    /// The operands of a value; none unless it is the result of an op.
    pub fn operands(&self, value: ValueId) -> &[ValueId] {
        match &self.values[value].def {
            Def::Op { inputs, .. } => inputs,
            _ => &[],
        }
    }

    /// The op whose result a value is.
    pub fn op(&self, value: ValueId) -> Option<&Op> {
        match &self.values[value].def {
            Def::Op { op, .. } => Some(op),
            _ => None,
        }
    }

    /// How to call a value in a dump: its name, or else its id.
    pub fn label(&self, value: ValueId) -> String {
        match &self.values[value].name {
            Some(name) => name.to_string(),
            None => value.to_string(),
        }
    }

    /// What a value is, for people: its name; for one without, such as a merged product, the names of the parts that are cut from it.
    pub fn describe(&self, value: ValueId) -> String {
        let is_part = |user: &ValueId| {
            let is_view = matches!(self.op(*user), Some(Op::Slice(_) | Op::Reshape(_) | Op::Permute(_) | Op::Cast(_)));
            is_view && self.operands(*user).first() == Some(&value)
        };
        let parts: Vec<&str> =
            self.values.ids().filter(is_part).filter_map(|user| self.values[user].name.as_deref()).collect();
        match (&self.values[value].name, parts.is_empty()) {
            (None, false) => parts.join("+"),
            _ => self.label(value),
        }
    }

    /// The values that some output or update needs, as a flag for each.
    pub fn live(&self) -> Vec<bool> {
        let mut live = vec![false; self.values.len()];
        for root in self.outputs.iter().copied().chain(self.updates.iter().map(|update| update.value)) {
            live[root.index()] = true;
        }
        for value in self.values.ids().rev() {
            if live[value.index()] {
                for &operand in self.operands(value) {
                    live[operand.index()] = true;
                }
            }
        }
        live
    }

    /// The graph as petgraph sees it: an edge from each operand to its user. Node `i` is value `i`.
    pub fn to_petgraph(&self) -> DiGraph<ValueId, ()> {
        let mut digraph = DiGraph::with_capacity(self.values.len(), self.values.len() * 2);
        for value in self.values.ids() {
            digraph.add_node(value);
        }
        for value in self.values.ids() {
            for operand in self.operands(value) {
                digraph.add_edge(NodeIndex::new(operand.index()), NodeIndex::new(value.index()), ());
            }
        }
        digraph
    }

    /// A copy without the values that nothing needs, renumbered; inputs always stay.
    pub fn compact(&self) -> Graph {
        self.with_values(|id, is_live| is_live || matches!(self.values[id].def, Def::Input))
    }

    /// As [`Graph::compact`], without inputs that nothing needs either.
    pub fn prune(&self) -> Graph {
        self.with_values(|_, is_live| is_live)
    }

    fn with_values(&self, stays: impl Fn(ValueId, bool) -> bool) -> Graph {
        let live = self.live();
        let mut graph = Graph::new(&self.name);
        let mut new_ids: HashMap<ValueId, ValueId> = HashMap::new();
        for (id, value) in self.values.iter() {
            if !stays(id, live[id.index()]) {
                continue;
            }
            let mut value = value.clone();
            if let Def::Op { inputs, .. } = &mut value.def {
                for input in inputs {
                    *input = new_ids[input];
                }
            }
            new_ids.insert(id, graph.values.push(value));
        }
        let renamed = |ids: &[ValueId]| ids.iter().filter_map(|id| new_ids.get(id).copied()).collect();
        graph.inputs = renamed(&self.inputs);
        graph.outputs = renamed(&self.outputs);
        graph.updates = self
            .updates
            .iter()
            .filter_map(|update| {
                Some(Update { state: *new_ids.get(&update.state)?, value: *new_ids.get(&update.value)? })
            })
            .collect();
        graph
    }
}

impl Program {
    /// The graph that a run starts with.
    ///
    /// # Panics
    ///
    /// If the program has no graphs, which the verifier refuses.
    pub fn entry(&self) -> &Graph {
        self.graphs.last().expect("a verified program has an entry")
    }

    /// The graph of this name.
    pub fn graph(&self, name: &str) -> Option<&Graph> {
        self.graphs.iter().find(|graph| graph.name == name)
    }

    /// The bound of a symbol, if it is declared.
    pub fn max_of(&self, symbol: &Symbol) -> Option<u64> {
        self.symbols.iter().find(|decl| decl.symbol == *symbol).map(|decl| decl.max)
    }

    /// The program for calls of one size: each of these symbols is that number, and no symbol any more.
    pub fn bind(&self, sizes: &[(Symbol, u64)]) -> Program {
        let bound = |shape: &Shape| -> Shape {
            let dims = shape.dims().iter().map(|dim| match dim {
                Dim::Sym(symbol) => {
                    let size = sizes.iter().find(|(known, _)| known == symbol);
                    size.map_or_else(|| dim.clone(), |(_, size)| Dim::Const(*size))
                }
                Dim::Const(_) => dim.clone(),
            });
            dims.collect()
        };
        let mut program = self.clone();
        program.symbols.retain(|decl| sizes.iter().all(|(symbol, _)| *symbol != decl.symbol));
        for value in program.graphs.iter_mut().flat_map(|graph| graph.values.values_mut()) {
            value.ty.shape = bound(&value.ty.shape);
            if let Def::Op { op, .. } = &mut value.def {
                let attrs = op.attrs().into_iter().map(|attr| match attr {
                    Attr::Shape(shape) => Attr::Shape(bound(&shape)),
                    attr => attr,
                });
                let attrs: SmallVec<[Attr; 4]> = attrs.collect();
                *op = Op::from_parts(op.name(), &attrs).expect("attributes keep their number and kinds");
            }
        }
        program
    }

    /// How often the graph of this name runs in one run of the program: 1 for the entry, the product of counts for a body.
    pub fn rounds(&self, name: &str) -> u64 {
        if self.entry().name == name {
            return 1;
        }
        let repeats = self.graphs.iter().flat_map(|graph| {
            graph.values.values().filter_map(move |value| match &value.def {
                Def::Op { op, .. } => op
                    .body()
                    .filter(|(body, _)| *body == name)
                    .map(|(_, count)| u64::from(count) * self.rounds(&graph.name)),
                _ => None,
            })
        });
        repeats.sum()
    }
}

/// The parameters and states of a graph, with their types.
impl Graph {
    /// Values defined as parameters.
    pub fn params(&self) -> impl Iterator<Item = (ValueId, &Arc<str>)> {
        self.values.iter().filter_map(|(id, value)| match &value.def {
            Def::Param { key } => Some((id, key)),
            _ => None,
        })
    }

    /// Values defined as states.
    pub fn states(&self) -> impl Iterator<Item = (ValueId, &Arc<str>)> {
        self.values.iter().filter_map(|(id, value)| match &value.def {
            Def::State { key } => Some((id, key)),
            _ => None,
        })
    }
}

/// Whether every element of a constant of this type can be stored exactly.
pub(crate) fn constant_fits(ty: &TensorType, constant: &Constant) -> bool {
    let exact = |value: f64| match ty.dtype {
        DType::F32 => !(f64::from(value as f32) != value && value.is_finite()),
        DType::F16 => half::f16::from_f64(value).to_f64() == value || !value.is_finite(),
        DType::BF16 => half::bf16::from_f64(value).to_f64() == value || !value.is_finite(),
        DType::I8 => f64::from(value as i8) == value,
        DType::I32 => f64::from(value as i32) == value,
        DType::T2 => [-1.0, 0.0, 1.0].contains(&value),
        DType::Q8 | DType::Q4 => false,
    };
    ty.shape.elements() == Some(constant.0.len() as u64) && constant.values().all(exact)
}
