//! A group of row-wise ops as a loop nest.
//!
//! One unit is one row: the outer dimensions of the group's values are the row space, the innermost is the column. Of a few ops one unit is one
//! element, and the columns are what it is summed over. An op becomes an expression
//! of the column; a reduction becomes a stage whose scalar the expressions behind it use; what others read becomes a store. Expressions are
//! computed anew in each stage that needs them: their operands are in the first-level cache by then, and no row needs room of its own.

use std::collections::HashMap;

use ir::graph::Def;
use ir::op::Real;
use ir::{DType, Dim, Op, Shape, TensorType, ValueId};

use crate::lower::cpu;
use crate::nest::{BinaryOp, Elem, ExprId, Extent, Index, NestBuilder, NestErrors, ReduceOp, UnaryOp, Verified, Write};
use crate::schedule::group::is_by_element;
use crate::schedule::in_place;
use crate::schedule::view::{View, aligned, contiguous};
use crate::schedule::{Group, Schedule};

/// A nest, and which value each of its buffers holds.
#[derive(Debug)]
pub struct Lowered {
    /// The kernel.
    pub nest: Verified,
    /// The base value behind each buffer, in the order of the nest's buffers.
    pub buffers: Vec<ValueId>,
}

/// Why a group has no nest.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum NestLowerError {
    /// No code can be generated for an op on these types.
    #[error("no CPU kernel for `{op}` of `{value}` on {ty}: neither the kernel table nor the code generator has it")]
    NoKernel {
        /// The op.
        op: &'static str,
        /// The value.
        value: String,
        /// Its type.
        ty: String,
    },
    /// The nest breaks a rule. Always a bug in tritter.
    #[error("internal error: the nest of {values} is not well formed:\n{errors}")]
    Invalid {
        /// The values of the group.
        values: String,
        /// What is wrong with it.
        errors: NestErrors,
    },
}

/// The nest that computes a group.
///
/// # Errors
///
/// If an op has no row-wise form.
pub fn lower(schedule: &Schedule<'_>, group: &Group, name: &str) -> Result<Lowered, NestLowerError> {
    lower_with(schedule, group, name, "")
}

/// The same with a prefix for the names of all buffers, so that they differ from those of other code in one kernel.
///
/// # Errors
///
/// As [`lower`].
pub fn lower_with(
    schedule: &Schedule<'_>,
    group: &Group,
    name: &str,
    prefix: &'static str,
) -> Result<Lowered, NestLowerError> {
    let first = group.values[0];
    let rows = row_space(schedule, first);
    let mut ctx = Ctx {
        schedule,
        group,
        builder: NestBuilder::new(name),
        prefix,
        rank: rows.len() + 1,
        buffers: Vec::new(),
        buffer_of: HashMap::new(),
        scalars: HashMap::new(),
    };
    for dim in &rows {
        let extent = ctx.extent(dim);
        ctx.builder.outer(extent);
    }
    match in_place::overwritten(schedule, group).is_empty() {
        true => group.outputs.iter().try_for_each(|&value| ctx.store(value))?,
        false => ctx.store_together(&group.outputs)?,
    }
    let Ctx { builder, buffers, .. } = ctx;
    let labels: Vec<String> = group.outputs.iter().map(|&value| schedule.graph.label(value)).collect();
    let nest = builder.finish().map_err(|errors| NestLowerError::Invalid { values: labels.join(", "), errors })?;
    Ok(Lowered { nest, buffers })
}

fn row_space(schedule: &Schedule<'_>, value: ValueId) -> Vec<Dim> {
    let shape = &schedule.graph.ty(value).shape;
    match schedule.graph.op(value) {
        Some(op) if is_by_element(op) => shape.dims().to_vec(),
        _ => shape.outer().to_vec(),
    }
}

struct Ctx<'a, 'g> {
    schedule: &'a Schedule<'g>,
    group: &'a Group,
    builder: NestBuilder,
    /// What the names of buffers begin with.
    prefix: &'static str,
    /// Dimensions of the group's values: the row space and the column.
    rank: usize,
    buffers: Vec<ValueId>,
    buffer_of: HashMap<ValueId, usize>,
    /// Scalars of the unit that are computed already: a reduction of a value, by what it is for.
    scalars: HashMap<(ValueId, &'static str), ExprId>,
}

impl Ctx<'_, '_> {
    fn ty(&self, value: ValueId) -> &TensorType {
        self.schedule.graph.ty(value)
    }

