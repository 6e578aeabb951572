//! What is known of a class: its type, its value where that is constant, and whether it depends on weights only.
//!
//! All members of a class have one type; a rule that would merge two types is a bug, which is kept in [`Facts::problems`] and ends the
//! optimiser with an error. The other facts only grow: what one member shows, holds for the class.

use std::collections::{BTreeMap, HashMap};

use egg::{Analysis, DidMerge, Id};
use ir::graph::Constant;
use ir::op::{Attr, OpDef, PartsError, Real, TypeError};
use ir::reference::{Tensor, concrete};
use ir::{DType, Op, TensorType, ValueId};

use super::{EGraph, ENode};

/// Constants with more elements than this are not folded: they would only be stored twice.
const FOLD_LIMIT: u64 = 4096;

/// What is known of one class.
#[derive(Clone, Debug, PartialEq)]
pub enum Fact {
    /// It is an attribute.
    Attr(Attr),
    /// It is a tensor.
    Tensor(TensorFact),
    /// It is an op that its inputs do not fit; there is a [`Problem`].
    Broken,
}

/// What is known of a class of tensors.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorFact {
    /// The type of all its members.
    pub ty: TensorType,
    /// Its value, if that is known and small.
    pub constant: Option<Constant>,
    /// The value of all its elements, if that is one, and known.
    pub uniform: Option<Real>,
    /// Some member depends on parameters and constants only, so it is computed once, when weights are packed.
    pub weight_time: bool,
}

/// What an input, parameter or state of the graph is.
#[derive(Clone, Debug)]
pub struct LeafFact {
    /// Its type.
    pub ty: TensorType,
    /// Whether it is a parameter.
    pub is_param: bool,
}

/// A node that the rules should not have made.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// No op has these attributes.
    #[error("`{op}`: {source}")]
    Parts {
        /// The op.
        op: &'static str,
        /// What is wrong.
        source: Box<PartsError>,
    },
    /// An op does not take these inputs.
    #[error("`{op}` of ({types}): {source}")]
    Type {
        /// The op.
        op: &'static str,
        /// The types of the inputs.
        types: String,
        /// What is wrong.
        source: Box<TypeError>,
    },
    /// A child is a tensor where an attribute belongs, or the other way round.
    #[error("`{op}` has a tensor where an attribute belongs, or an attribute where a tensor belongs")]
    Child {
        /// The op.
        op: &'static str,
    },
    /// Two classes of different types were merged.
    #[error("{left} and {right} were called equal")]
    Merge {
        /// One side.
        left: String,
        /// The other side.
        right: String,
    },
}

/// The analysis: what the leaves are, and what has been found wrong.
#[derive(Clone, Debug, Default)]
pub struct Facts {
    /// The inputs, parameters and states of the graph.
    pub leaves: BTreeMap<ValueId, LeafFact>,
    /// The node that the best graph found so far has for each class that it uses. Rules that look for work to share look only there; empty
    /// means that nothing has been extracted, and all nodes count.
    pub chosen: BTreeMap<Id, ENode>,
    /// What has gone wrong: always bugs of rules.
    pub problems: Vec<Problem>,
}

impl Fact {
    /// The facts of a tensor.
    pub fn tensor(&self) -> Option<&TensorFact> {
        match self {
            Fact::Tensor(fact) => Some(fact),
            _ => None,
        }
    }

    /// The attribute.
    pub fn attr(&self) -> Option<&Attr> {
        match self {
            Fact::Attr(attr) => Some(attr),
            _ => None,
        }
    }
}

/// The op of a node and its result's type, from what is known of its children.
///
/// # Errors
///
/// If it has none.
pub fn infer(name: &'static str, inputs: &[&Fact], attrs: &[&Fact]) -> Result<(Op, TensorType), Problem> {
    let attrs: Option<Vec<Attr>> = attrs.iter().map(|fact| fact.attr().cloned()).collect();
    let types: Option<Vec<&TensorType>> = inputs.iter().map(|fact| fact.tensor().map(|fact| &fact.ty)).collect();
    let (Some(attrs), Some(types)) = (attrs, types) else { return Err(Problem::Child { op: name }) };
    let op = Op::from_parts(name, &attrs).map_err(|source| Problem::Parts { op: name, source: Box::new(source) })?;
    match op.infer(&types) {
        Ok(ty) => Ok((op, ty)),
        Err(source) => {
            let types = types.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ");
            Err(Problem::Type { op: name, types, source: Box::new(source) })
        }
    }
}

/// The op of a node of the e-graph, the facts of its inputs, and its type.
///
/// # Errors
///
/// If it has none.
pub fn infer_node<'a>(egraph: &'a EGraph, node: &ENode) -> Result<(Op, Vec<&'a Fact>, TensorType), Problem> {
    let (name, inputs, attrs) = node.parts().expect("only ops are inferred");
    let facts = |ids: &[Id]| -> Vec<&'a Fact> { ids.iter().map(|id| &egraph[*id].data).collect() };
    let (inputs, attrs) = (facts(inputs), facts(attrs));
    let (op, ty) = infer(name, &inputs, &attrs)?;
    Ok((op, inputs, ty))
}

