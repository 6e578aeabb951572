//! Whole sequences: a program for calls of any tokens becomes one for a batch that holds all positions of all sequences, in order.
//!
//! Sequence, position and the rows of logits are then constants; what would be appended to a cache is the batch's own keys and values in another
//! order, and every token has a row of logits.

use ir::graph::{Def, Graph, Program};
use ir::op::movement::{Permute, Reshape};
use ir::{Builder, DType, Op, Shape, Symbol, TensorType, ValueId, Verified, verify};

use super::StepError;
use super::remake::Remake;

/// The sequences of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// How many.
    pub sequences: u64,
    /// Positions of each.
    pub context: u64,
}

impl Batch {
    /// Tokens of all sequences.
    pub fn tokens(self) -> u64 {
        self.sequences.saturating_mul(self.context)
    }
}

/// The program for whole batches. Its inputs are those of the program without `seq`, `pos` and `rows`.
pub(super) fn whole(program: &Verified<Program>, batch: Batch) -> Result<Verified<Program>, StepError> {
    let tokens = batch.tokens();
    let bound = program.bind(&[(Symbol::new("n"), tokens), (Symbol::new("m"), tokens)]);
    let last = bound.graphs.len() - 1;
    let graphs = bound.graphs.iter().enumerate();
    let graphs = graphs.map(|(index, graph)| rewrite(graph, index == last, batch)).collect::<Result<_, _>>()?;
    Ok(verify(Program { graphs, ..bound })?)
}

fn rewrite(graph: &Graph, is_entry: bool, batch: Batch) -> Result<Graph, StepError> {
    let remake = Remake::new(graph, |remake, id| {
        let value = &graph.values[id];
        match &value.def {
            Def::Input if is_entry => Ok(places(&graph.label(id), batch)
                .map(|places| remake.b.constant(value.name.as_deref(), value.ty.clone(), places))),
            Def::Op { op: Op::KvAppend(_), inputs } if matches!(graph.values[inputs[0]].def, Def::State { .. }) => {
                let refuse = || StepError::Cache { value: graph.label(id), ty: value.ty.clone() };
                let x = remake.of(inputs[1]);
                cached(&mut remake.b, &value.ty, x, batch)?.map(Some).ok_or_else(refuse)
            }
            // All rows, in order.
            Def::Op { op: Op::Gather(_), inputs } if is_entry && graph.label(inputs[1]) == "rows" => {
                Ok(Some(remake.of(inputs[0])))
            }
            _ => Ok(None),
        }
    })?;
    let mut made = remake.finish(graph);
    made.updates.clear();
    Ok(made.compact())
}

/// The values that an input of the entry has for whole sequences.
fn places(input: &str, Batch { sequences, context }: Batch) -> Option<Vec<f64>> {
    let of = |value: &dyn Fn(u64, u64) -> u64| {
        let places = (0..sequences).flat_map(|sequence| (0..context).map(move |position| (sequence, position)));
        Some(places.map(|(sequence, position)| value(sequence, position) as f64).collect())
    };
    match input {
        "seq" => of(&|sequence, _| sequence),
        "pos" => of(&|_, position| position),
        "rows" => of(&|sequence, position| sequence * context + position),
        _ => None,
    }
}

/// Keys or values `[n, kv_heads, d]` as the cache `[sequences, kv_heads, context, d]` that holds nothing else; nothing if the cache is no f32 of that
/// size.
fn cached(b: &mut Builder, cache: &TensorType, x: ValueId, batch: Batch) -> Result<Option<ValueId>, StepError> {
    let sizes: Option<Vec<u64>> = cache.shape.dims().iter().map(|dim| dim.as_const()).collect();
    let [sequences, kv_heads, context, d] = *sizes.as_deref().unwrap_or_default() else { return Ok(None) };
    if cache.dtype != DType::F32 || (sequences, context) != (batch.sequences, batch.context) {
        return Ok(None);
    }
    let tokens = b.op(Reshape { shape: Shape::of(&[sequences, context, kv_heads, d]) }, &[x])?;
    Ok(Some(b.op(Permute { axes: [0, 2, 1, 3].into_iter().collect() }, &[tokens])?))
}
