//! What flows back through ternary weights that are not trained: their packed form is what is read, and no transposed or unpacked copy is kept.
//!
//! ```text
//! matmul(dy, transpose(unpack(w)))              =  ternary_matmul_transposed(dy, w, 1)
//! matmul(dy, transpose(unpack(w) * s))          =  ternary_matmul_transposed(dy, w, s)        s one for each row or for all
//! matmul(dy, transpose(unpack(w) / s))          =  ternary_matmul_transposed(dy, w, 1 / s)
//! ```
//!
//! In bf16 the product is one of matrices in half precision, for which the weights are unpacked in the call, exactly, one matrix at a time:
//!
//! ```text
//! ternary_matmul_transposed(dy, w, s)           ~  cast(gemm(cast(dy * s, bf16), unpack_in_call(w), form=@nn, to=bf16), f32)
//! ```
//!
//! The forward product is left as it is: it becomes that of inference by the same rules.

use ir::graph::Graph;
use ir::op::elementwise::{Cast, Div, Mul};
use ir::op::matmul::{Form, Gemm};
use ir::op::movement::{Broadcast, Reshape};
use ir::op::ternary::{TernaryMatmulTransposed, UnpackInCall};
use ir::vjp::scalar;
use ir::{BuildError, Builder, DType, Op, Shape, ValueId};

use super::precision::Precision;
use super::remake::Remake;
use crate::schedule::Views;

/// A graph in which products with transposed frozen weights read them packed.
pub(super) fn read_packed(graph: &Graph, precision: Precision) -> Result<Graph, BuildError> {
    let views = Views::new(graph);
    let remake = Remake::new(graph, |remake, id| match transposed(graph, &views, id) {
        Some(Transposed { dy, w, scale }) => {
            let (dy, packed) = (remake.of(dy), remake.of(w));
            let given = scale.map(|scale| remake.of(scale.value));
            let b = &mut remake.b;
            let rows = Shape::new([b.ty(packed).shape.0[0].clone()]);
            let given = match scale {
                Some(Scale { is_divisor: true, .. }) => {
                    let one = scalar(b, 1.0);
                    given.map(|scale| b.op(Div {}, &[one, scale])).transpose()?
                }
                _ => given,
            };
            let scales = for_each_row(b, given, rows)?;
            if precision == Precision::F32 || b.ty(dy).shape.rank() != 2 {
                return Ok(Some(b.op(TernaryMatmulTransposed {}, &[dy, packed, scales])?));
            }
            let scaled = b.op(Mul {}, &[dy, scales])?;
            let half = b.op(Cast { to: DType::BF16 }, &[scaled])?;
            let unpacked = b.op(UnpackInCall {}, &[packed])?;
            let narrow = b.op(Gemm { form: Form::Nn, to: DType::BF16 }, &[half, unpacked])?;
            Ok(Some(b.op(Cast { to: DType::F32 }, &[narrow])?))
        }
        None => Ok::<_, BuildError>(None),
    })?;
    Ok(remake.finish(graph))
}

/// A product with transposed frozen weights.
struct Transposed {
    dy: ValueId,
    w: ValueId,
    scale: Option<Scale>,
}

#[derive(Clone, Copy)]
struct Scale {
    value: ValueId,
    is_divisor: bool,
}

fn transposed(graph: &Graph, views: &Views<'_>, id: ValueId) -> Option<Transposed> {
    let (Some(Op::Matmul(_)), &[dy, transposed]) = (graph.op(id), graph.operands(id)) else { return None };
    let Some(Op::Permute(permute)) = graph.op(transposed) else { return None };
    let real = graph.operands(transposed)[0];
    if permute.axes[..] != [1, 0] || !views.is_weight_time(real) {
        return None;
    }
    let packed = |value: ValueId| match graph.op(value) {
        Some(Op::Unpack(_)) => Some(graph.operands(value)[0]),
        _ => None,
    };
    if let Some(w) = packed(real) {
        return Some(Transposed { dy, w, scale: None });
    }
    let (w, value, is_divisor) = match (graph.op(real)?, graph.operands(real)) {
        (Op::Mul(_), &[left, right]) => match packed(left) {
            Some(w) => (w, right, false),
            None => (packed(right)?, left, false),
        },
        (Op::Div(_), &[left, right]) => (packed(left)?, right, true),
        _ => return None,
    };
    let is_of_rows = match graph.ty(value).shape.dims() {
        [_, columns] => columns.as_const() == Some(1),
        shape => shape.iter().all(|dim| dim.as_const() == Some(1)),
    };
    is_of_rows.then_some(Transposed { dy, w, scale: Some(Scale { value, is_divisor }) })
}

/// A scale for each row, given those of the rows as a column, one for all, or none, which is 1.
fn for_each_row(b: &mut Builder, given: Option<ValueId>, rows: Shape) -> Result<ValueId, BuildError> {
    let given = match given {
        Some(given) => given,
        None => scalar(b, 1.0),
    };
    match b.ty(given).shape.elements() == rows.elements() {
        true => b.op(Reshape { shape: rows }, &[given]),
        false => {
            let one = b.op(Reshape { shape: Shape::of(&[1]) }, &[given])?;
            b.op(Broadcast { shape: rows }, &[one])
        }
    }
}
