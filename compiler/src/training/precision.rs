//! Dense products and attention in bf16: the forward pass of a step before it is differentiated.
//!
//! ```text
//! matmul(x, w)            cast(gemm(cast(x, bf16), cast(w, bf16), form=@nt, to=bf16), f32)
//! attention(q, k, v, ..)  cast(cast(attention(cast(cast(q, bf16), f32), cast(k, bf16), cast(v, bf16), ..), bf16), f32)
//! ```
//!
//! Products are of bf16, their sums of f32 and their results of bf16, as with the mixed precision of Micikevicius et al., 2018; all else stays f32: norms,
//! softmax, the residual stream, gradients that add up, parameters and their moments. The gradients of [`Gemm`] are of its kind, and those of
//! attention over keys and values in bf16 round their other operands too, so the backward pass follows. Because this
//! comes first, what layers leave for the backward pass is the operands in bf16, half of what they would be.

use std::fmt;
use std::str::FromStr;

use ir::entity::Id;
use ir::graph::{Def, Graph, Program};
use ir::op::elementwise::Cast;
use ir::op::matmul::{Form, Gemm};
use ir::op::movement::Reshape;
use ir::{BuildError, Builder, DType, Op, Shape, ValueId, Verified, verify};

use super::StepError;
use super::remake::Remake;

/// What dense products are computed in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// f32, in the one order that all targets share.
    #[default]
    F32,
    /// bf16 with sums in f32: on tensor cores, where a GPU has them.
    Bf16,
}

impl Precision {
    /// All of them.
    pub const ALL: [Precision; 2] = [Precision::F32, Precision::Bf16];
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Precision::F32 => "f32",
            Precision::Bf16 => "bf16",
        })
    }
}

impl FromStr for Precision {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|precision| precision.to_string() == text);
        found.ok_or_else(|| format!("`{text}` is no precision; f32 and bf16 are"))
    }
}

/// The program with its dense products and its attention in bf16, but for those with ternary parameters that are not trained: these are exact in integers.
pub(super) fn in_bf16(
    program: &Verified<Program>,
    wanted: &dyn Fn(&str) -> bool,
) -> Result<Verified<Program>, StepError> {
    let graphs = program.graphs.iter().map(|graph| of_graph(graph, wanted)).collect::<Result<_, BuildError>>()?;
    Ok(verify(Program { graphs, ..Program::clone(program) })?)
}

fn of_graph(graph: &Graph, wanted: &dyn Fn(&str) -> bool) -> Result<Graph, BuildError> {
    let remake = Remake::new(graph, |remake, id| match (graph.op(id), graph.operands(id)) {
        (Some(Op::Matmul(_)), &[x, w]) if !is_frozen(graph, w, wanted) => {
            let (x, w) = (remake.of(x), remake.of(w));
            product(&mut remake.b, graph.values[id].name.as_deref(), x, w, &graph.ty(id).shape).map(Some)
        }
        (Some(Op::Attention(_)), _) => attention(remake, graph, id).map(Some),
        _ => Ok::<_, BuildError>(None),
    })?;
    Ok(remake.finish(graph))
}

/// Attention whose keys and values are read in bf16: what rows of tensor cores read, of whole batches too. Queries and results are rounded so, too, as
/// the backward pass reads them: gradients are then those of what was computed, and half of it is kept.
fn attention(remake: &mut Remake, graph: &Graph, id: ValueId) -> Result<ValueId, BuildError> {
    let op = graph.op(id).expect("an attention is an op").clone();
    let mut operands: Vec<ValueId> = graph.operands(id).iter().map(|&operand| remake.of(operand)).collect();
    let b = &mut remake.b;
    for cache in &mut operands[1..3] {
        if b.ty(*cache).dtype == DType::F32 {
            *cache = b.op(Cast { to: DType::BF16 }, &[*cache])?;
        }
    }
    let q = b.op(Cast { to: DType::BF16 }, &[operands[0]])?;
    operands[0] = b.op(Cast { to: DType::F32 }, &[q])?;
    let y = b.op(op, &operands)?;
    let y = b.op(Cast { to: DType::BF16 }, &[y])?;
    let wide = Cast { to: DType::F32 };
    match &graph.values[id].name {
        Some(name) => b.named(name, wide, &[y]),
        None => b.op(wide, &[y]),
    }
}

/// Whether weights are ternary and not trained: a parameter that is stored so, or one that is made so as it is stored.
fn is_frozen(graph: &Graph, w: ValueId, wanted: &dyn Fn(&str) -> bool) -> bool {
    match (graph.op(w), graph.operands(w)) {
        (Some(Op::Unpack(_)), &[packed]) => match (graph.op(packed), graph.operands(packed)) {
            (Some(Op::Ternarise(_)), &[real]) => matches!(&graph.values[real].def, Def::Param { key } if !wanted(key)),
            (op, _) => op.is_none(),
        },
        (Some(Op::Mul(_) | Op::Div(_)), factors) => factors.iter().any(|&factor| is_frozen(graph, factor, wanted)),
        _ => false,
    }
}

