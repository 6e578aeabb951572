//! Gradients: what an op says of how its result turns when its inputs do.
//!
//! **What a gradient is.** The gradient of a value is f32 and of the value's shape, whatever the value's own element type: a weight in bf16, a
//! ternary matrix and a quantised row are taken as the real numbers that they stand for. [`crate::op::OpDef::vjp`] turns the gradient of an
//! op's result into those of its inputs, the product of a vector with the op's Jacobian, as ordinary ops in the same graph.
//!
//! **What has none.** Where a result is piecewise constant in an input, or an input is an index, the gradient is zero, and the op says which
//! of the two it is ([`Zero`]). Rounding to ternary values and to int8 codes would be such a case too; training goes *straight through* it
//! instead, as [`crate::op::straight_through`] defines. An op that cannot give a gradient that exists says so as a [`VjpError`], and never zero.

use smallvec::SmallVec;

use crate::builder::{BuildError, Builder};
use crate::dtype::DType;
use crate::graph::ValueId;
use crate::op::movement::{Broadcast, Permute, Reshape};
use crate::op::reduce::{Sum, SumTo};
use crate::shape::{Dim, Shape, TensorType};

/// The gradient of one input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gradient {
    /// This value, f32 and of the input's shape.
    Of(ValueId),
    /// Nothing flows back, for a reason.
    Zero(Zero),
}

/// Why a gradient is zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Zero {
    /// The input is an index, a position or a condition: between two of its values there is nothing.
    #[error("it is an integer")]
    Integer,
    /// The result stays the same when the input changes by a little.
    #[error("the result is piecewise constant in it")]
    Flat,
    /// A straight-through estimator holds it constant.
    #[error("a straight-through estimator holds it constant")]
    Held,
}

/// The gradients of all inputs of an op, in their order.
pub type Gradients = SmallVec<[Gradient; 4]>;

