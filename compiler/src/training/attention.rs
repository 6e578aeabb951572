//! Attention in bf16: the forward pass of a step before it is differentiated.
//!
//! ```text
//! attention(q, k, v, ..)    attention(q, cast(k, bf16), cast(v, bf16), ..)
//! ```
//!
//! Whole batches have their keys and values in f32, and rows of tensor cores read caches in bf16. Scores, weights and sums stay f32; gradients of
//! attention over bf16 round the other operands of their products, too, and what they give is f32.

use ir::graph::{Def, Graph};
use ir::op::elementwise::Cast;
use ir::{BuildError, DType, Op, ValueId};

use super::remake::Remake;

/// The graph with attention over keys and values in bf16 wherever they are f32.
///
/// # Errors
///
/// Never, for a graph that is well formed.
pub(super) fn over_bf16(graph: &Graph) -> Result<Graph, BuildError> {
    let remake = Remake::new(graph, |remake, id| {
        let value = &graph.values[id];
        let Def::Op { op: op @ Op::Attention(_), inputs } = &value.def else { return Ok(None) };
        let mut operands: Vec<ValueId> = inputs.iter().map(|&input| remake.of(input)).collect();
        for cache in &mut operands[1..3] {
            if remake.b.ty(*cache).dtype == DType::F32 {
                *cache = remake.b.op(Cast { to: DType::BF16 }, &[*cache])?;
            }
        }
        match &value.name {
            Some(name) => remake.b.named(name, op.clone(), &operands).map(Some),
            None => remake.b.op(op.clone(), &operands).map(Some),
        }
    })?;
    Ok(remake.finish(graph))
}
