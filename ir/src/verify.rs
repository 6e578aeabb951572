//! All structural and type invariants of a program; every error at once, and proof of their absence as a type.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::ops::Deref;

use smallvec::SmallVec;

use crate::entity::Id;
use crate::graph::{Def, Graph, Program, ValueId, constant_fits};
use crate::op::control::{Repeat, Scan, Stacked};
use crate::op::{Op, OpDef, TypeError};
use crate::shape::{Dim, MAX_ELEMENTS, MAX_RANK, Symbol, TensorType};

/// Something that passed the verifier. Only [`verify`] makes one, and it cannot be changed, only taken apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// Gives the content back, to be changed and verified anew.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;
    fn deref(&self) -> &T {
        &self.0
    }
}

/// One broken invariant, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyError {
    /// The graph, unless the program as a whole is meant.
    pub graph: Option<String>,
    /// The value, unless the graph as a whole is meant, and how it is called.
    pub value: Option<(ValueId, String)>,
    /// What is wrong.
    pub cause: Cause,
}

/// What can be wrong with a program.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Cause {
    /// There is nothing to run.
    #[error("the program has no graphs")]
    Empty,
    /// Two graphs have one name.
    #[error("another graph has this name")]
    DuplicateGraph,
    /// A symbol is declared twice.
    #[error("symbol `{0}` is declared twice")]
    DuplicateSymbol(Symbol),
    /// A type uses a symbol that is not declared.
    #[error("symbol `{0}` is not declared")]
    UnknownSymbol(Symbol),
    /// A type with more than [`MAX_RANK`] dimensions, or with [`MAX_ELEMENTS`] elements or more.
    #[error("{0} is too large: a type has at most {MAX_RANK} dimensions and fewer than 2^48 elements")]
    TooLarge(TensorType),
    /// No input of the entry gives this symbol a value.
    #[error("no input of the entry has the symbol `{0}`, so nothing gives it a value")]
    UnboundSymbol(Symbol),
    /// An operand is not a value that stands before its user.
    #[error("operand {0} does not stand before its user")]
    Order(ValueId),
    /// An id is of no value.
    #[error("there is no value {0}")]
    NoValue(ValueId),
    /// The inputs do not fit the op.
    #[error("{op} {source}")]
    Type {
        /// The op's name.
        op: &'static str,
        /// Why not.
        source: TypeError,
    },
    /// The declared type is not the one that the op gives.
    #[error("the type is declared as {declared}, but `{op}` gives {inferred}")]
    WrongType {
        /// The op's name.
        op: &'static str,
        /// What the graph says.
        declared: TensorType,
        /// What the op says.
        inferred: TensorType,
    },
    /// The list of inputs and the values defined as inputs differ.
    #[error("the inputs listed are not the values defined as inputs, in order")]
    Inputs,
    /// A graph without outputs.
    #[error("the graph has no outputs")]
    NoOutputs,
    /// A constant has another number of elements than its type, or one that the type cannot hold.
    #[error("the constant does not fit its type {0}")]
    Constant(TensorType),
    /// An update's target is not a state.
    #[error("an update's target must be a state")]
    UpdateTarget,
    /// A state is updated twice.
    #[error("the state is updated twice")]
    DoubleUpdate,
    /// A state and its new value differ in type.
    #[error("the state is {state}, its update {value}")]
    UpdateType {
        /// The state's type.
        state: TensorType,
        /// The new value's type.
        value: TensorType,
    },
    /// Two parameters or states have one key but different types.
    #[error("`{key}` is {first} elsewhere")]
    KeyType {
        /// The key.
        key: String,
        /// Its type where it was met first.
        first: TensorType,
    },
    /// A state stands twice in a graph, or in two and is updated.
    #[error("another state has the key `{0}`")]
    DuplicateState(String),
    /// `{}` in a key outside a repeated body, or none in a state of a repeated body.
    #[error("key `{0}`: `{{}}` must stand in the states of repeated bodies, and nowhere outside repeated bodies")]
    Round(String),
    /// A repeat's body is not a graph that stands before.
    #[error("no graph `{0}` stands before this one")]
    NoBody(String),
    /// A body that itself repeats.
    #[error("`{0}` is itself a body: repeats do not nest")]
    NestedRepeat(String),
    /// A body used by two repeats, whose rounds could not be told apart.
    #[error("`{0}` is the body of another repeat already")]
    SharedBody(String),
    /// A body's inputs differ from the repeat's operands, or its output from the carried value.
    #[error("the body `{body}` is ({expected}), but the repeat gives ({found})")]
    BodySignature {
        /// The body.
        body: String,
        /// Its inputs and output.
        expected: String,
        /// What the repeat has.
        found: String,
    },
    /// A stacked value of something that is no scan.
    #[error("only a `scan` leaves stacked values")]
    NoScan,
    /// A stacked value that is not what the rounds' parts make together.
    #[error("output {output} of `{body}` stacks to {expected}, not to {found}")]
    StackedType {
        /// The scan's body.
        body: String,
        /// Which output.
        output: u32,
        /// What it stacks to.
        expected: String,
        /// What the value says.
        found: TensorType,
    },
}