    fn extent(&mut self, dim: &Dim) -> Extent {
        match dim {
            Dim::Const(size) => Extent::Const(*size),
            Dim::Sym(symbol) => self.builder.dim(symbol.name()),
        }
    }

    fn columns(&mut self, value: ValueId) -> Extent {
        match self.ty(value).shape.last().cloned() {
            Some(dim) => self.extent(&dim),
            None => Extent::Const(1),
        }
    }

    fn unsupported(&self, value: ValueId) -> NestLowerError {
        NestLowerError::NoKernel {
            op: self.schedule.graph.op(value).map_or("value", Op::name),
            value: self.schedule.graph.label(value),
            ty: self.ty(value).to_string(),
        }
    }

    /// The buffer of a base value.
    fn buffer(&mut self, base: ValueId, write: bool) -> Result<usize, NestLowerError> {
        if let Some(&buffer) = self.buffer_of.get(&base) {
            return Ok(buffer);
        }
        let ty = self.ty(base).clone();
        let k = ty.shape.last_const().unwrap_or(1);
        let is_stored = self.schedule.views.is_weight_time(base);
        let dtype = if is_stored { cpu::stored_dtype_of(self.schedule.graph, base) } else { ty.dtype };
        let elem = match dtype {
            DType::F32 => Elem::F32,
            DType::F16 => Elem::F16,
            DType::BF16 => Elem::BF16,
            DType::I8 => Elem::I8,
            DType::I32 => Elem::I32,
            DType::Q8 => Elem::Q8 { k },
            DType::Q4 => Elem::Q4 { k },
            DType::T2 => return Err(self.unsupported(base)),
        };
        let name = buffer_name(&self.schedule.graph.label(base), self.buffers.len());
        let name = format!("{}{name}", self.prefix);
        let buffer = match (write, is_stored) {
            (true, _) => self.builder.output(&name, elem),
            (false, true) => self.builder.weight(&name, elem),
            (false, false) => self.builder.input(&name, elem),
        };
        self.buffers.push(base);
        self.buffer_of.insert(base, buffer);
        Ok(buffer)
    }

    /// The index of (unit, column + `shift`) in a view of `shape` whose dimensions are aligned with the group's.
    fn index(&self, shape: &Shape, strides: &[i64], offset: i64, shift: i64) -> Index {
        let strides = aligned(shape, strides, self.rank);
        let (&column, outer) = strides.split_last().expect("the rank counts the column");
        let mut index = Index::at(offset + shift * column);
        for (axis, &stride) in outer.iter().enumerate().filter(|(_, stride)| **stride != 0) {
            index = index.outer(axis, stride);
        }
        if column == 0 { index } else { index.column(column) }
    }

    /// The expression of `value` at (unit, column + `shift`).
    fn expr(&mut self, value: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        if self.group.values.contains(&value) { self.compute(value, shift) } else { self.load(value, shift) }
    }

    fn load(&mut self, value: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let graph = self.schedule.graph;
        if let Def::Const(constant) = &graph.values[value].def
            && let [single] = *constant.0
        {
            return Ok(self.constant(self.ty(value).dtype, single));
        }
        let view = self.schedule.views.resolve(value);
        let shape = graph.ty(value).shape.clone();
        self.load_view(&view, &shape, shift)
    }

    fn load_view(&mut self, view: &View, shape: &Shape, shift: i64) -> Result<ExprId, NestLowerError> {
        let buffer = self.buffer(view.base, false)?;
        if self.ty(view.base).dtype.is_row_format() {
            // Views keep the rows of row formats, so strides count whole records.
            let k = self.ty(view.base).shape.last_const().unwrap_or(1).max(1) as i64;
            let strides: Vec<i64> = view.strides.iter().map(|stride| stride / k).collect();
            let outer = Shape::new(shape.outer().iter().cloned());
            let mut padded = outer.0.to_vec();
            padded.push(Dim::Const(1));
            let record = self.index(&Shape::new(padded), &strides, view.offset / k, 0);
            // A record of one value is repeated beside wider ones.
            let is_single = shape.last() == Some(&Dim::Const(1));
            let element = if is_single { Index::at(0) } else { Index::at(shift).column(1) };
            return Ok(self.builder.load_row(buffer, record, element));
        }
        let index = self.index(shape, &view.strides, view.offset, shift);
        Ok(self.builder.load(buffer, index))
    }