fn product(b: &mut Builder, name: Option<&str>, x: ValueId, w: ValueId, shape: &Shape) -> Result<ValueId, BuildError> {
    let ty = b.ty(x).clone();
    let is_matrix = ty.shape.dims().len() == 2;
    let x = match (is_matrix, ty.shape.last(), Shape::product(ty.shape.outer())) {
        (false, Some(k), (n, symbols)) if symbols.is_empty() => {
            b.op(Reshape { shape: Shape::new([n.into(), k.clone()]) }, &[x])?
        }
        _ => x,
    };
    let half = |b: &mut Builder, value: ValueId| match b.ty(value).dtype {
        DType::BF16 => Ok(value),
        _ => b.op(Cast { to: DType::BF16 }, &[value]),
    };
    let operands = [half(b, x)?, half(b, w)?];
    let narrow = b.op(Gemm { form: Form::Nt, to: DType::BF16 }, &operands)?;
    let wide = Cast { to: DType::F32 };
    match (is_matrix, name) {
        (true, Some(name)) => b.named(name, wide, &[narrow]),
        (true, None) => b.op(wide, &[narrow]),
        (false, _) => {
            let rows = b.op(wide, &[narrow])?;
            b.op(Reshape { shape: shape.clone() }, &[rows])
        }
    }
}

/// The graph with less to be stored in f32, after it was differentiated:
///
/// ```text
/// cast(reshape(x), bf16)  reshape(cast(x, bf16))              and so for permute: what computes x stores it so
/// sum_to(x)               sum_to(cast(cast(x, bf16), f32))    where x is a product that nothing else reads, or is there in bf16 for a gemm
/// ```
///
/// The second rounds what is summed over the tokens, for gradients of gains and biases: each term by 2^-9 of it at most, and their sum by less, because
/// that is as often up as down.
pub(super) fn stored_narrow(graph: &Graph) -> Result<Graph, BuildError> {
    let mut readers = vec![0_usize; graph.values.len()];
    let mut is_narrow_too = vec![false; graph.values.len()];
    let operands = graph.values.ids().flat_map(|id| graph.operands(id));
    let roots = graph.outputs.iter().chain(graph.updates.iter().map(|update| &update.value));
    operands.chain(roots).for_each(|value| readers[value.index()] += 1);
    for id in graph.values.ids().filter(|&id| is_narrowing(graph, id)) {
        is_narrow_too[graph.operands(id)[0].index()] = true;
    }
    let remake = Remake::new(graph, |remake, id| match (graph.op(id), graph.operands(id)) {
        (Some(Op::Cast(_)), &[x]) if is_narrowing(graph, id) => narrow(remake, graph, x, &is_narrow_too).map(Some),
        (Some(op @ Op::SumTo(_)), &[x])
            if is_narrow_too[moved(graph, x).index()] || is_product_for_it(graph, &readers, x) =>
        {
            let terms = narrow(remake, graph, x, &is_narrow_too)?;
            let wide = remake.b.op(Cast { to: DType::F32 }, &[terms])?;
            remake.b.op(op.clone(), &[wide]).map(Some)
        }
        _ => Ok::<_, BuildError>(None),
    })?;
    Ok(remake.finish(graph))
}

/// What a value is in another shape.
fn moved(graph: &Graph, mut x: ValueId) -> ValueId {
    while let Some(Op::Reshape(_)) = graph.op(x) {
        x = graph.operands(x)[0];
    }
    x
}

/// Whether a value is a product, in another shape maybe, that is read once.
fn is_product_for_it(graph: &Graph, readers: &[usize], x: ValueId) -> bool {
    let base = moved(graph, x);
    readers[x.index()] == 1 && readers[base.index()] == 1 && matches!(graph.op(base), Some(Op::Mul(_)))
}

/// Whether a value is an f32 in bf16.
fn is_narrowing(graph: &Graph, id: ValueId) -> bool {
    let (Some(Op::Cast(_)), &[x]) = (graph.op(id), graph.operands(id)) else { return false };
    graph.ty(x).dtype == DType::F32 && graph.ty(id).dtype == DType::BF16
}

/// `x` in bf16: cast where it is computed, if that is row by row or it is there in bf16 anyway, and moved as `x` is.
fn narrow(remake: &mut Remake, graph: &Graph, x: ValueId, is_there: &[bool]) -> Result<ValueId, BuildError> {
    let (mut moves, mut base) = (Vec::new(), x);
    while let Some(op @ (Op::Reshape(_) | Op::Permute(_))) = graph.op(base) {
        moves.push(op.clone());
        base = graph.operands(base)[0];
    }
    if !is_there[base.index()] && !graph.op(base).is_some_and(is_computed_by_row) {
        (moves, base) = (Vec::new(), x);
    }
    let wide = remake.of(base);
    let narrow = remake.b.op(Cast { to: DType::BF16 }, &[wide])?;
    moves.into_iter().rev().try_fold(narrow, |x, op| remake.b.op(op, &[x]))
}

/// Whether code is generated for an op row by row, so that its result may as well be stored in another type.
fn is_computed_by_row(op: &Op) -> bool {
    matches!(op, Op::Add(_) | Op::Sub(_) | Op::Mul(_) | Op::Div(_) | Op::Neg(_) | Op::Rope(_))
}