/// All broken invariants of a program, in its order. Never empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyErrors(pub Vec<VerifyError>);

impl fmt::Display for VerifyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(graph) = &self.graph {
            write!(f, "@{graph}")?;
            if let Some((_, label)) = &self.value {
                write!(f, " {label}")?;
            }
            f.write_str(": ")?;
        }
        write!(f, "{}", self.cause)
    }
}

impl fmt::Display for VerifyErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{error}")?;
        }
        Ok(())
    }
}

impl std::error::Error for VerifyErrors {}

/// Checks every invariant.
///
/// # Errors
///
/// Every broken one, in the order of the program.
pub fn verify(program: Program) -> Result<Verified<Program>, VerifyErrors> {
    let errors = check(&program);
    if errors.is_empty() { Ok(Verified(program)) } else { Err(VerifyErrors(errors)) }
}

/// Every broken invariant; empty if there is none.
pub fn check(program: &Program) -> Vec<VerifyError> {
    let mut ctx = Ctx { program, errors: Vec::new(), keys: HashMap::new(), states: HashMap::new() };
    ctx.program();
    ctx.errors
}

struct Ctx<'a> {
    program: &'a Program,
    errors: Vec<VerifyError>,
    keys: HashMap<&'a str, &'a TensorType>,
    /// The states met, each with the last graph that has it.
    states: HashMap<&'a str, &'a str>,
}

impl<'a> Ctx<'a> {
    fn report(&mut self, graph: &Graph, value: Option<ValueId>, cause: Cause) {
        let label = |value: ValueId| graph.values.get(value).map_or_else(|| value.to_string(), |_| graph.label(value));
        self.errors.push(VerifyError {
            graph: Some(graph.name.clone()),
            value: value.map(|value| (value, label(value))),
            cause,
        });
    }

    fn program(&mut self) {
        let program = self.program;
        let mut symbols = HashSet::new();
        for decl in &program.symbols {
            if !symbols.insert(&decl.symbol) {
                let cause = Cause::DuplicateSymbol(decl.symbol.clone());
                self.errors.push(VerifyError { graph: None, value: None, cause });
            }
        }
        let Some(entry) = program.graphs.last() else {
            self.errors.push(VerifyError { graph: None, value: None, cause: Cause::Empty });
            return;
        };
        let mut names = HashSet::new();
        let mut bodies = HashSet::new();
        for (position, graph) in program.graphs.iter().enumerate() {
            if !names.insert(&graph.name) {
                self.report(graph, None, Cause::DuplicateGraph);
            }
            self.graph(graph, position, &mut bodies);
        }
        let bound: HashSet<&Symbol> = entry
            .inputs
            .iter()
            .filter_map(|&id| entry.values.get(id))
            .flat_map(|value| value.ty.shape.dims())
            .filter_map(|dim| match dim {
                Dim::Sym(symbol) => Some(symbol),
                Dim::Const(_) => None,
            })
            .collect();
        for decl in &program.symbols {
            if !bound.contains(&decl.symbol) {
                self.report(entry, None, Cause::UnboundSymbol(decl.symbol.clone()));
            }
        }
    }