    fn constant(&mut self, dtype: DType, value: Real) -> ExprId {
        match dtype {
            DType::I32 | DType::I8 | DType::T2 => self.builder.i32(value.get() as i32),
            _ => self.builder.f32(value.get() as f32),
        }
    }

    /// The expression of a value of the group.
    fn compute(&mut self, value: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let graph = self.schedule.graph;
        let (op, inputs) = match &graph.values[value].def {
            Def::Op { op, inputs } => (op.clone(), inputs.clone()),
            _ => return self.load(value, shift),
        };
        Ok(match op {
            Op::Add(_) => self.binary(BinaryOp::Add, inputs[0], inputs[1], shift)?,
            Op::Sub(_) => self.binary(BinaryOp::Sub, inputs[0], inputs[1], shift)?,
            Op::Mul(_) => self.binary(BinaryOp::Mul, inputs[0], inputs[1], shift)?,
            Op::Div(_) => self.binary(BinaryOp::Div, inputs[0], inputs[1], shift)?,
            Op::Minimum(_) => self.binary(BinaryOp::Min, inputs[0], inputs[1], shift)?,
            Op::Maximum(_) => self.binary(BinaryOp::Max, inputs[0], inputs[1], shift)?,
            Op::Less(_) => {
                let less = self.binary(BinaryOp::Less, inputs[0], inputs[1], shift)?;
                let (one, zero) = (self.builder.i32(1), self.builder.i32(0));
                self.builder.select(less, one, zero)
            }
            Op::Select(_) => {
                let condition = self.expr(inputs[0], shift)?;
                let zero = self.builder.i32(0);
                let is_zero = self.builder.binary(BinaryOp::Equal, condition, zero);
                let (lhs, rhs) = (self.expr(inputs[1], shift)?, self.expr(inputs[2], shift)?);
                self.builder.select(is_zero, rhs, lhs)
            }
            Op::Neg(_) => self.unary(UnaryOp::Neg, inputs[0], shift)?,
            Op::Abs(_) => self.unary(UnaryOp::Abs, inputs[0], shift)?,
            Op::Exp(_) => self.unary(UnaryOp::Exp, inputs[0], shift)?,
            Op::Log(_) => self.unary(UnaryOp::Log, inputs[0], shift)?,
            Op::Sqrt(_) => self.unary(UnaryOp::Sqrt, inputs[0], shift)?,
            Op::Rsqrt(_) => self.unary(UnaryOp::Rsqrt, inputs[0], shift)?,
            Op::Sin(_) => self.unary(UnaryOp::Sin, inputs[0], shift)?,
            Op::Cos(_) => self.unary(UnaryOp::Cos, inputs[0], shift)?,
            Op::Round(_) => self.unary(UnaryOp::Round, inputs[0], shift)?,
            Op::Relu(_) => self.unary(UnaryOp::Relu, inputs[0], shift)?,
            Op::Relu2(_) => {
                let x = self.expr(inputs[0], shift)?;
                self.builder.relu2(x)
            }
            Op::Sigmoid(_) => {
                let x = self.expr(inputs[0], shift)?;
                self.builder.sigmoid(x)
            }
            Op::Silu(_) => {
                let x = self.expr(inputs[0], shift)?;
                self.builder.silu(x)
            }
            Op::Relu2Mul(_) => {
                let gate = self.expr(inputs[0], shift)?;
                let gate = self.builder.relu2(gate);
                let up = self.expr(inputs[1], shift)?;
                self.builder.mul(gate, up)
            }
            Op::Cast(_) => self.cast(value, inputs[0], shift)?,
            Op::Dequantize(_) => self.expr(inputs[0], shift)?,
            Op::Unpack(_) => return Err(self.unsupported(value)),
            Op::Gather(_) => self.gather(inputs[0], inputs[1], shift)?,
            Op::Sum(_) => self.reduction(ReduceOp::Sum, inputs[0])?,
            Op::Max(_) => self.reduction(ReduceOp::Max, inputs[0])?,
            Op::Argmax(_) => self.reduction(ReduceOp::ArgMax, inputs[0])?,
            Op::Mean(_) => self.mean(inputs[0])?,
            Op::Softmax(_) => self.softmax(inputs[0], shift)?,
            Op::SumTo(_) => self.sum_to(value, inputs[0])?,
            Op::CrossEntropy(_) => self.cross_entropy(inputs[0], inputs[1])?,
            Op::CrossEntropyGradient(_) => self.cross_entropy_gradient([inputs[0], inputs[1], inputs[2]], shift)?,
            Op::KvRows(_) => self.kv_rows([inputs[0], inputs[1], inputs[2]], shift)?,
            Op::RmsNorm(norm) => self.rms_norm(value, &[inputs[0]], inputs[1], norm.eps, shift)?,
            Op::RmsNormQuantize(norm) => self.rms_norm(value, &[inputs[0]], inputs[1], norm.eps, shift)?,
            Op::AddRmsNorm(norm) => self.rms_norm(value, &inputs[..2], inputs[2], norm.eps, shift)?,
            Op::LayerNorm(norm) => self.layer_norm(value, &[inputs[0]], [inputs[1], inputs[2]], norm.eps, shift)?,
            Op::AddLayerNorm(norm) => self.layer_norm(value, &inputs[..2], [inputs[2], inputs[3]], norm.eps, shift)?,
            Op::Quantize(_) => self.expr(inputs[0], shift)?,
            Op::Reshape(_) | Op::Permute(_) | Op::Slice(_) | Op::Broadcast(_) => self.movement(value, shift)?,
            Op::Rope(_)
            | Op::Concat(_)
            | Op::Matmul(_)
            | Op::QuantizedMatmul(_)
            | Op::Gemm(_)
            | Op::QuantizeGroups(_)
            | Op::TernaryMatmul(_)
            | Op::TernaryMatmulBase3(_)
            | Op::Ternarise(_)
            | Op::TernaryScale(_)
            | Op::RowThreshold(_)
            | Op::KvAppend(_)
            | Op::Sample(_)
            | Op::Attention(_)
            | Op::TernaryMatmulTransposed(_)
            | Op::AttentionLse(_)
            | Op::AttentionQueryGradient(_)
            | Op::AttentionCacheGradient(_)
            | Op::UnpackInCall(_)
            | Op::ScatterAdd(_)
            | Op::Scan(_)
            | Op::Stacked(_)
            | Op::Repeat(_) => return Err(self.unsupported(value)),
        })
    }

