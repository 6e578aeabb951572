//! Both sides of a rule as programs, from one of its examples: what the soundness test evaluates.
//!
//! The syntax of examples is described at [`Rule::example`].

use std::collections::BTreeMap;

use egg::{Id, Language, Pattern, RecExpr, Subst};
use ir::entity::Id as _;
use ir::graph::{Constant, SymbolDecl};
use ir::op::{Attr, PartsError};
use ir::verify::VerifyErrors;
use ir::{BuildError, Builder, Dim, Graph, Op, Program, Shape, Symbol, TensorType, ValueId, Verified, verify};

use super::rule::Rule;
use crate::egraph::analysis::LeafFact;
use crate::egraph::language::parse_attr;
use crate::egraph::{EGraph, ENode, Facts};

/// The symbol that examples may use as a size.
pub const TOKENS: &str = "n";

/// Both sides of a rule, as programs with the same inputs and parameters. Parameters go by the names of the variables.
#[derive(Clone, Debug)]
pub struct Instance {
    /// The left side.
    pub left: Verified<Program>,
    /// The right side.
    pub right: Verified<Program>,
}

/// What is wrong with an example.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ExampleError {
    /// Part of it makes no sense.
    #[error("`{0}` is no part of an example")]
    Syntax(String),
    /// A variable of the left side is not in it.
    #[error("the example does not say what {0} is")]
    Unbound(String),
    /// The left side has no type.
    #[error("the left side is ill-typed: {0}")]
    LeftSide(String),
    /// A side is no graph.
    #[error(transparent)]
    Build(#[from] BuildError),
    /// A side has a node that is no op.
    #[error(transparent)]
    Parts(#[from] PartsError),
    /// A side is no program.
    #[error("{0}")]
    Invalid(VerifyErrors),
}

impl Rule {
    /// Both sides at an example, where `size` says what its letters stand for. `None` if the rule does not hold there.
    ///
    /// # Errors
    ///
    /// If the example does not fit the rule.
    pub fn instance(
        &self,
        variant: usize,
        example: &str,
        size: &dyn Fn(&str) -> u64,
    ) -> Result<Option<Instance>, ExampleError> {
        let example = Example::parse(example, size)?;
        let mut egraph = EGraph::new(Facts::default());
        let mut subst = Subst::default();
        for (index, (name, item)) in example.items.iter().enumerate() {
            let value = ValueId::new(index);
            let node = match item {
                Item::Input(ty) => leaf(&mut egraph, value, ty, false),
                Item::Param(ty) => leaf(&mut egraph, value, ty, true),
                Item::Const(ty, constant) => ENode::Const(ty.clone(), constant.clone()),
                Item::Attr(attr) => ENode::Attr(attr.clone()),
            };
            let class = egraph.add(node);
            subst.insert(name.parse().map_err(|_| ExampleError::Syntax(name.clone()))?, class);
        }
        let left = &self.left[variant];
        if let Some(var) = left.vars().into_iter().find(|var| subst.get(*var).is_none()) {
            return Err(ExampleError::Unbound(var.to_string()));
        }
        let root = egraph.add_instantiation(&left.ast, &subst);
        for pattern in &example.also {
            egraph.add_instantiation(&pattern.ast, &subst);
        }
        egraph.rebuild();
        if let Some(problem) = egraph.analysis.problems.first() {
            return Err(ExampleError::LeftSide(problem.to_string()));
        }
        let Some(bound) = self.bind(&mut egraph, root, &subst) else { return Ok(None) };
        let right = term(&egraph, &self.right, &bound);
        let left = term(&egraph, left, &subst);
        Ok(Some(Instance { left: program(&example, &left)?, right: program(&example, &right)? }))
    }
}

fn leaf(egraph: &mut EGraph, value: ValueId, ty: &TensorType, is_param: bool) -> ENode {
    egraph.analysis.leaves.insert(value, LeafFact { ty: ty.clone(), is_param });
    ENode::Value(value)
}

/// A pattern with its variables replaced by the terms they were bound to.
fn term(egraph: &EGraph, pattern: &Pattern<ENode>, subst: &Subst) -> RecExpr<ENode> {
    let mut expr = RecExpr::default();
    let mut ids: Vec<Id> = Vec::new();
    for node in &pattern.ast {
        let id = match node {
            egg::ENodeOrVar::Var(var) => append(&mut expr, &egraph.id_to_expr(subst[*var])),
            egg::ENodeOrVar::ENode(node) => expr.add(node.clone().map_children(|child| ids[usize::from(child)])),
        };
        ids.push(id);
    }
    expr
}

fn append(expr: &mut RecExpr<ENode>, part: &RecExpr<ENode>) -> Id {
    let mut ids: Vec<Id> = Vec::new();
    for node in part {
        let id = expr.add(node.clone().map_children(|child| ids[usize::from(child)]));
        ids.push(id);
    }
    *ids.last().expect("a term has a root")
}

/// A term as a program whose inputs and parameters are all variables of the example.
fn program(example: &Example, term: &RecExpr<ENode>) -> Result<Verified<Program>, ExampleError> {
    let mut builder = Builder::new("side");
    let mut leaves: BTreeMap<ValueId, ValueId> = BTreeMap::new();
    for (index, (name, item)) in example.items.iter().enumerate() {
        let value = match item {
            Item::Input(ty) => builder.input(name, ty.clone()),
            Item::Param(ty) => builder.param(name, name, ty.clone()),
            Item::Const(..) | Item::Attr(_) => continue,
        };
        leaves.insert(ValueId::new(index), value);
    }
    let mut values: Vec<Option<ValueId>> = Vec::new();
    for node in term {
        values.push(match node {
            ENode::Attr(_) => None,
            ENode::Value(value) => Some(leaves[value]),
            ENode::Const(ty, constant) => Some(builder.constant(None, ty.clone(), constant.values())),
            ENode::Op { .. } => {
                let (name, inputs, attrs) = node.parts().expect("an op has parts");
                let attrs: Vec<Attr> = attrs.iter().filter_map(|id| attr(term, *id)).collect();
                let inputs: Vec<ValueId> = inputs.iter().filter_map(|id| values[usize::from(*id)]).collect();
                Some(builder.op(Op::from_parts(name, &attrs)?, &inputs)?)
            }
        });
    }
    let output = values.last().copied().flatten().expect("a side is a tensor");
    let graph: Graph = builder.finish(&[output]);
    let symbols = vec![SymbolDecl { symbol: Symbol::new(TOKENS), max: 64 }];
    // A symbol must be bound by an input, and some examples need none.
    let uses_tokens = example
        .items
        .iter()
        .any(|(_, item)| matches!(item, Item::Input(ty) if ty.shape.dims().contains(&Dim::sym(TOKENS))));
    let symbols = if uses_tokens { symbols } else { Vec::new() };
    let program = Program { name: "side".to_owned(), symbols, graphs: vec![graph] };
    verify(program).map_err(ExampleError::Invalid)
}

fn attr(term: &RecExpr<ENode>, id: Id) -> Option<Attr> {
    match &term[id] {
        ENode::Attr(attr) => Some(attr.clone()),
        _ => None,
    }
}

struct Example {
    items: Vec<(String, Item)>,
    also: Vec<Pattern<ENode>>,
}

enum Item {
    Input(TensorType),
    Param(TensorType),
    Const(TensorType, Constant),
    Attr(Attr),
}

impl Example {
    fn parse(text: &str, size: &dyn Fn(&str) -> u64) -> Result<Self, ExampleError> {
        let mut example = Example { items: Vec::new(), also: Vec::new() };
        for part in text.split(';').map(str::trim) {
            let syntax = || ExampleError::Syntax(part.to_owned());
            if let Some(pattern) = part.strip_prefix("also ") {
                example.also.push(pattern.parse().map_err(|_| syntax())?);
                continue;
            }
            let mut words = part.split_whitespace();
            let (name, rest) = (words.next().ok_or_else(syntax)?, words.collect::<Vec<_>>());
            let item = match rest[..] {
                ["param", ty] => parse_type(ty, size).map(Item::Param),
                ["const", ty, values] => parse_constant(ty, values, size),
                [word] => match parse_type(word, size) {
                    Some(ty) => Some(Item::Input(ty)),
                    None => parse_attribute(word, size).map(Item::Attr),
                },
                _ => None,
            };
            example.items.push((name.to_owned(), item.ok_or_else(syntax)?));
        }
        Ok(example)
    }
}

fn parse_type(word: &str, size: &dyn Fn(&str) -> u64) -> Option<TensorType> {
    let (dtype, dims) = word.split_once('[')?;
    Some(TensorType::new(dtype.parse().ok()?, parse_shape(dims.strip_suffix(']')?, size)?))
}

fn parse_constant(ty: &str, values: &str, size: &dyn Fn(&str) -> u64) -> Option<Item> {
    let values: Option<Vec<f64>> = values.split(',').map(|value| value.parse().ok()).collect();
    Some(Item::Const(parse_type(ty, size)?, Constant::new(values?)))
}

fn parse_attribute(word: &str, size: &dyn Fn(&str) -> u64) -> Option<Attr> {
    if let Some(dims) = word.strip_prefix('[') {
        return parse_shape(dims.strip_suffix(']')?, size).map(Attr::Shape);
    }
    match parse_attr(word) {
        Some(attr) => Some(attr),
        None => Some(Attr::Int(i64::try_from(parse_size(word, size)?).ok()?)),
    }
}

fn parse_shape(dims: &str, size: &dyn Fn(&str) -> u64) -> Option<Shape> {
    let dim = |dim: &str| match dim {
        TOKENS => Some(Dim::sym(TOKENS)),
        dim => parse_size(dim, size).map(Dim::Const),
    };
    dims.split(',').filter(|dim| !dim.is_empty()).map(dim).collect()
}

/// A sum of numbers and letters.
fn parse_size(text: &str, size: &dyn Fn(&str) -> u64) -> Option<u64> {
    let term = |term: &str| match term.parse() {
        Ok(number) => Some(number),
        Err(_) if term.len() == 1 && term.starts_with(|letter: char| letter.is_ascii_lowercase()) => Some(size(term)),
        Err(_) => None,
    };
    text.split('+').map(term).sum()
}