    fn graph(&mut self, graph: &'a Graph, position: usize, bodies: &mut HashSet<&'a str>) {
        let is_entry = position + 1 == self.program.graphs.len();
        let defined: Vec<ValueId> =
            graph.values.iter().filter(|(_, value)| matches!(value.def, Def::Input)).map(|(id, _)| id).collect();
        if defined != graph.inputs {
            self.report(graph, None, Cause::Inputs);
        }
        for (id, value) in graph.values.iter() {
            for dim in value.ty.shape.dims() {
                match dim {
                    Dim::Sym(symbol) if self.program.max_of(symbol).is_none() => {
                        self.report(graph, Some(id), Cause::UnknownSymbol(symbol.clone()));
                    }
                    _ => {}
                }
            }
            if self.is_too_large(&value.ty) {
                self.report(graph, Some(id), Cause::TooLarge(value.ty.clone()));
            }
            match &value.def {
                Def::Input => {}
                Def::Param { key } => self.key(graph, id, key, is_entry, false),
                Def::State { key } => self.key(graph, id, key, is_entry, true),
                Def::Const(constant) => {
                    if !constant_fits(&value.ty, constant) {
                        self.report(graph, Some(id), Cause::Constant(value.ty.clone()));
                    }
                }
                Def::Op { op, inputs } => self.op(graph, position, id, op, inputs, bodies),
            }
        }
        if graph.outputs.is_empty() {
            self.report(graph, None, Cause::NoOutputs);
        }
        for &output in &graph.outputs {
            if graph.values.get(output).is_none() {
                self.report(graph, None, Cause::NoValue(output));
            }
        }
        self.updates(graph);
    }

    fn is_too_large(&self, ty: &TensorType) -> bool {
        let size = |dim: &Dim| match dim {
            Dim::Const(value) => *value,
            Dim::Sym(symbol) => self.program.max_of(symbol).unwrap_or(1),
        };
        let elements = ty.shape.dims().iter().fold(1_u64, |product, dim| product.saturating_mul(size(dim).max(1)));
        MAX_RANK < ty.shape.rank() || MAX_ELEMENTS <= elements
    }

    /// Whether some graph updates the state of this key.
    fn changes(&self, key: &str) -> bool {
        let mut updates =
            self.program.graphs.iter().flat_map(|graph| graph.updates.iter().map(move |it| (graph, it.state)));
        updates.any(|(graph, state)| {
            matches!(graph.values.get(state).map(|value| &value.def), Some(Def::State { key: own }) if **own == *key)
        })
    }

    fn key(&mut self, graph: &'a Graph, id: ValueId, key: &'a str, is_entry: bool, is_state: bool) {
        let rolled = key.contains("{}");
        if rolled == is_entry && (rolled || is_state) {
            self.report(graph, Some(id), Cause::Round(key.to_owned()));
        }
        let ty = &graph.values[id].ty;
        let first = *self.keys.entry(key).or_insert(ty);
        if first != ty {
            self.report(graph, Some(id), Cause::KeyType { key: key.to_owned(), first: first.clone() });
        }
        let other = if is_state { self.states.insert(key, &graph.name) } else { None };
        if other.is_some_and(|other| other == graph.name || self.changes(key)) {
            self.report(graph, Some(id), Cause::DuplicateState(key.to_owned()));
        }
    }

    fn op(
        &mut self,
        graph: &'a Graph,
        position: usize,
        id: ValueId,
        op: &'a Op,
        inputs: &[ValueId],
        bodies: &mut HashSet<&'a str>,
    ) {
        let mut types: SmallVec<[&TensorType; 4]> = SmallVec::new();
        for &input in inputs {
            if id.index() <= input.index() {
                self.report(graph, Some(id), Cause::Order(input));
                return;
            }
            types.push(graph.ty(input));
        }
        match op.infer(&types) {
            Ok(inferred) if inferred == *graph.ty(id) => {}
            Ok(inferred) => {
                let declared = graph.ty(id).clone();
                self.report(graph, Some(id), Cause::WrongType { op: op.name(), declared, inferred });
            }
            Err(source) => self.report(graph, Some(id), Cause::Type { op: op.name(), source }),
        }
        match op {
            Op::Repeat(Repeat { body, .. }) => {
                let Some(body) = self.body(graph, position, id, body, bodies) else { return };
                // A body has the carried value and nothing else to give.
                let expected = types.iter().chain(types.first()).map(|ty| Some((*ty).clone())).collect::<Vec<_>>();
                self.signature(graph, id, body, body.outputs.len(), &expected);
            }
            Op::Scan(scan) => {
                let Some(body) = self.body(graph, position, id, &scan.body, bodies) else { return };
                let whole = types.len().saturating_sub(scan.stacked as usize);
                let (whole, stacked) = types.split_at(whole);
                let whole_types = whole.iter().map(|ty| Some((*ty).clone()));
                let parts = stacked.iter().map(|ty| part_of(ty, scan.count));
                let carried = types.first().map(|ty| (*ty).clone());
                let found = whole_types.chain(parts).chain([carried]).collect::<Vec<_>>();
                self.signature(graph, id, body, 1, &found);
            }
            Op::Stacked(stacked) => self.stacked(graph, id, inputs[0], stacked),
            _ => {}
        }
    }