    fn unary(&mut self, op: UnaryOp, x: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let x = self.expr(x, shift)?;
        Ok(self.builder.unary(op, x))
    }

    fn binary(&mut self, op: BinaryOp, lhs: ValueId, rhs: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let lhs = self.expr(lhs, shift)?;
        let rhs = self.expr(rhs, shift)?;
        Ok(self.builder.binary(op, lhs, rhs))
    }

    fn cast(&mut self, value: ValueId, x: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let (from, to) = (self.ty(x).dtype, self.ty(value).dtype);
        let x = self.expr(x, shift)?;
        let is_int = |dtype| matches!(dtype, DType::I8 | DType::I32);
        Ok(match (is_int(from), is_int(to)) {
            (true, false) => self.builder.unary(UnaryOp::ToF32, x),
            (false, true) => self.builder.unary(UnaryOp::ToI32, x),
            // Loads widen, and stores narrow: nothing is left to do in between.
            _ => x,
        })
    }

    /// `table[ids[unit]]`.
    fn gather(&mut self, table: ValueId, ids: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let ids_view = self.schedule.views.resolve(ids);
        let ids_buffer = self.buffer(ids_view.base, false)?;
        let id = self.builder.load(ids_buffer, Index::at(ids_view.offset).outer(0, ids_view.strides[0]));
        let view = self.schedule.views.resolve(table);
        let limit = self.ty(table).shape.0[0].clone();
        let limit = self.extent(&limit);
        let buffer = self.buffer(view.base, false)?;
        // One column is repeated beside wider values of the group.
        let is_single = self.ty(table).shape.0[1] == Dim::Const(1);
        let column = if is_single { 0 } else { view.strides[1] };
        let index = Index::at(view.offset + shift * column).gather(id, limit, view.strides[0]);
        Ok(self.builder.load(buffer, index.column(column)))
    }

    fn reduction(&mut self, op: ReduceOp, x: ValueId) -> Result<ExprId, NestLowerError> {
        if let Some(&scalar) = self.scalars.get(&(x, op.name())) {
            return Ok(scalar);
        }
        let body = self.expr(x, 0)?;
        let len = self.columns(x);
        let scalar = self.builder.reduce(op, len, body);
        self.scalars.insert((x, op.name()), scalar);
        Ok(scalar)
    }