/// Why an op could not give a gradient that exists.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VjpError {
    /// A helper op does not fit. Always a bug in tritter.
    #[error("internal error: {0}")]
    Build(#[from] BuildError),
    /// The op is itself a gradient, of which only the first is ever taken.
    #[error("`{0}` is a gradient, and has none of its own")]
    SecondOrder(&'static str),
    /// The op repeats a body, which the reverse walk goes through itself.
    #[error("`{0}` has the gradient of its body, which only a walk over the program can make")]
    Body(&'static str),
    /// The rows of an operand would have to be counted, but their number is a product with a symbol in it.
    #[error("`{op}` cannot count the rows of {shape}: bind its symbols to numbers first")]
    Symbolic {
        /// The op.
        op: &'static str,
        /// The operand's shape.
        shape: Shape,
    },
}

/// An f32 scalar.
pub fn scalar(b: &mut Builder, value: f64) -> ValueId {
    b.constant(None, TensorType::new(DType::F32, Shape::default()), [value])
}

/// f32 of one value everywhere.
///
/// # Errors
///
/// Never: a scalar broadcasts to every shape.
pub fn filled(b: &mut Builder, value: f64, shape: &Shape) -> Result<ValueId, BuildError> {
    let value = scalar(b, value);
    broadcast_to(b, value, shape)
}

/// More rows than these are not added up at once, and no fewer where they are parts of more.
const MOST_ROWS: u64 = 1024;
const LEAST_ROWS: u64 = 256;

/// The sum of `x` over the axes along which something of the shape `shape` was repeated, one axis after the other from the outermost, and an outermost
/// one of very many rows part by part: many sums of few numbers can be computed side by side, few sums of many cannot. In parts they are also closer to
/// the exact sum.
///
/// # Errors
///
/// If `shape` does not broadcast to that of `x`.
pub fn sum_to(b: &mut Builder, x: ValueId, shape: &Shape) -> Result<ValueId, BuildError> {
    let mut sum = x;
    loop {
        let dims = b.ty(sum).shape.dims();
        if let Some((parts, rows)) = parts_of_rows(dims, shape) {
            let rest = &dims[1..];
            let split: Shape = [parts.clone(), rows].iter().chain(rest).cloned().collect();
            let each: Shape = [parts.clone(), Dim::Const(1)].iter().chain(rest).cloned().collect();
            let all: Shape = [parts].iter().chain(rest).cloned().collect();
            let x = b.op(Reshape { shape: split }, &[sum])?;
            let sums = b.op(SumTo { shape: each }, &[x])?;
            sum = b.op(Reshape { shape: all }, &[sums])?;
            continue;
        }
        let missing = dims.len().saturating_sub(shape.rank());
        let is_repeated = |(axis, dim): &(usize, &Dim)| {
            **dim != Dim::Const(1) && (*axis < missing || shape.0.get(axis - missing) != Some(dim))
        };
        let mut repeated = dims.iter().enumerate().filter(is_repeated).map(|(axis, _)| axis);
        let next = match (repeated.next(), repeated.next()) {
            (Some(axis), Some(_)) => {
                let one = |(other, dim): (usize, &Dim)| if other == axis { Dim::Const(1) } else { dim.clone() };
                dims.iter().enumerate().map(one).collect()
            }
            _ if b.ty(sum).shape == *shape => return Ok(sum),
            _ => shape.clone(),
        };
        sum = b.op(SumTo { shape: next }, &[sum])?;
    }
}

/// Into how many parts of how many rows the outermost axis is cut, if it is one of those to be summed and long.
fn parts_of_rows(dims: &[Dim], shape: &Shape) -> Option<(Dim, Dim)> {
    let is_summed = dims.len() != shape.rank() || shape.0.first() == Some(&Dim::Const(1));
    let all = dims.first()?.as_const().filter(|rows| is_summed && MOST_ROWS < *rows && 1 < dims.len())?;
    let rows = (LEAST_ROWS..=MOST_ROWS).rev().find(|rows| all.is_multiple_of(*rows))?;
    Some((Dim::Const(all / rows), Dim::Const(rows)))
}

/// `x` repeated to `shape`, unless it has it.
pub(crate) fn broadcast_to(b: &mut Builder, x: ValueId, shape: &Shape) -> Result<ValueId, BuildError> {
    if b.ty(x).shape == *shape {
        return Ok(x);
    }
    b.op(Broadcast { shape: shape.clone() }, &[x])
}

/// A matrix with rows and columns exchanged.
pub(crate) fn transpose(b: &mut Builder, matrix: ValueId) -> Result<ValueId, BuildError> {
    b.op(Permute { axes: SmallVec::from_slice(&[1, 0]) }, &[matrix])
}

/// `x` with all axes but the innermost merged into one.
pub(crate) fn as_matrix(b: &mut Builder, op: &'static str, x: ValueId) -> Result<ValueId, VjpError> {
    let shape = b.ty(x).shape.clone();
    let rows = match shape.outer() {
        [rows] => rows.clone(),
        outer => match Shape::product(outer) {
            (rows, symbols) if symbols.is_empty() => Dim::Const(rows),
            _ => return Err(VjpError::Symbolic { op, shape }),
        },
    };
    if shape.rank() == 2 {
        return Ok(x);
    }
    let columns = shape.last().cloned().unwrap_or(Dim::Const(1));
    Ok(b.op(Reshape { shape: Shape::new([rows, columns]) }, &[x])?)
}

/// The number of columns of `x` as a value: a constant, or `[.., 1]` counted where it is a symbol.
pub(crate) fn columns(b: &mut Builder, x: ValueId) -> Result<ValueId, BuildError> {
    let shape = b.ty(x).shape.clone();
    match shape.last_const() {
        Some(columns) => Ok(scalar(b, columns as f64)),
        None => {
            let ones = filled(b, 1.0, &shape)?;
            b.op(Sum {}, &[ones])
        }
    }
}