    /// The body of a repeat or scan, if it may have it.
    fn body(
        &mut self,
        graph: &'a Graph,
        position: usize,
        id: ValueId,
        name: &'a str,
        bodies: &mut HashSet<&'a str>,
    ) -> Option<&'a Graph> {
        let Some(body) = self.program.graphs[..position].iter().find(|graph| *graph.name == *name) else {
            self.report(graph, Some(id), Cause::NoBody(name.to_owned()));
            return None;
        };
        if position + 1 != self.program.graphs.len() {
            self.report(graph, Some(id), Cause::NestedRepeat(graph.name.clone()));
        }
        if !bodies.insert(name) {
            self.report(graph, Some(id), Cause::SharedBody(name.to_owned()));
        }
        Some(body)
    }

    /// Compares the types of a body's inputs and of its first `n_outputs` outputs with those that it is given and should give.
    fn signature(
        &mut self,
        graph: &'a Graph,
        id: ValueId,
        body: &'a Graph,
        n_outputs: usize,
        found: &[Option<TensorType>],
    ) {
        let outputs = body.outputs.iter().take(n_outputs);
        let value_type = |id: &ValueId| body.values.get(*id).map(|value| value.ty.clone());
        let expected: Vec<Option<TensorType>> = body.inputs.iter().chain(outputs).map(value_type).collect();
        if expected != found {
            let list = |types: &[Option<TensorType>]| {
                let types = types.iter().map(|ty| ty.as_ref().map_or_else(|| "?".to_owned(), ToString::to_string));
                types.collect::<Vec<_>>().join(", ")
            };
            let cause = Cause::BodySignature { body: body.name.clone(), expected: list(&expected), found: list(found) };
            self.report(graph, Some(id), cause);
        }
    }

    fn stacked(&mut self, graph: &'a Graph, id: ValueId, operand: ValueId, stacked: &'a Stacked) {
        let Some(Op::Scan(Scan { body, count, .. })) = graph.op(operand) else {
            return self.report(graph, Some(id), Cause::NoScan);
        };
        let Some(graph_of_body) = self.program.graph(body) else { return };
        // Output 0 is the carried value, of which only the last is there.
        let output = Some(stacked.output).filter(|&output| 0 < output);
        let output = output.and_then(|output| graph_of_body.outputs.get(output as usize));
        let part = output.and_then(|output| graph_of_body.values.get(*output)).map(|value| &value.ty);
        let expected = part.map(|part| {
            let dims = [Dim::Const(u64::from(*count))].into_iter().chain(part.shape.dims().iter().cloned());
            TensorType::new(part.dtype, dims.collect())
        });
        if expected.as_ref() != Some(graph.ty(id)) {
            let cause = Cause::StackedType {
                body: body.to_string(),
                output: stacked.output,
                expected: expected.map_or_else(|| "nothing".to_owned(), |ty| ty.to_string()),
                found: graph.ty(id).clone(),
            };
            self.report(graph, Some(id), cause);
        }
    }

    fn updates(&mut self, graph: &'a Graph) {
        let mut updated = HashSet::new();
        for update in &graph.updates {
            let (Some(state), Some(value)) = (graph.values.get(update.state), graph.values.get(update.value)) else {
                self.report(graph, Some(update.state), Cause::NoValue(update.value));
                continue;
            };
            if !matches!(state.def, Def::State { .. }) {
                self.report(graph, Some(update.state), Cause::UpdateTarget);
            }
            if !updated.insert(update.state) {
                self.report(graph, Some(update.state), Cause::DoubleUpdate);
            }
            if state.ty != value.ty {
                let cause = Cause::UpdateType { state: state.ty.clone(), value: value.ty.clone() };
                self.report(graph, Some(update.state), cause);
            }
        }
    }
}

/// What one round sees of a stacked value.
fn part_of(ty: &TensorType, count: u32) -> Option<TensorType> {
    let (rounds, part) = ty.shape.dims().split_first()?;
    (*rounds == Dim::Const(u64::from(count))).then(|| TensorType::new(ty.dtype, part.iter().cloned().collect()))
}