    fn columns_f32(&mut self, value: ValueId) -> ExprId {
        let len = self.columns(value);
        match len {
            Extent::Const(size) => self.builder.f32(size as f32),
            Extent::Dim(_) => {
                let size = self.builder.extent(len);
                self.builder.unary(UnaryOp::ToF32, size)
            }
        }
    }

    fn mean(&mut self, x: ValueId) -> Result<ExprId, NestLowerError> {
        let sum = self.reduction(ReduceOp::Sum, x)?;
        let count = self.columns_f32(x);
        Ok(self.builder.div(sum, count))
    }

    fn softmax(&mut self, x: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let max = self.reduction(ReduceOp::Max, x)?;
        let power = |ctx: &mut Self, shift| {
            let x = ctx.expr(x, shift)?;
            let difference = ctx.builder.sub(x, max);
            Ok(ctx.builder.unary(UnaryOp::Exp, difference))
        };
        let sum = match self.scalars.get(&(x, "softmax")) {
            Some(&sum) => sum,
            None => {
                let body = power(self, 0)?;
                let len = self.columns(x);
                let sum = self.builder.reduce(ReduceOp::Sum, len, body);
                self.scalars.insert((x, "softmax"), sum);
                sum
            }
        };
        let power = power(self, shift)?;
        Ok(self.builder.div(power, sum))
    }

    /// The sum over the axes along which the result is repeated in `x`, if these lie in memory as one.
    fn sum_to(&mut self, value: ValueId, x: ValueId) -> Result<ExprId, NestLowerError> {
        let (out, shape) = (self.ty(value).shape.clone(), self.ty(x).shape.clone());
        let view = self.schedule.views.resolve(x);
        let missing = shape.rank() - out.rank();
        let mut index = Index::at(view.offset);
        let mut run: Option<(Dim, i64)> = None;
        for (axis, (dim, &stride)) in shape.dims().iter().zip(&view.strides).enumerate() {
            if missing <= axis && out.0[axis - missing] == *dim {
                index = index.outer(axis - missing, stride);
                continue;
            }
            run = Some(match run {
                None => (dim.clone(), stride),
                Some((Dim::Const(outer), outer_stride)) => match dim {
                    Dim::Const(inner)
                        if i64::try_from(*inner).ok().and_then(|n| n.checked_mul(stride)) == Some(outer_stride) =>
                    {
                        (Dim::Const(outer.saturating_mul(*inner)), stride)
                    }
                    _ => return Err(self.unsupported(value)),
                },
                Some(_) => return Err(self.unsupported(value)),
            });
        }
        let (len, stride) = run.unwrap_or((Dim::Const(1), 0));
        let len = self.extent(&len);
        let buffer = self.buffer(view.base, false)?;
        let part = self.builder.load(buffer, index.column(stride));
        Ok(self.builder.reduce(ReduceOp::Sum, len, part))
    }

    /// The number that a vector holds for the unit's first coordinate.
    fn of_row(&mut self, vector: ValueId) -> Result<ExprId, NestLowerError> {
        let view = self.schedule.views.resolve(vector);
        let buffer = self.buffer(view.base, false)?;
        Ok(self.builder.load(buffer, Index::at(view.offset).outer(0, view.strides[0])))
    }

    /// `value` where `0 <= index < limit`, else 0.
    fn inside(&mut self, index: ExprId, limit: Extent, value: ExprId) -> ExprId {
        let (first, limit) = (self.builder.i32(0), self.builder.extent(limit));
        let is_below = self.builder.binary(BinaryOp::Less, index, first);
        let is_within = self.builder.binary(BinaryOp::Less, index, limit);
        let nothing = self.builder.f32(0.0);
        let value = self.builder.select(is_within, value, nothing);
        self.builder.select(is_below, nothing, value)
    }

