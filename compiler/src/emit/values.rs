//! The values of expressions in a stage, and the loads and stores between them and memory.
//!
//! What depends on no column is emitted once, before the stage's loops; so is the part of every address that no column moves.

use cranelift_codegen::ir::{ConstantData, InstBuilder, MemFlagsData, Value, types};
use ir::entity::Id;

use super::clif::Emitter;
use super::kept::Row;
use super::lanes::{Width, bitcast};
use crate::nest::math::{self, Arithmetic};
use crate::nest::{Axis, Elem, Expr, ExprId, Extent, Index, Type, Write};

/// Values by expression, as far as they are emitted.
pub(super) type Values = Vec<Option<Value>>;

/// Which columns a value is for: `column + shift`, and the three after it if it is four wide.
#[derive(Clone, Copy)]
pub(super) struct At {
    /// An i64 that is not negative.
    pub(super) column: Value,
    pub(super) shift: i64,
    pub(super) width: Width,
}

impl At {
    pub(super) fn one(column: Value, shift: i64) -> Self {
        Self { column, shift, width: Width::One }
    }

    pub(super) fn four(column: Value, shift: i64) -> Self {
        Self { column, shift, width: Width::Four }
    }

    /// One of the columns, by itself.
    fn lane(self, lane: u8) -> Self {
        Self { shift: self.shift + i64::from(lane), width: Width::One, ..self }
    }
}

/// What is emitted before the loops of a stage.
pub(super) struct Scope {
    /// Values that depend on no column.
    row: Values,
    /// The same in all lanes of a vector, where columns use them.
    splat: Values,
    /// For loads that depend on the column: the address without it.
    address: Values,
    /// For loads from a record that no column chooses: its numbers.
    numbers: Vec<Option<Numbers>>,
    /// The expressions that depend on the column, operands first.
    pub(super) columnar: Vec<ExprId>,
    /// What the row on the stack is for one of them.
    pub(super) row_of: Option<Row>,
}

/// The numbers beside the codes of a record.
#[derive(Clone, Copy)]
struct Numbers {
    scale: Value,
    /// Of q4.
    minimum: Option<Value>,
}

/// Buffers have no alignment, and every access is the caller's promise.
fn flags() -> MemFlagsData {
    MemFlagsData::new().with_notrap()
}

/// For a load at a column. One from a place that is only read may stand anywhere in its turn of the loop: beside its use, where it needs a
/// register least.
fn column_flags(may_change: bool) -> MemFlagsData {
    if may_change { flags() } else { flags().with_readonly().with_can_move() }
}

