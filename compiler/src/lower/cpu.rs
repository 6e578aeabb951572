//! The choices for a CPU: which row of the kernel table computes an op, and with which sizes.

use std::ops::RangeInclusive;

use ir::op::attention::Attention;
use ir::op::matmul::Form;
use ir::packing::{ABSMAX_FLOOR, TernaryLayout};
use ir::plan::Expr;
use ir::{DType, Graph, Op, Shape, TensorType, ValueId};
use kernels::{Family, Isa, KernelDesc};

use crate::egraph::cost;

/// Why no row of the table fits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no {target} kernel for `{op}` of `{value}` on ({types}): {reason}; the closest: {closest}")]
pub struct NoKernel {
    /// The target's features.
    pub target: Box<str>,
    /// The op.
    pub op: &'static str,
    /// The value.
    pub value: String,
    /// The types of its inputs.
    pub types: String,
    /// What does not fit.
    pub reason: String,
    /// Rows of the same family.
    pub closest: Box<str>,
}

/// The kernel of an op for calls of a range of tokens: among those that the target can run, the best instruction set, and then the row made for
/// the fewest tokens.
///
/// # Errors
///
/// If there is none.
pub fn choose(
    graph: &Graph,
    value: ValueId,
    tokens: &RangeInclusive<u64>,
    isa: Isa,
) -> Result<&'static KernelDesc, NoKernel> {
    let Wanted { family, inputs, output, layout, tokens } = wanted(graph, value, tokens);
    let fits = |desc: &&KernelDesc| {
        desc.family == family
            && desc.inputs == inputs
            && desc.output == output
            && desc.layout == layout
            && desc.requires.isa.runs_on(isa)
            && desc.tokens.start() <= tokens.start()
            && tokens.end() <= desc.tokens.end()
    };
    let closest = kernels::TABLE.iter().filter(|desc| desc.family == family && desc.requires.isa.runs_on(isa));
    let closest: Vec<&str> = closest.map(|desc| desc.name).collect();
    let refuse = |reason: String| refuse(graph, value, isa.to_string(), reason, &closest);
    let best = kernels::TABLE.iter().filter(fits).min_by_key(|desc| {
        (std::cmp::Reverse(desc.requires.isa.rank()), desc.tokens.end() - desc.tokens.start(), desc.name)
    });
    let best = best.ok_or_else(|| refuse("no row has these types".to_owned()))?;
    let size = |name: &str| dim(graph, value, name, 0).and_then(|expr| expr.as_const()).unwrap_or(0);
    match kernels::extent::broken_limit(best.family, best.inputs, &|name| i64::try_from(size(name)).unwrap_or(i64::MAX))
    {
        Some(limit) => Err(refuse(limit)),
        None => Ok(best),
    }
}

/// What a row of a table must be to compute an op.
pub(crate) struct Wanted {
    pub(crate) family: Family,
    pub(crate) inputs: Vec<DType>,
    pub(crate) output: DType,
    /// How its ternary weights are packed.
    pub(crate) layout: Option<TernaryLayout>,
    /// How many rows of activations its calls have.
    pub(crate) tokens: RangeInclusive<u64>,
}