    /// `log(sum(exp(x - max))) + max - x[target]` of each row of logits.
    fn cross_entropy(&mut self, logits: ValueId, targets: ValueId) -> Result<ExprId, NestLowerError> {
        let (view, shape) = (self.schedule.views.resolve(logits), self.ty(logits).shape.clone());
        let columns = self.columns(logits);
        let (largest, sum) =
            match (self.scalars.get(&(logits, ReduceOp::Max.name())), self.scalars.get(&(logits, "softmax"))) {
                (Some(&largest), Some(&sum)) => (largest, sum),
                _ => {
                    let x = self.load_view(&view, &shape, 0)?;
                    let largest = self.builder.reduce(ReduceOp::Max, columns, x);
                    let difference = self.builder.sub(x, largest);
                    let power = self.builder.unary(UnaryOp::Exp, difference);
                    let sum = self.builder.reduce(ReduceOp::Sum, columns, power);
                    // What the gradient in the same nest needs as well.
                    self.scalars.insert((logits, ReduceOp::Max.name()), largest);
                    self.scalars.insert((logits, "softmax"), sum);
                    (largest, sum)
                }
            };
        let id = self.of_row(targets)?;
        let buffer = self.buffer(view.base, false)?;
        let index = Index::at(view.offset).outer(0, view.strides[0]).gather(id, columns, view.strides[1]);
        let hit = self.builder.load(buffer, index);
        let log = self.builder.unary(UnaryOp::Log, sum);
        let total = self.builder.add(log, largest);
        let loss = self.builder.sub(total, hit);
        Ok(self.inside(id, columns, loss))
    }

    /// `(softmax(logits) - one_hot(target)) * dy`.
    fn cross_entropy_gradient(
        &mut self,
        [logits, targets, dy]: [ValueId; 3],
        shift: i64,
    ) -> Result<ExprId, NestLowerError> {
        let part = self.softmax(logits, shift)?;
        let (id, dy) = (self.of_row(targets)?, self.of_row(dy)?);
        let (column, by) = (self.builder.column(), self.builder.i32(i32::try_from(shift).unwrap_or(i32::MAX)));
        let column = self.builder.add(column, by);
        let is_hit = self.builder.binary(BinaryOp::Equal, column, id);
        let one = self.builder.f32(1.0);
        let rest = self.builder.sub(part, one);
        let difference = self.builder.select(is_hit, rest, part);
        let gradient = self.builder.mul(difference, dy);
        let columns = self.columns(logits);
        Ok(self.inside(id, columns, gradient))
    }

    /// `cache[seq[token], head, pos[token]]`.
    fn kv_rows(&mut self, [cache, seq, pos]: [ValueId; 3], shift: i64) -> Result<ExprId, NestLowerError> {
        let (view, ty) = (self.schedule.views.resolve(cache), self.ty(cache).clone());
        let (seq, pos) = (self.of_row(seq)?, self.of_row(pos)?);
        let (sequences, context) = (self.extent(&ty.shape.0[0]), self.extent(&ty.shape.0[2]));
        let buffer = self.buffer(view.base, false)?;
        // Rows of a row format are counted, not their elements.
        let unit = if ty.dtype.is_row_format() { ty.shape.last_const().unwrap_or(1).max(1) as i64 } else { 1 };
        let row = Index::at(view.offset / unit)
            .gather(seq, sequences, view.strides[0] / unit)
            .outer(1, view.strides[1] / unit)
            .gather(pos, context, view.strides[2] / unit);
        let value = match ty.dtype.is_row_format() {
            true => self.builder.load_row(buffer, row, Index::at(shift).column(1)),
            false => {
                let mut index = row.column(view.strides[3]);
                index.offset += shift * view.strides[3];
                self.builder.load(buffer, index)
            }
        };
        let value = self.inside(seq, sequences, value);
        Ok(self.inside(pos, context, value))
    }

    /// The sum of the residual branches that a norm adds, or its one input.
    fn total(&mut self, terms: &[ValueId], shift: i64) -> Result<ExprId, NestLowerError> {
        let mut total = self.expr(terms[0], shift)?;
        for &term in &terms[1..] {
            let term = self.expr(term, shift)?;
            total = self.builder.add(total, term);
        }
        Ok(total)
    }

    /// A scalar of the unit that belongs to `value`, computed at its first use.
    fn scalar_of(
        &mut self,
        value: ValueId,
        what: &'static str,
        make: impl FnOnce(&mut Self) -> Result<ExprId, NestLowerError>,
    ) -> Result<ExprId, NestLowerError> {
        if let Some(&scalar) = self.scalars.get(&(value, what)) {
            return Ok(scalar);
        }
        let scalar = make(self)?;
        self.scalars.insert((value, what), scalar);
        Ok(scalar)
    }