impl Emitter<'_> {
    /// Emits what `roots` need before any column.
    pub(super) fn open(&mut self, roots: &[ExprId], row_of: Option<Row>) -> Scope {
        let nest = self.nest;
        let known = match row_of {
            Some(Row::Read(id)) => Some(id),
            Some(Row::Written(_)) | None => None,
        };
        let reached = nest.reachable_until(roots, known);
        let (columnar, row): (Vec<_>, Vec<_>) = reached.into_iter().partition(|id| nest.is_columnar(*id));
        let count = nest.exprs.len();
        let mut scope = Scope {
            row: vec![None; count],
            splat: vec![None; count],
            address: vec![None; count],
            numbers: vec![None; count],
            columnar,
            row_of,
        };
        let anywhere = self.int(0);
        for id in row {
            let value = self.compute(&scope, &[], id, At::one(anywhere, 0));
            scope.row[id.index()] = Some(value);
        }
        for position in 0..scope.columnar.len() {
            let id = scope.columnar[position];
            match &nest.exprs[id] {
                Expr::Load { buffer, index } => {
                    scope.address[id.index()] = Some(self.row_address(&scope, *buffer, index));
                }
                Expr::LoadRow { buffer, record, .. } => {
                    let address = self.row_address(&scope, *buffer, record);
                    scope.address[id.index()] = Some(address);
                    if !self.gathers_by_column(record) && record.column_stride() == 0 {
                        scope.numbers[id.index()] = Some(self.numbers(nest.buffers[*buffer].elem, address));
                    }
                }
                _ => {}
            }
        }
        let operands: Vec<_> = scope.columnar.iter().flat_map(|id| nest.exprs[*id].operands()).collect();
        for id in operands.into_iter().chain(roots.iter().copied()) {
            if let (Some(value), None) = (scope.row[id.index()], scope.splat[id.index()]) {
                let splat = self.splat(nest.type_of(id), value);
                scope.splat[id.index()] = Some(splat);
            }
        }
        scope
    }

    fn splat(&mut self, ty: Type, value: Value) -> Value {
        let value = match ty {
            Type::Bool => {
                let bit = self.builder.ins().uextend(types::I32, value);
                self.builder.ins().ineg(bit)
            }
            Type::F32 | Type::I32 => value,
        };
        self.builder.ins().splat(Width::Four.ty(ty), value)
    }

    /// The values of all expressions that depend on the column.
    pub(super) fn columns(&mut self, scope: &Scope, at: At) -> Values {
        let mut values = vec![None; self.nest.exprs.len()];
        for &id in &scope.columnar {
            values[id.index()] = Some(match scope.row_of {
                Some(Row::Read(known)) if known == id => self.load_kept(at),
                row_of => {
                    let value = self.compute(scope, &values, id, at);
                    if row_of == Some(Row::Written(id)) {
                        self.store_kept(at, value);
                    }
                    value
                }
            });
        }
        values
    }

    /// The value of one expression.
    pub(super) fn value(&mut self, scope: &Scope, at: At, id: ExprId) -> Value {
        let values = self.columns(scope, at);
        self.operand(scope, &values, id, at.width)
    }

    /// A value that is emitted already.
    pub(super) fn operand(&mut self, scope: &Scope, values: &[Option<Value>], id: ExprId, width: Width) -> Value {
        let values = match (self.nest.is_columnar(id), width) {
            (true, _) => values,
            (false, Width::One) => &scope.row,
            (false, Width::Four) => &scope.splat,
        };
        values[id.index()].expect("operands are emitted before their users")
    }

    fn typed<A>(&mut self, scope: &Scope, values: &[Option<Value>], id: ExprId, width: Width) -> math::Value<A>
    where
        A: Arithmetic<F32 = Value, I32 = Value, Bool = Value>,
    {
        let value = self.operand(scope, values, id, width);
        match self.nest.type_of(id) {
            Type::F32 => math::Value::F32(value),
            Type::I32 => math::Value::I32(value),
            Type::Bool => math::Value::Bool(value),
        }
    }

    fn compute(&mut self, scope: &Scope, values: &[Option<Value>], id: ExprId, at: At) -> Value {
        let nest = self.nest;
        match &nest.exprs[id] {
            Expr::F32 { bits } => self.lanes(at.width).f32(f32::from_bits(*bits)),
            Expr::I32(value) => self.lanes(at.width).i32(*value),
            Expr::Column => self.column(at),
            Expr::Outer(axis) => self.builder.ins().ireduce(types::I32, self.coordinates[*axis]),
            Expr::Dim(dim) => self.builder.ins().ireduce(types::I32, self.dims[*dim]),
            Expr::Scalar(scalar) => self.scalars[scalar.index()].expect("a verified nest sets scalars before use"),
            Expr::Load { buffer, index } => self.load(scope, values, id, *buffer, index, at),
            Expr::LoadRow { buffer, record, element } => self.load_row(scope, values, id, *buffer, record, element, at),
            Expr::Unary(op, x) => {
                let x = self.typed(scope, values, *x, at.width);
                untyped(math::unary(&mut self.lanes(at.width), *op, x))
            }
            Expr::Binary(op, lhs, rhs) => {
                let lhs = self.typed(scope, values, *lhs, at.width);
                let rhs = self.typed(scope, values, *rhs, at.width);
                untyped(math::binary(&mut self.lanes(at.width), *op, lhs, rhs))
            }
            Expr::Select(condition, lhs, rhs) => {
                let condition = self.operand(scope, values, *condition, at.width);
                let lhs = self.typed(scope, values, *lhs, at.width);
                let rhs = self.typed(scope, values, *rhs, at.width);
                untyped(math::select(&mut self.lanes(at.width), condition, lhs, rhs))
            }
        }
    }

    /// The column as i32.
    pub(super) fn column(&mut self, at: At) -> Value {
        let column = self.builder.ins().ireduce(types::I32, at.column);
        match at.width {
            Width::One => self.builder.ins().iadd_imm_s(column, at.shift),
            Width::Four => {
                let lanes: Vec<u8> = (0..4_i32).flat_map(|lane| (lane + at.shift as i32).to_le_bytes()).collect();
                let lanes = self.builder.func.dfg.constants.insert(ConstantData::from(&lanes[..]));
                let lanes = self.builder.ins().vconst(types::I32X4, lanes);
                let column = self.builder.ins().splat(types::I32X4, column);
                self.builder.ins().iadd(column, lanes)
            }
        }
    }

    fn gathers_by_column(&self, index: &Index) -> bool {
        index.gathered().any(|id| self.nest.is_columnar(id))
    }

    /// `value` clamped to `0 ..= limit - 1`, as i64.
    fn clamp(&mut self, value: Value, limit: Extent) -> Value {
        let value = self.builder.ins().sextend(types::I64, value);
        let limit = self.extent(limit).value;
        let last = self.builder.ins().iadd_imm_s(limit, -1);
        let zero = self.int(0);
        let value = self.builder.ins().smin(value, last);
        self.builder.ins().smax(value, zero)
    }

    /// The part of an index, in elements, that no column moves.
    fn row_index(&mut self, scope: &Scope, index: &Index) -> Value {
        let mut sum = self.int(index.offset);
        for term in &index.terms {
            let value = match term.axis {
                Axis::Outer(axis) => self.coordinates[axis],
                Axis::Gather { value, limit } if !self.nest.is_columnar(value) => {
                    let value = self.operand(scope, &[], value, Width::One);
                    self.clamp(value, limit)
                }
                Axis::Column | Axis::Gather { .. } => continue,
            };
            let scaled = self.builder.ins().imul_imm_s(value, term.stride);
            sum = self.builder.ins().iadd(sum, scaled);
        }
        sum
    }

    /// The part of an element's address that no column moves.
    pub(super) fn row_address(&mut self, scope: &Scope, buffer: usize, index: &Index) -> Value {
        let sum = self.row_index(scope, index);
        let bytes = self.builder.ins().imul_imm_s(sum, self.nest.buffers[buffer].elem.stride() as i64);
        self.builder.ins().iadd(self.bases[buffer], bytes)
    }

    /// What the column adds to an index, times `scale`. `at` is one wide; the gathered values are those of `lane` in values of `width`.
    fn column_part(
        &mut self,
        values: &[Option<Value>],
        index: &Index,
        at: At,
        (width, lane): (Width, u8),
        scale: i64,
    ) -> Value {
        let column = self.builder.ins().iadd_imm_s(at.column, at.shift);
        let mut sum = self.builder.ins().imul_imm_s(column, index.column_stride() * scale);
        for term in &index.terms {
            if let Axis::Gather { value, limit } = term.axis
                && self.nest.is_columnar(value)
            {
                let mut value = values[value.index()].expect("operands are emitted before their users");
                if width == Width::Four {
                    value = self.builder.ins().extractlane(value, lane);
                }
                let clamped = self.clamp(value, limit);
                let scaled = self.builder.ins().imul_imm_s(clamped, term.stride * scale);
                sum = self.builder.ins().iadd(sum, scaled);
            }
        }
        sum
    }

    /// The address of the first of neighbouring elements, and the offset to add.
    fn run_address(&mut self, row: Value, at: At, bytes: i64) -> (Value, i32) {
        let moved = self.builder.ins().imul_imm_s(at.column, bytes);
        (self.builder.ins().iadd(row, moved), (at.shift * bytes) as i32)
    }

    fn is_run(&self, index: &Index) -> bool {
        index.column_stride() == 1 && !self.gathers_by_column(index)
    }

    fn load(
        &mut self,
        scope: &Scope,
        values: &[Option<Value>],
        id: ExprId,
        buffer: usize,
        index: &Index,
        at: At,
    ) -> Value {
        let elem = self.nest.buffers[buffer].elem;
        if !self.nest.is_columnar(id) {
            let address = self.row_address(scope, buffer, index);
            return self.load_one(elem, flags(), address, 0);
        }
        let flags = column_flags(self.nest.may_change(buffer));
        let row = scope.address[id.index()].expect("addresses are emitted before the columns");
        if self.is_run(index) {
            let (address, offset) = self.run_address(row, at, elem.stride() as i64);
            return match at.width {
                Width::One => self.load_one(elem, flags, address, offset),
                Width::Four => self.load_four(elem, flags, address, offset),
            };
        }
        self.by_lane(elem.value_type(), at, |this, at, lane| {
            let moved = this.column_part(values, index, at, lane, elem.stride() as i64);
            let address = this.builder.ins().iadd(row, moved);
            this.load_one(elem, flags, address, 0)
        })
    }

    /// A value put together from single columns; `one` gets the column and which lane of which width it is.
    fn by_lane(&mut self, ty: Type, at: At, mut one: impl FnMut(&mut Self, At, (Width, u8)) -> Value) -> Value {
        match at.width {
            Width::One => one(self, at, (Width::One, 0)),
            Width::Four => {
                let first = one(self, at.lane(0), (Width::Four, 0));
                let vector = self.builder.ins().splat(Width::Four.ty(ty), first);
                (1..4).fold(vector, |vector, lane| {
                    let value = one(self, at.lane(lane), (Width::Four, lane));
                    self.builder.ins().insertlane(vector, value, lane)
                })
            }
        }
    }

    fn load_one(&mut self, elem: Elem, flags: MemFlagsData, address: Value, offset: i32) -> Value {
        let ins = self.builder.ins();
        match elem {
            Elem::F32 => ins.load(types::F32, flags, address, offset),
            Elem::I32 => ins.load(types::I32, flags, address, offset),
            Elem::I8 => ins.sload8(types::I32, flags, address, offset),
            Elem::BF16 => {
                let bits = ins.uload16(types::I32, flags, address, offset);
                math::bf16_to_f32(&mut self.lanes(Width::One), bits)
            }
            Elem::F16 => {
                let bits = ins.uload16(types::I32, flags, address, offset);
                math::f16_to_f32(&mut self.lanes(Width::One), bits)
            }
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest loads records by LoadRow"),
        }
    }

    fn load_four(&mut self, elem: Elem, flags: MemFlagsData, address: Value, offset: i32) -> Value {
        let ins = self.builder.ins();
        match elem {
            Elem::F32 if self.is_sse2 => {
                // Cranelift 0.135 folds an unaligned load into the `cmpps` of SSE, which faults; a bitcast keeps the load on its own.
                let bits = ins.load(types::I32X4, flags, address, offset);
                bitcast(&mut self.builder, types::F32X4, bits)
            }
            Elem::F32 => ins.load(types::F32X4, flags, address, offset),
            Elem::I32 => ins.load(types::I32X4, flags, address, offset),
            Elem::I8 => self.load_four_bytes(flags, address, offset),
            Elem::BF16 => {
                let bits = ins.uload16x4(flags, address, offset);
                math::bf16_to_f32(&mut self.lanes(Width::Four), bits)
            }
            Elem::F16 => {
                let bits = ins.uload16x4(flags, address, offset);
                math::f16_to_f32(&mut self.lanes(Width::Four), bits)
            }
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest loads records by LoadRow"),
        }
    }

    /// Four signed bytes as i32.
    fn load_four_bytes(&mut self, flags: MemFlagsData, address: Value, offset: i32) -> Value {
        let word = self.builder.ins().load(types::I32, flags, address, offset);
        let vector = self.builder.ins().scalar_to_vector(types::I32X4, word);
        let bytes = bitcast(&mut self.builder, types::I8X16, vector);
        let halves = self.builder.ins().swiden_low(bytes);
        self.builder.ins().swiden_low(halves)
    }

    /// Loads the numbers of the record at `address`.
    fn numbers(&mut self, elem: Elem, address: Value) -> Numbers {
        let codes = elem.row_format().map_or(0, |format| format.code_bytes()) as i32;
        let scale = self.builder.ins().load(types::F32, flags(), address, codes);
        let minimum =
            matches!(elem, Elem::Q4 { .. }).then(|| self.builder.ins().load(types::F32, flags(), address, codes + 4));
        Numbers { scale, minimum }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of the expression, and where it is evaluated")]
    fn load_row(
        &mut self,
        scope: &Scope,
        values: &[Option<Value>],
        id: ExprId,
        buffer: usize,
        record: &Index,
        element: &Index,
        at: At,
    ) -> Value {
        let elem = self.nest.buffers[buffer].elem;
        let row = match scope.address[id.index()] {
            Some(address) => address,
            None => self.row_address(scope, buffer, record),
        };
        let first = self.row_index(scope, element);
        let numbers = scope.numbers[id.index()];
        if let (Some(numbers), Elem::Q8 { .. }, Width::Four, true) = (numbers, elem, at.width, self.is_run(element)) {
            let start = self.builder.ins().iadd(row, first);
            let (address, offset) = self.run_address(start, at, 1);
            let flags = column_flags(self.nest.may_change(buffer));
            let codes = self.load_four_bytes(flags, address, offset);
            let scale = self.builder.ins().splat(types::F32X4, numbers.scale);
            let mut lanes = self.lanes(Width::Four);
            let codes = lanes.int_to_f32(codes);
            return lanes.mul(codes, scale);
        }
        self.by_lane(Type::F32, at, |this, at, lane| {
            let moved = this.column_part(values, record, at, lane, elem.stride() as i64);
            let address = this.builder.ins().iadd(row, moved);
            let numbers = numbers.unwrap_or_else(|| this.numbers(elem, address));
            let moved = this.column_part(values, element, at, lane, 1);
            let element = this.builder.ins().iadd(first, moved);
            let Some(minimum) = numbers.minimum else {
                let place = this.builder.ins().iadd(address, element);
                let code = this.builder.ins().sload8(types::I32, flags(), place, 0);
                let mut lanes = this.lanes(Width::One);
                let code = lanes.int_to_f32(code);
                return lanes.mul(code, numbers.scale);
            };
            let byte = this.builder.ins().ushr_imm_s(element, 1);
            let place = this.builder.ins().iadd(address, byte);
            let pair = this.builder.ins().uload8(types::I32, flags(), place, 0);
            let odd = this.builder.ins().band_imm_s(element, 1);
            let shift = this.builder.ins().ishl_imm_s(odd, 2);
            let code = this.builder.ins().ushr(pair, shift);
            let code = this.builder.ins().band_imm_s(code, 15);
            let mut lanes = this.lanes(Width::One);
            let code = lanes.int_to_f32(code);
            let scaled = lanes.mul(code, numbers.scale);
            lanes.add(minimum, scaled)
        })
    }

    /// Stores the value of a place; `row` is the part of its address that no column moves.
    pub(super) fn store(&mut self, values: &[Option<Value>], write: &Write, row: Value, at: At, value: Value) {
        let elem = self.nest.buffers[write.buffer].elem;
        let bytes = elem.stride() as i64;
        let index = &write.index;
        match at.width {
            Width::Four if self.is_run(index) => {
                let (address, offset) = self.run_address(row, at, bytes);
                self.store_four(elem, value, address, offset);
            }
            Width::One if self.is_run(index) => {
                let (address, offset) = self.run_address(row, at, bytes);
                self.store_one(elem, value, address, offset);
            }
            Width::One => {
                let moved = self.column_part(values, index, at, (Width::One, 0), bytes);
                let address = self.builder.ins().iadd(row, moved);
                self.store_one(elem, value, address, 0);
            }
            Width::Four => {
                for lane in 0..4 {
                    let moved = self.column_part(values, index, at.lane(lane), (Width::Four, lane), bytes);
                    let address = self.builder.ins().iadd(row, moved);
                    let value = self.builder.ins().extractlane(value, lane);
                    self.store_one(elem, value, address, 0);
                }
            }
        }
    }

    fn store_one(&mut self, elem: Elem, value: Value, address: Value, offset: i32) {
        match elem {
            Elem::F32 | Elem::I32 => {
                self.builder.ins().store(flags(), value, address, offset);
            }
            Elem::I8 => {
                let lanes = &mut self.lanes(Width::One);
                let (least, greatest) = (lanes.i32(-128), lanes.i32(127));
                let value = math::int_max(lanes, value, least);
                let value = math::int_min(lanes, value, greatest);
                self.builder.ins().istore8(flags(), value, address, offset);
            }
            Elem::BF16 => {
                let bits = math::f32_to_bf16(&mut self.lanes(Width::One), value);
                self.builder.ins().istore16(flags(), bits, address, offset);
            }
            Elem::F16 => {
                let bits = math::f32_to_f16(&mut self.lanes(Width::One), value);
                self.builder.ins().istore16(flags(), bits, address, offset);
            }
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest stores records by StoreRow"),
        }
    }

    fn store_four(&mut self, elem: Elem, value: Value, address: Value, offset: i32) {
        match elem {
            Elem::F32 | Elem::I32 => {
                self.builder.ins().store(flags(), value, address, offset);
            }
            Elem::I8 => {
                // Both narrowings saturate.
                let halves = self.builder.ins().snarrow(value, value);
                let bytes = self.builder.ins().snarrow(halves, halves);
                let words = bitcast(&mut self.builder, types::I32X4, bytes);
                let word = self.builder.ins().extractlane(words, 0);
                self.builder.ins().store(flags(), word, address, offset);
            }
            Elem::BF16 => {
                let bits = math::f32_to_bf16(&mut self.lanes(Width::Four), value);
                self.store_four_halves(bits, address, offset);
            }
            Elem::F16 => {
                let bits = math::f32_to_f16(&mut self.lanes(Width::Four), value);
                self.store_four_halves(bits, address, offset);
            }
            Elem::Q8 { .. } | Elem::Q4 { .. } => unreachable!("a verified nest stores records by StoreRow"),
        }
    }

    /// Stores the low halves of four i32.
    fn store_four_halves(&mut self, bits: Value, address: Value, offset: i32) {
        // The narrowing saturates signed numbers: sign-extended halves go through unchanged.
        let mut lanes = self.lanes(Width::Four);
        let shifted = lanes.shift_left(bits, 16);
        let signed = lanes.shift_right_signed(shifted, 16);
        let halves = self.builder.ins().snarrow(signed, signed);
        let words = bitcast(&mut self.builder, types::I64X2, halves);
        let word = self.builder.ins().extractlane(words, 0);
        self.builder.ins().store(flags(), word, address, offset);
    }
}

/// A value of the arithmetic as plain Cranelift value.
fn untyped<A>(value: math::Value<A>) -> Value
where
    A: Arithmetic<F32 = Value, I32 = Value, Bool = Value>,
{
    match value {
        math::Value::F32(value) | math::Value::I32(value) | math::Value::Bool(value) => value,
    }
}