/// What computes an op in calls of a range of tokens.
pub(crate) fn wanted(graph: &Graph, value: ValueId, tokens: &RangeInclusive<u64>) -> Wanted {
    let operands = graph.operands(value);
    let dtype = |position: usize| graph.ty(operands[position]).dtype;
    let op = graph.op(value).expect("groups of the table are ops");
    let (family, inputs, output): (Family, Vec<DType>, DType) = match op {
        Op::TernaryMatmul(_) | Op::TernaryMatmulBase3(_) => {
            (Family::TernaryMatmul, vec![dtype(0), DType::T2], DType::F32)
        }
        Op::TernaryMatmulTransposed(_) => (Family::TernaryMatmulTransposed, vec![dtype(0), DType::T2], DType::F32),
        Op::UnpackInCall(_) => (Family::Unpack, vec![DType::T2], DType::BF16),
        // Weights in half precision are widened when they are packed.
        Op::Matmul(_) => (Family::DenseMatmul, vec![DType::F32, stored_dtype(dtype(1))], DType::F32),
        Op::QuantizedMatmul(_) => (Family::DenseMatmul, vec![dtype(0), dtype(1)], DType::F32),
        Op::Gemm(gemm) => (Family::Gemm, vec![dtype(0), dtype(1)], gemm.to),
        Op::Attention(_) => (Family::Attention, vec![DType::F32, dtype(1), dtype(2)], DType::F32),
        Op::KvAppend(_) => (Family::KvAppend, vec![DType::F32], dtype(0)),
        Op::Sample(_) => (Family::Sample, vec![DType::F32], DType::I32),
        Op::AttentionLse(_) => (Family::AttentionLse, vec![dtype(0), dtype(1)], DType::F32),
        Op::AttentionQueryGradient(_) => (Family::QueryGradient, vec![dtype(0), dtype(1)], DType::F32),
        Op::AttentionCacheGradient(_) => (Family::CacheGradient, vec![dtype(0), dtype(1)], DType::F32),
        Op::ScatterAdd(_) => (Family::ScatterAdd, vec![DType::F32], DType::F32),
        Op::TernaryScale(_) | Op::RowThreshold(_) => (Family::MeanAbs, vec![dtype(0)], DType::F32),
        _ => (Family::DenseMatmul, Vec::new(), DType::F32),
    };
    let tokens = match op {
        Op::TernaryMatmul(_) | Op::TernaryMatmulBase3(_) | Op::TernaryMatmulTransposed(_) | Op::Matmul(_) => {
            rows(graph.ty(operands[0]), tokens)
        }
        _ => tokens.clone(),
    };
    Wanted { family, inputs, output, layout: cost::packed_operand(op).map(|(_, layout)| layout), tokens }
}

/// The error that no row fits.
pub(crate) fn refuse(graph: &Graph, value: ValueId, target: String, reason: String, closest: &[&str]) -> NoKernel {
    let types = graph.operands(value).iter().map(|&operand| graph.ty(operand).to_string());
    NoKernel {
        target: target.into(),
        op: graph.op(value).map_or("", Op::name),
        value: graph.label(value),
        types: types.collect::<Vec<_>>().join(", "),
        reason,
        closest: closest.join(", ").into(),
    }
}

/// How many rows a value has in calls of a range of tokens: as many for each token as the other outer dimensions say.
fn rows(ty: &TensorType, tokens: &RangeInclusive<u64>) -> RangeInclusive<u64> {
    let (each, symbols) = Shape::product(ty.shape.outer());
    let each = each.max(1);
    if symbols.is_empty() { each..=each } else { tokens.start() * each..=tokens.end().saturating_mul(each) }
}

/// The type that weights of a dense product are stored in.
fn stored_dtype(dtype: DType) -> DType {
    if dtype == DType::F16 { DType::F32 } else { dtype }
}

/// The type that a weight-time value is stored in. All its readers share the one tensor, so what a dense product wants holds for the others:
/// a tied embedding is gathered from, too.
pub fn stored_dtype_of(graph: &Graph, value: ValueId) -> DType {
    let dtype = graph.ty(value).dtype;
    let is_product_of_it =
        |user: ValueId| matches!(graph.op(user), Some(Op::Matmul(_))) && graph.operands(user).get(1) == Some(&value);
    if graph.values.ids().any(is_product_of_it) { stored_dtype(dtype) } else { dtype }
}