    /// `1 / sqrt(mean(body) + eps)` as a scalar stage.
    fn inverse_root(&mut self, value: ValueId, body: ExprId, eps: Real) -> ExprId {
        let len = self.columns(value);
        let sum = self.builder.reduce(ReduceOp::Sum, len, body);
        let count = self.columns_f32(value);
        let mean = self.builder.div(sum, count);
        let eps = self.builder.f32(eps.get() as f32);
        let shifted = self.builder.add(mean, eps);
        let inverse = self.builder.unary(UnaryOp::Rsqrt, shifted);
        self.builder.scalar(inverse)
    }

    fn rms_norm(
        &mut self,
        value: ValueId,
        terms: &[ValueId],
        weight: ValueId,
        eps: Real,
        shift: i64,
    ) -> Result<ExprId, NestLowerError> {
        let inverse = self.scalar_of(value, "rms", |ctx| {
            let x = ctx.total(terms, 0)?;
            let square = ctx.builder.mul(x, x);
            Ok(ctx.inverse_root(value, square, eps))
        })?;
        let x = self.total(terms, shift)?;
        let scaled = self.builder.mul(x, inverse);
        let weight = self.expr(weight, shift)?;
        Ok(self.builder.mul(scaled, weight))
    }

    fn layer_norm(
        &mut self,
        value: ValueId,
        terms: &[ValueId],
        [weight, bias]: [ValueId; 2],
        eps: Real,
        shift: i64,
    ) -> Result<ExprId, NestLowerError> {
        let mean = self.scalar_of(value, "mean", |ctx| {
            let x = ctx.total(terms, 0)?;
            let len = ctx.columns(value);
            let sum = ctx.builder.reduce(ReduceOp::Sum, len, x);
            let count = ctx.columns_f32(value);
            let mean = ctx.builder.div(sum, count);
            Ok(ctx.builder.scalar(mean))
        })?;
        let inverse = self.scalar_of(value, "deviation", |ctx| {
            let x = ctx.total(terms, 0)?;
            let centred = ctx.builder.sub(x, mean);
            let square = ctx.builder.mul(centred, centred);
            Ok(ctx.inverse_root(value, square, eps))
        })?;
        let x = self.total(terms, shift)?;
        let centred = self.builder.sub(x, mean);
        let scaled = self.builder.mul(centred, inverse);
        let weight = self.expr(weight, shift)?;
        let weighted = self.builder.mul(scaled, weight);
        let bias = self.expr(bias, shift)?;
        Ok(self.builder.add(weighted, bias))
    }

    /// A movement op that is stored: its elements, read through the index that it would otherwise have been.
    fn movement(&mut self, value: ValueId, shift: i64) -> Result<ExprId, NestLowerError> {
        let graph = self.schedule.graph;
        let operand = graph.operands(value)[0];
        let shape = graph.ty(value).shape.clone();
        let source = self.schedule.views.resolve(operand);
        let view = match graph.op(value) {
            Some(Op::Permute(permute)) => {
                let strides = permute.axes.iter().map(|&axis| source.strides[axis as usize]).collect();
                View { strides, ..source }
            }
            Some(Op::Slice(slice)) => {
                let offset = source.offset + slice.start as i64 * source.strides[slice.axis as usize];
                View { offset, ..source }
            }
            Some(Op::Broadcast(_)) => {
                let from = &graph.ty(operand).shape;
                View { strides: aligned(from, &source.strides, shape.rank()), ..source }
            }
            Some(Op::Reshape(_)) => {
                match crate::schedule::view::reshape(&graph.ty(operand).shape, &source.strides, &shape) {
                    Some(strides) => View { strides, ..source },
                    None => return Err(self.unsupported(value)),
                }
            }
            _ => return Err(self.unsupported(value)),
        };
        self.load_view(&view, &shape, shift)
    }

    /// Appends the stages that store an output.
    fn store(&mut self, value: ValueId) -> Result<(), NestLowerError> {
        let graph = self.schedule.graph;
        match graph.op(value) {
            Some(Op::Rope(_)) => return self.store_rope(value, value),
            Some(Op::Cast(_)) if matches!(graph.op(graph.operands(value)[0]), Some(Op::Rope(_))) => {
                let rope = graph.operands(value)[0];
                if self.group.values.contains(&rope) {
                    return self.store_rope(rope, value);
                }
            }
            Some(Op::Concat(concat)) => return self.store_concat(value, concat.axis),
            _ => {}
        }
        let body = self.compute(value, 0)?;
        let buffer = self.buffer(value, true)?;
        if self.ty(value).dtype.is_row_format() {
            let record = self.record_index(value);
            self.builder.store_row(buffer, record, body);
            return Ok(());
        }
        if graph.op(value).is_some_and(is_by_element) {
            let dims = self.ty(value).shape.dims().iter().cloned();
            let shape: Shape = dims.chain([Dim::Const(1)]).collect();
            let index = self.index(&shape, &contiguous(&shape), 0, 0);
            self.builder.store(Extent::Const(1), buffer, index, body);
            return Ok(());
        }
        let len = self.columns(value);
        let index = self.own_index(value, 0);
        self.builder.store(len, buffer, index, body);
        Ok(())
    }

