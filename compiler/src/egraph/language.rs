//! How ops look in the e-graph: name, inputs, attributes, all as one node.
//!
//! An op's attributes stand after its inputs as leaves, so that patterns bind them like anything else: `(rms_norm ?x ?w ?eps)`,
//! `(slice ?x 1 ?start ?end)`. Adding an op to `ir` does not touch this file.
//!
//! | leaf | text |
//! |---|---|
//! | whole number | `7` |
//! | real number | `1e-5` |
//! | element type | `f32` |
//! | shape | `[n,4]` |
//! | axes | `<1,0>` |
//! | name | `@layer` |
//! | value of the graph | `v12` |
//! | constant | `const:f32[2]:1.0,2.5` |

use std::fmt;

use egg::{FromOp, Id, Language};
use ir::graph::Constant;
use ir::op::{Attr, Real};
use ir::{DType, Dim, Op, Shape, TensorType, ValueId};

/// One e-node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ENode {
    /// An attribute of an op.
    Attr(Attr),
    /// An input, a parameter or a state of the graph.
    Value(ValueId),
    /// A constant, by its content.
    Const(TensorType, Constant),
    /// An op.
    Op {
        /// Its name, one of [`Op::NAMES`].
        name: &'static str,
        /// Its inputs, then its attributes.
        children: Box<[Id]>,
    },
}

/// What nodes with equal payload share: egg finds classes by it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Any attribute.
    Attr,
    /// Any value.
    Value,
    /// Any constant.
    Const,
    /// An op of this name.
    Op(&'static str),
}

impl ENode {
    /// The op of this name with these children, if there is one and their number fits.
    pub fn op(name: &str, children: impl Into<Box<[Id]>>) -> Option<Self> {
        let name = Op::NAMES.iter().find(|known| **known == name)?;
        let (inputs, attrs) = Op::signature(name)?;
        let children = children.into();
        let fixed = inputs.len() + attrs.len();
        let fits = match inputs.last() {
            Some(&"rest") => fixed <= children.len() + 1,
            _ => fixed == children.len(),
        };
        fits.then_some(ENode::Op { name, children })
    }

    /// The name, the inputs and the attributes of an op.
    pub fn parts(&self) -> Option<(&'static str, &[Id], &[Id])> {
        let ENode::Op { name, children } = self else { return None };
        let (_, attrs) = Op::signature(name)?;
        let (inputs, attrs) = children.split_at(children.len() - attrs.len());
        Some((name, inputs, attrs))
    }
}

impl Language for ENode {
    type Discriminant = Kind;

    fn discriminant(&self) -> Kind {
        match self {
            ENode::Attr(_) => Kind::Attr,
            ENode::Value(_) => Kind::Value,
            ENode::Const(..) => Kind::Const,
            ENode::Op { name, .. } => Kind::Op(name),
        }
    }

    fn matches(&self, other: &Self) -> bool {
        match (self, other) {
            (ENode::Op { name, children }, ENode::Op { name: other_name, children: other_children }) => {
                name == other_name && children.len() == other_children.len()
            }
            _ => self == other,
        }
    }

    fn children(&self) -> &[Id] {
        match self {
            ENode::Op { children, .. } => children,
            _ => &[],
        }
    }

    fn children_mut(&mut self) -> &mut [Id] {
        match self {
            ENode::Op { children, .. } => children,
            _ => &mut [],
        }
    }
}

impl fmt::Display for ENode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ENode::Attr(attr) => f.write_str(&attr_text(attr)),
            ENode::Value(value) => write!(f, "{value}"),
            ENode::Const(ty, constant) => {
                let values: Vec<String> = constant.values().map(|value| format!("{value:?}")).collect();
                write!(f, "const:{}{}:{}", ty.dtype, shape_text(&ty.shape), values.join(","))
            }
            ENode::Op { name, .. } => f.write_str(name),
        }
    }
}

/// An attribute without blanks and parentheses, which s-expressions claim.
pub fn attr_text(attr: &Attr) -> String {
    match attr {
        Attr::Shape(shape) => shape_text(shape),
        Attr::Axes(axes) => format!("<{}>", axes.iter().map(u32::to_string).collect::<Vec<_>>().join(",")),
        other => other.to_string(),
    }
}