impl Analysis<ENode> for Facts {
    type Data = Fact;

    fn make(egraph: &mut EGraph, node: &ENode, _: Id) -> Fact {
        match node {
            ENode::Attr(attr) => Fact::Attr(attr.clone()),
            ENode::Value(value) => {
                let leaf = egraph.analysis.leaves.get(value).expect("all leaves are declared before they are added");
                Fact::Tensor(TensorFact {
                    ty: leaf.ty.clone(),
                    constant: None,
                    uniform: None,
                    weight_time: leaf.is_param,
                })
            }
            ENode::Const(ty, constant) => Fact::Tensor(TensorFact {
                ty: ty.clone(),
                constant: (constant.0.len() as u64 <= FOLD_LIMIT).then(|| constant.clone()),
                uniform: uniform(constant),
                weight_time: true,
            }),
            ENode::Op { .. } => match infer_node(egraph, node) {
                Ok((op, inputs, ty)) => {
                    let inputs: Vec<&TensorFact> = inputs.iter().filter_map(|fact| fact.tensor()).collect();
                    let constant = fold(&op, &inputs, &ty);
                    Fact::Tensor(TensorFact {
                        uniform: constant.as_ref().and_then(uniform).or_else(|| same_elements(&op, &inputs)),
                        weight_time: op.body().is_none()
                            && !matches!(op, Op::UnpackInCall(_))
                            && inputs.iter().all(|fact| fact.weight_time),
                        ty,
                        constant,
                    })
                }
                Err(problem) => {
                    egraph.analysis.problems.push(problem);
                    Fact::Broken
                }
            },
        }
    }

    fn merge(&mut self, left: &mut Fact, right: Fact) -> DidMerge {
        match (&mut *left, right) {
            (Fact::Tensor(left), Fact::Tensor(right)) if left.ty == right.ty => {
                let merged = TensorFact {
                    ty: left.ty.clone(),
                    constant: left.constant.clone().or_else(|| right.constant.clone()),
                    uniform: left.uniform.or(right.uniform),
                    weight_time: left.weight_time || right.weight_time,
                };
                let did = DidMerge(*left != merged, right != merged);
                *left = merged;
                did
            }
            (left, right) if *left == right => DidMerge(false, false),
            (left, right) => {
                let name = |fact: &Fact| match fact {
                    Fact::Attr(attr) => format!("attribute {attr}"),
                    Fact::Tensor(fact) => fact.ty.to_string(),
                    Fact::Broken => "an ill-typed op".to_owned(),
                };
                self.problems.push(Problem::Merge { left: name(left), right: name(&right) });
                DidMerge(false, true)
            }
        }
    }
}

fn uniform(constant: &Constant) -> Option<Real> {
    let first = *constant.0.first()?;
    constant.0.iter().all(|value| *value == first).then_some(first)
}

/// The uniform value of the input that an op only rearranges.
fn same_elements(op: &Op, inputs: &[&TensorFact]) -> Option<Real> {
    match op {
        Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Broadcast(_) => inputs[0].uniform,
        _ => None,
    }
}

/// The ops that are folded: those whose f64 reference, rounded once, is what every target computes in f32 or in integers.
pub const FOLDABLE: &[&str] = &[
    "add",
    "sub",
    "mul",
    "div",
    "minimum",
    "maximum",
    "less",
    "select",
    "neg",
    "abs",
    "sqrt",
    "round",
    "relu",
    "relu2",
    "cast",
    "reshape",
    "permute",
    "slice",
    "concat",
    "broadcast",
];

fn fold(op: &Op, inputs: &[&TensorFact], ty: &TensorType) -> Option<Constant> {
    if !FOLDABLE.contains(&op.name()) || FOLD_LIMIT < ty.shape.elements()? || ty.dtype.is_row_format() {
        return None;
    }
    let no_symbols = HashMap::new();
    let tensors: Option<Vec<Tensor>> = inputs
        .iter()
        .map(|fact| Some(Tensor::new(concrete(&fact.ty, &no_symbols), fact.constant.as_ref()?.values().collect())))
        .collect();
    let tensors = tensors?;
    let result = op.reference(&tensors.iter().collect::<Vec<_>>(), &concrete(ty, &no_symbols));
    let in_range = |value: &f64| ty.dtype != DType::I32 || f64::from(*value as i32) == *value;
    if !result.data.iter().all(in_range) {
        return None;
    }
    let rounded =
        result.data.into_iter().map(|value| if ty.dtype == DType::F32 { f64::from(value as f32) } else { value });
    Some(Constant::new(rounded))
}