    /// Values of one shape in one stage, which may lie where the stage reads.
    fn store_together(&mut self, values: &[ValueId]) -> Result<(), NestLowerError> {
        let mut writes = Vec::new();
        for &value in values {
            let body = self.compute(value, 0)?;
            let (buffer, index) = (self.buffer(value, true)?, self.own_index(value, 0));
            writes.push(Write { buffer, index, value: body });
        }
        let len = self.columns(values[0]);
        self.builder.store_all(len, writes);
        Ok(())
    }

    fn own_index(&self, value: ValueId, shift: i64) -> Index {
        let shape = &self.ty(value).shape;
        self.index(shape, &contiguous(shape), 0, shift)
    }

    fn record_index(&self, value: ValueId) -> Index {
        let outer = Shape::new(self.ty(value).shape.outer().iter().cloned());
        let mut index = Index::at(0);
        for (axis, stride) in contiguous(&outer).into_iter().enumerate() {
            index = index.outer(axis, stride);
        }
        index
    }

    /// Both halves in one stage, since each needs both halves of the input; stored as `value`, which is the rotated row or a cast of it.
    fn store_rope(&mut self, rope: ValueId, value: ValueId) -> Result<(), NestLowerError> {
        let inputs: Vec<ValueId> = self.schedule.graph.operands(rope).to_vec();
        let half = (self.ty(value).shape.last_const().unwrap_or(0) / 2) as i64;
        let low = self.expr(inputs[0], 0)?;
        let high = self.expr(inputs[0], half)?;
        let (cos, sin) = (self.table(inputs[1])?, self.table(inputs[2])?);
        let low_cos = self.builder.mul(low, cos);
        let high_sin = self.builder.mul(high, sin);
        let high_cos = self.builder.mul(high, cos);
        let low_sin = self.builder.mul(low, sin);
        let first = self.builder.sub(low_cos, high_sin);
        let second = self.builder.add(high_cos, low_sin);
        let buffer = self.buffer(value, true)?;
        let (low_index, high_index) = (self.own_index(value, 0), self.own_index(value, half));
        let writes =
            vec![Write { buffer, index: low_index, value: first }, Write { buffer, index: high_index, value: second }];
        self.builder.store_all(Extent::Const(half as u64), writes);
        Ok(())
    }

    /// The cosine or sine table `[n, d / 2]` seen from rows `[n, heads]`.
    fn table(&mut self, table: ValueId) -> Result<ExprId, NestLowerError> {
        let view = self.schedule.views.resolve(table);
        let buffer = self.buffer(view.base, false)?;
        let index = Index::at(view.offset).outer(0, view.strides[0]).column(view.strides[1]);
        Ok(self.builder.load(buffer, index))
    }

    fn store_concat(&mut self, value: ValueId, axis: u32) -> Result<(), NestLowerError> {
        if axis as usize + 1 != self.ty(value).shape.rank() {
            return Err(self.unsupported(value));
        }
        let inputs: Vec<ValueId> = self.schedule.graph.operands(value).to_vec();
        let buffer = self.buffer(value, true)?;
        let mut start = 0;
        for input in inputs {
            let body = self.expr(input, 0)?;
            let len = self.columns(input);
            let index = self.own_index(value, start);
            self.builder.store(len, buffer, index, body);
            start += self.ty(input).shape.last_const().unwrap_or(0) as i64;
        }
        Ok(())
    }
}

/// A name for an argument, from the name of its value: letters, digits and `_`, and unlike all others by its position.
fn buffer_name(label: &str, position: usize) -> String {
    let plain: String = label.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    match plain.starts_with(|c: char| c.is_ascii_alphabetic()) {
        true => format!("{plain}_{position}"),
        false => format!("v_{plain}_{position}"),
    }
}