fn shape_text(shape: &Shape) -> String {
    format!("[{}]", shape.dims().iter().map(Dim::to_string).collect::<Vec<_>>().join(","))
}

/// Why a word of a pattern is no e-node.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    /// An op with the wrong number of children.
    #[error("`{op}` takes {expected} inputs and attributes, found {found}")]
    Arity {
        /// The op.
        op: &'static str,
        /// How many it takes.
        expected: usize,
        /// How many there are.
        found: usize,
    },
    /// Neither an op nor a leaf.
    #[error("`{0}` is neither an op nor an attribute, a value or a constant")]
    Unknown(String),
}

impl FromOp for ENode {
    type Error = PatternError;

    fn from_op(word: &str, children: Vec<Id>) -> Result<Self, PatternError> {
        if let Some(&op) = Op::NAMES.iter().find(|known| **known == word) {
            let (inputs, attrs) = Op::signature(op).expect("every listed name has a signature");
            let found = children.len();
            let expected = inputs.len() + attrs.len();
            return ENode::op(op, children).ok_or(PatternError::Arity { op, expected, found });
        }
        let leaf = if children.is_empty() { parse_leaf(word) } else { None };
        leaf.ok_or_else(|| PatternError::Unknown(word.to_owned()))
    }
}

fn parse_leaf(word: &str) -> Option<ENode> {
    if let Some(constant) = word.strip_prefix("const:") {
        let (ty, values) = constant.rsplit_once(':')?;
        let (dtype, dims) = ty.split_once('[')?;
        let ty = TensorType::new(dtype.parse().ok()?, parse_shape(&format!("[{dims}"))?);
        let values: Option<Vec<f64>> =
            values.split(',').filter(|value| !value.is_empty()).map(|value| value.parse().ok()).collect();
        return Some(ENode::Const(ty, Constant::new(values?)));
    }
    if let Ok(value) = word.parse() {
        return Some(ENode::Value(value));
    }
    parse_attr(word).map(ENode::Attr)
}

/// The attribute that [`attr_text`] prints like this.
pub fn parse_attr(word: &str) -> Option<Attr> {
    if let Ok(dtype) = word.parse::<DType>() {
        return Some(Attr::DType(dtype));
    }
    if word.starts_with('[') {
        return parse_shape(word).map(Attr::Shape);
    }
    if let Some(axes) = word.strip_prefix('<') {
        let axes = axes.strip_suffix('>')?.split(',').filter(|axis| !axis.is_empty());
        return axes.map(|axis| axis.parse().ok()).collect::<Option<_>>().map(Attr::Axes);
    }
    if let Some(name) = word.strip_prefix('@') {
        return Some(Attr::Name(name.into()));
    }
    match word.parse::<i64>() {
        Ok(value) => Some(Attr::Int(value)),
        Err(_) => word.parse().ok().map(|value| Attr::Real(Real::new(value))),
    }
}

fn parse_shape(word: &str) -> Option<Shape> {
    let dims = word.strip_prefix('[')?.strip_suffix(']')?;
    let dim = |dim: &str| match dim.parse() {
        Ok(size) => Some(Dim::Const(size)),
        Err(_) if dim.starts_with(char::is_alphabetic) => Some(Dim::sym(dim)),
        Err(_) => None,
    };
    dims.split(',').filter(|dim| !dim.is_empty()).map(dim).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leaves_parse_back() {
        for word in [
            "7",
            "-3",
            "1e-5",
            "0.5",
            "f32",
            "[n,4]",
            "[]",
            "<1,0,2>",
            "<>",
            "@layer",
            "v12",
            "const:f32[2]:1.0,-0.0",
            "const:i32[0]:",
        ] {
            let node = ENode::from_op(word, Vec::new()).unwrap();
            assert_eq!(node.to_string(), word);
        }
    }

    #[test]
    fn a_pattern_with_a_typing_error_is_refused() {
        let arity = ENode::from_op("rms_norm", vec![Id::from(0)]);
        assert_eq!(arity, Err(PatternError::Arity { op: "rms_norm", expected: 3, found: 1 }));
        assert_eq!(ENode::from_op("rms_nrom", vec![Id::from(0)]), Err(PatternError::Unknown("rms_nrom".to_owned())));
        assert!(ENode::from_op("repeat", (0..9).map(Id::from).collect()).is_ok());
    }
}