/// The value of a kernel's dim, by its name in the signature. `x_stride` is that of [`Op::KvAppend`]'s `x`.
pub fn dim(graph: &Graph, value: ValueId, name: &str, x_stride: i64) -> Option<Expr> {
    let operands = graph.operands(value);
    let size = |position: usize, axis: usize| Expr::from(&graph.ty(operands[position]).shape.0[axis]);
    let constant = |value: u64| Some(Expr::from(value));
    if let Some(attention) = attention_of(graph.op(value)?) {
        return match name {
            "n" => Some(size(0, 0)),
            "heads" => Some(size(0, 1)),
            "hd" => Some(size(0, 2)),
            "seqs" => Some(size(1, 0)),
            "kv_heads" => Some(size(1, 1)),
            "ctx" => Some(size(1, 2)),
            "window" => constant(u64::from(attention.window)),
            "sinks" => constant(u64::from(attention.sinks)),
            "scale_bits" => constant(u64::from((attention.scale.get() as f32).to_bits())),
            _ => None,
        };
    }
    match (graph.op(value)?, name) {
        (
            Op::TernaryMatmul(_)
            | Op::TernaryMatmulBase3(_)
            | Op::TernaryMatmulTransposed(_)
            | Op::Matmul(_)
            | Op::QuantizedMatmul(_),
            "n",
        ) => Some(Expr::product(graph.ty(operands[0]).shape.outer())),
        (Op::TernaryMatmul(_) | Op::TernaryMatmulBase3(_) | Op::TernaryMatmulTransposed(_) | Op::Matmul(_), "k") => {
            Some(size(1, 1))
        }
        // The weights may be cut into groups; the activations never are.
        (Op::QuantizedMatmul(_), "k") => graph.ty(operands[0]).shape.last().map(Expr::from),
        (Op::QuantizedMatmul(_), "group") => graph.ty(operands[1]).shape.last().map(Expr::from),
        (
            Op::TernaryMatmul(_)
            | Op::TernaryMatmulBase3(_)
            | Op::TernaryMatmulTransposed(_)
            | Op::Matmul(_)
            | Op::QuantizedMatmul(_),
            "m",
        ) => Some(size(1, 0)),
        (Op::UnpackInCall(_), "k") => Some(size(0, 1)),
        (Op::UnpackInCall(_), "n") => Some(size(0, 0)),
        (Op::Gemm(gemm), "n") => Some(size(0, 1 - gemm.form.contracted().0)),
        (Op::Gemm(gemm), "k") => Some(size(0, gemm.form.contracted().0)),
        (Op::Gemm(gemm), "m") => Some(size(1, 1 - gemm.form.contracted().1)),
        (Op::Gemm(gemm), "form") => constant(Form::ALL.iter().position(|form| *form == gemm.form)? as u64),
        (Op::KvAppend(_), "n") => Some(size(1, 0)),
        (Op::KvAppend(_), "seqs") => Some(size(0, 0)),
        (Op::KvAppend(_), "ctx") => Some(size(0, 2)),
        (Op::KvAppend(_), "kv_heads") => Some(size(0, 1)),
        (Op::KvAppend(_), "hd") => Some(size(0, 3)),
        (Op::Sample(_), "n") => Some(size(0, 0)),
        (Op::Sample(_), "v") => Some(size(0, 1)),
        (Op::ScatterAdd(_), "n") => Some(size(0, 0)),
        (Op::ScatterAdd(_), "width") => Some(size(0, 1)),
        (Op::ScatterAdd(scatter), "rows") => scatter.shape.dims().first().map(Expr::from),
        (Op::TernaryScale(_), "n") => constant(1),
        (Op::TernaryScale(_), "k") => Some(Expr::product(graph.ty(operands[0]).shape.dims())),
        (Op::TernaryScale(_), "least_bits") => constant(u64::from(ABSMAX_FLOOR.to_bits())),
        (Op::RowThreshold(_), "n") => Some(size(0, 0)),
        (Op::RowThreshold(_), "k") => Some(size(0, 1)),
        (Op::RowThreshold(_), "least_bits") => constant(0),
        (Op::KvAppend(_), "x_stride") => constant(u64::try_from(x_stride).ok()?),
        _ => None,
    }
}

/// The attention that an op is or is of: what is seen, and the scale of its scores.
fn attention_of(op: &Op) -> Option<Attention> {
    let (scale, window, sinks) = match op {
        Op::Attention(op) => (op.scale, op.window, op.sinks),
        Op::AttentionLse(op) => (op.scale, op.window, op.sinks),
        Op::AttentionQueryGradient(op) => (op.scale, op.window, op.sinks),
        Op::AttentionCacheGradient(op) => (op.scale, op.window, op.sinks),
        _ => return None,
    };
    Some(Attention { scale, window, sinks })
}
