//! How much a step computes, as expressions over the sizes of a call.

use ir::plan::Expr;
use ir::{Graph, Op, ValueId};

use crate::egraph::cost::operations;
use crate::schedule::Group;

/// The symbol of the keys that all tokens of a call see together: what attention reads is proportional to it.
pub const KEYS: &str = "keys";

/// Multiply-accumulates of a product.
pub fn macs(graph: &Graph, value: ValueId) -> Expr {
    match graph.op(value) {
        Some(Op::TernaryMatmul(_) | Op::TernaryMatmulBase3(_) | Op::Matmul(_) | Op::QuantizedMatmul(_)) => {
            let weight = graph.ty(graph.operands(value)[1]);
            Expr::product(graph.ty(value).shape.outer()) * Expr::product(weight.shape.dims())
        }
        Some(Op::TernaryMatmulTransposed(_)) => {
            let weight = graph.ty(graph.operands(value)[1]);
            Expr::product(graph.ty(value).shape.outer()) * Expr::product(weight.shape.dims())
        }
        Some(Op::Gemm(gemm)) => {
            let k = &graph.ty(graph.operands(value)[0]).shape.0[gemm.form.contracted().0];
            Expr::product(graph.ty(value).shape.dims()) * Expr::from(k)
        }
        // Products over pairs of a query and a key that it sees: scores and weighted values, and for gradients products with the values, and of each
        // operand that has one.
        Some(Op::Attention(_)) => of_pairs(graph, value, 2),
        Some(Op::AttentionLse(_)) => of_pairs(graph, value, 1),
        Some(Op::AttentionQueryGradient(_)) => of_pairs(graph, value, 3),
        Some(Op::AttentionCacheGradient(_)) => of_pairs(graph, value, 4),
        _ => Expr::from(0),
    }
}

/// So many products for each element of attention's queries and each key that they see.
fn of_pairs(graph: &Graph, value: ValueId, products: u64) -> Expr {
    let q = graph.ty(graph.operands(value)[0]);
    Expr::symbol(KEYS) * Expr::product(&q.shape.0[1..]) * Expr::from(products)
}

/// Elementwise operations of a nest: for each op but views, those of an element times the elements of its result, or of its largest operand
/// where that has more dimensions' worth of them, as a reduction's has.
pub fn ops(graph: &Graph, group: &Group) -> Expr {
    let mut total = Expr::from(0);
    for &value in &group.values {
        let Some(op) = graph.op(value) else { continue };
        if matches!(op, Op::Reshape(_) | Op::Slice(_) | Op::Broadcast(_)) {
            continue;
        }
        let result = Expr::product(graph.ty(value).shape.dims());
        let elements = match op {
            // A table is not walked through, only its rows are.
            Op::Gather(_) => result,
            _ => {
                let operands =
                    graph.operands(value).iter().map(|&operand| Expr::product(graph.ty(operand).shape.dims()));
                operands.chain([result]).max_by_key(at_one).unwrap_or_else(|| Expr::from(0))
            }
        };
        total = total + elements * Expr::from(operations(op));
    }
    total
}

/// An expression's value for one token, to tell which of two is larger; symbols are the same on both sides.
fn at_one(expr: &Expr) -> u64 {
    expr.evaluate(&|_| Some(1)).unwrap_or(u64::MAX)
}
