//! Dimensions, shapes and tensor types; how shapes broadcast.

use std::fmt;
use std::sync::Arc;

use smallvec::SmallVec;

use crate::dtype::DType;

/// The most dimensions that the verifier lets a type have.
pub const MAX_RANK: usize = 8;

/// What the elements of a verified type stay below, with each symbol at its largest and each empty dimension counted as 1. So no size, offset
/// or count of bytes that is computed from a verified program overflows a u64.
pub const MAX_ELEMENTS: u64 = 1 << 48;

/// The name of a dimension that is known only when a step runs, such as `n`, the tokens of this call.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Symbol(Arc<str>);

impl Symbol {
    /// A symbol of this name.
    pub fn new(name: &str) -> Self {
        Self(name.into())
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Symbol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// One dimension: a constant, or a symbol that each call resolves. There is no arithmetic on symbols: an op whose result would need it
/// has no type.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Dim {
    /// Known at compile time.
    Const(u64),
    /// Known at each call.
    Sym(Symbol),
}

impl Dim {
    /// The constant, if it is one.
    pub fn as_const(&self) -> Option<u64> {
        match self {
            Dim::Const(value) => Some(*value),
            Dim::Sym(_) => None,
        }
    }

    /// A symbolic dimension.
    pub fn sym(name: &str) -> Self {
        Dim::Sym(Symbol::new(name))
    }
}

impl From<u64> for Dim {
    fn from(value: u64) -> Self {
        Dim::Const(value)
    }
}

impl fmt::Display for Dim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Dim::Const(value) => write!(f, "{value}"),
            Dim::Sym(symbol) => write!(f, "{symbol}"),
        }
    }
}

/// The dimensions of a tensor, outermost first. Rank 0 is a scalar.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Shape(pub SmallVec<[Dim; 4]>);

impl Shape {
    /// A shape of these dimensions.
    pub fn new(dims: impl IntoIterator<Item = Dim>) -> Self {
        Self(dims.into_iter().collect())
    }

    /// A shape of constants.
    pub fn of(dims: &[u64]) -> Self {
        Self(dims.iter().map(|&dim| Dim::Const(dim)).collect())
    }

    /// The number of dimensions.
    pub fn rank(&self) -> usize {
        self.0.len()
    }

    /// The dimensions.
    pub fn dims(&self) -> &[Dim] {
        &self.0
    }

    /// The innermost dimension, unless this is a scalar.
    pub fn last(&self) -> Option<&Dim> {
        self.0.last()
    }

    /// The innermost dimension as a constant.
    pub fn last_const(&self) -> Option<u64> {
        self.last().and_then(Dim::as_const)
    }

    /// All dimensions but the innermost.
    pub fn outer(&self) -> &[Dim] {
        self.0.split_last().map_or(&[], |(_, outer)| outer)
    }

    /// The product of the constants, and the symbols that remain, sorted. The product saturates; the verifier refuses every type that comes
    /// near that.
    pub fn product(dims: &[Dim]) -> (u64, Vec<Symbol>) {
        let mut symbols = Vec::new();
        let mut constant = 1_u64;
        for dim in dims {
            match dim {
                Dim::Const(value) => constant = u64::saturating_mul(constant, *value),
                Dim::Sym(symbol) => symbols.push(symbol.clone()),
            }
        }
        symbols.sort();
        (constant, symbols)
    }

    /// The number of elements, if every dimension is a constant and the product fits.
    pub fn elements(&self) -> Option<u64> {
        self.0.iter().try_fold(1_u64, |product, dim| product.checked_mul(dim.as_const()?))
    }

    /// The shape that both broadcast to, aligned at the innermost dimension; a missing or 1-sized dimension is repeated.
    pub fn broadcast(&self, other: &Shape) -> Option<Shape> {
        let rank = self.rank().max(other.rank());
        let at = |shape: &Shape, position: usize| -> Dim {
            let missing = rank - shape.rank();
            if position < missing { Dim::Const(1) } else { shape.0[position - missing].clone() }
        };
        let mut dims = SmallVec::new();
        for position in 0..rank {
            let (left, right) = (at(self, position), at(other, position));
            dims.push(match (left, right) {
                (left, right) if left == right => left,
                (Dim::Const(1), right) => right,
                (left, Dim::Const(1)) => left,
                _ => return None,
            });
        }
        Some(Shape(dims))
    }

    /// Whether `self` broadcasts to exactly `target`.
    pub fn broadcasts_to(&self, target: &Shape) -> bool {
        self.broadcast(target).as_ref() == Some(target)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[")?;
        for (position, dim) in self.0.iter().enumerate() {
            if position > 0 {
                f.write_str(", ")?;
            }
            write!(f, "{dim}")?;
        }
        f.write_str("]")
    }
}

/// Element type and shape.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TensorType {
    /// Element type.
    pub dtype: DType,
    /// Dimensions.
    pub shape: Shape,
}

impl TensorType {
    /// A tensor type.
    pub fn new(dtype: DType, shape: Shape) -> Self {
        Self { dtype, shape }
    }

    /// The same shape with another element type.
    pub fn with_dtype(&self, dtype: DType) -> Self {
        Self { dtype, shape: self.shape.clone() }
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.dtype, self.shape)
    }
}

impl FromIterator<Dim> for Shape {
    fn from_iter<I: IntoIterator<Item = Dim>>(dims: I) -> Self {
        Self(dims.into_iter().collect())
    }
}
