//! A nest as one Cranelift function: the loops over units and columns, and the stages in them.
//!
//! The 32 lanes of a sum are eight vectors of four. Columns beyond the last multiple of 32 are folded into the lanes through a stack slot, four
//! and then one at a time, so that each lane adds its columns in the written order. Nothing beyond the last column is ever touched.

use cranelift_codegen::ir::condcodes::IntCC;
use cranelift_codegen::ir::{
    AbiParam, BlockArg, Function, InstBuilder, MemFlagsData, Signature, StackSlot, StackSlotData, StackSlotKind,
    UserFuncName, Value, types,
};
use cranelift_codegen::isa::{CallConv, TargetFrontendConfig};
use cranelift_frontend::{FunctionBuilder, FunctionBuilderContext};
use ir::entity::Id;

use super::CodeTarget;
use super::kept::{self, Kept, Row};
use super::lanes::{Lanes, Width};
use super::values::{At, Scope};
use crate::nest::math::{self, Arithmetic};
use crate::nest::{Extent, LANES, ReduceOp, Stage, Type, Verified, Write};

/// Columns in one vector.
const VECTOR: i64 = 4;

/// Vectors that hold the lanes of a reduction.
const VECTORS: i64 = LANES as i64 / VECTOR;

/// A loop that reduces nothing, of at most so many operations a column, is unrolled: enough independent work for a wide CPU, little code.
const UNROLL_OPERATIONS: usize = 24;

/// Vectors that an unrolled loop handles in one turn.
const UNROLL: i64 = 4;

/// The function of a nest, before any optimisation. Its ABI is that of [`crate::emit`].
pub fn function(nest: &Verified, target: CodeTarget, frontend: TargetFrontendConfig) -> Function {
    let mut signature = Signature::new(CallConv::SystemV);
    signature.params = vec![AbiParam::new(types::I64); 4];
    let mut function = Function::with_name_signature(UserFuncName::testcase(&nest.name), signature);
    let mut context = FunctionBuilderContext::new();
    let mut builder = FunctionBuilder::new(&mut function, &mut context);

    let entry = builder.create_block();
    builder.append_block_params_for_function_params(entry);
    builder.switch_to_block(entry);
    let (args, dims) = (builder.block_params(entry)[0], builder.block_params(entry)[1]);
    let (begin, end) = (builder.block_params(entry)[2], builder.block_params(entry)[3]);
    let constant = MemFlagsData::trusted().with_readonly().with_can_move();
    let slots = |count: usize| (0..count).map(|position| (position * 8) as i32);
    let bases =
        slots(nest.buffers.len()).map(|offset| builder.ins().load(types::I64, constant, args, offset)).collect();
    let sizes: Vec<_> =
        slots(nest.dims.len()).map(|offset| builder.ins().load(types::I64, constant, dims, offset)).collect();
    let zero = builder.ins().iconst(types::I64, 0);
    let dims = sizes.into_iter().map(|size| builder.ins().smax(size, zero)).collect();

    let mut emitter = Emitter {
        nest,
        builder,
        is_sse2: target.is_sse2(),
        bases,
        dims,
        coordinates: Vec::new(),
        scalars: vec![None; nest.scalars.len()],
        kept: kept::kept(nest),
        row_slot: None,
        lanes_slot: None,
    };
    let (begin, end) = (Bound::unknown(begin), Bound::unknown(end));
    emitter.for_loop(begin, end, 1, &[], |this, unit, _| {
        this.locate(unit);
        for (position, stage) in nest.stages.iter().enumerate() {
            this.stage(position, stage);
        }
        Vec::new()
    });
    emitter.builder.ins().return_(&[]);
    emitter.builder.seal_all_blocks();
    emitter.builder.finalize(frontend);
    function
}

/// State while the body of a function is written.
pub(super) struct Emitter<'a> {
    pub(super) nest: &'a Verified,
    pub(super) builder: FunctionBuilder<'a>,
    /// Whether the target has nothing beyond SSE2.
    pub(super) is_sse2: bool,
    /// The base pointer of each buffer.
    pub(super) bases: Vec<Value>,
    /// Each size, not negative.
    pub(super) dims: Vec<Value>,
    /// The coordinates of the current unit.
    pub(super) coordinates: Vec<Value>,
    /// The scalars of the current unit that are set.
    pub(super) scalars: Vec<Option<Value>>,
    /// What the row on the stack holds between stages.
    pub(super) kept: Option<Kept>,
    /// That row, once something uses it.
    pub(super) row_slot: Option<StackSlot>,
    lanes_slot: Option<StackSlot>,
}

/// A loop bound, known or not when the code is generated.
#[derive(Clone, Copy)]
pub(super) struct Bound {
    pub(super) value: Value,
    pub(super) known: Option<i64>,
}

impl Bound {
    fn unknown(value: Value) -> Self {
        Self { value, known: None }
    }
}

impl<'a> Emitter<'a> {
    /// The arithmetic of one width, at the end of the current block.
    pub(super) fn lanes(&mut self, width: Width) -> Lanes<'_, 'a> {
        Lanes { builder: &mut self.builder, width, has_round: !self.is_sse2 }
    }

    pub(super) fn int(&mut self, value: i64) -> Value {
        self.builder.ins().iconst(types::I64, value)
    }

    pub(super) fn known(&mut self, value: i64) -> Bound {
        Bound { value: self.int(value), known: Some(value) }
    }

    pub(super) fn extent(&mut self, extent: Extent) -> Bound {
        match extent {
            Extent::Const(size) => self.known(size as i64),
            Extent::Dim(dim) => Bound::unknown(self.dims[dim]),
        }
    }

    /// The last multiple of `step`, a power of two, that is not greater.
    pub(super) fn round_down(&mut self, bound: Bound, step: i64) -> Bound {
        match bound.known {
            Some(value) => self.known(value & -step),
            None => Bound::unknown(self.builder.ins().band_imm_s(bound.value, -step)),
        }
    }

    /// Runs `body` for `start`, `start + step`, … below `end`, which is one of these numbers. What it returns is carried into the next turn;
    /// the result is what the last turn returned, or `carried`. A loop of no turn or of one is not made.
    pub(super) fn for_loop(
        &mut self,
        start: Bound,
        end: Bound,
        step: i64,
        carried: &[Value],
        body: impl FnOnce(&mut Self, Value, &[Value]) -> Vec<Value>,
    ) -> Vec<Value> {
        let turns = start.known.zip(end.known).map(|(start, end)| (end - start) / step);
        match turns {
            Some(..=0) => return carried.to_vec(),
            Some(1) => return body(self, start.value, carried),
            _ => {}
        }
        let (turn, exit) = (self.builder.create_block(), self.builder.create_block());
        let position = self.builder.append_block_param(turn, types::I64);
        let mut into_turn = Vec::new();
        let mut results = Vec::new();
        for &value in carried {
            let ty = self.builder.func.dfg.value_type(value);
            into_turn.push(self.builder.append_block_param(turn, ty));
            results.push(self.builder.append_block_param(exit, ty));
        }
        let arguments = |first: Option<Value>, rest: &[Value]| -> Vec<BlockArg> {
            first.into_iter().chain(rest.iter().copied()).map(BlockArg::Value).collect()
        };
        let (first, empty) = (arguments(Some(start.value), carried), arguments(None, carried));
        if turns.is_some() {
            self.builder.ins().jump(turn, &first);
        } else {
            let any = self.builder.ins().icmp(IntCC::SignedLessThan, start.value, end.value);
            self.builder.ins().brif(any, turn, &first, exit, &empty);
        }

        self.builder.switch_to_block(turn);
        let carried = body(self, position, &into_turn);
        let next = self.builder.ins().iadd_imm_s(position, step);
        let more = self.builder.ins().icmp(IntCC::SignedLessThan, next, end.value);
        let (again, done) = (arguments(Some(next), &carried), arguments(None, &carried));
        self.builder.ins().brif(more, turn, &again, exit, &done);

        self.builder.switch_to_block(exit);
        results
    }

    /// Computes the coordinates of a unit, the last axis fastest.
    fn locate(&mut self, unit: Value) {
        let nest = self.nest;
        let mut rest = unit;
        let mut coordinates = vec![unit; nest.outer.len()];
        for (axis, extent) in nest.outer.iter().enumerate().rev() {
            coordinates[axis] = rest;
            if let (Extent::Const(size), true) = (extent, axis != 0) {
                let size = *size as i64;
                let quotient = self.builder.ins().udiv_imm_s(rest, size);
                let whole = self.builder.ins().imul_imm_s(quotient, size);
                coordinates[axis] = self.builder.ins().isub(rest, whole);
                rest = quotient;
            }
        }
        self.coordinates = coordinates;
    }

    fn stage(&mut self, position: usize, stage: &Stage) {
        let mut row_of = self.kept_in(position);
        if let (Some(Row::Written(id)), Stage::Reduce { len, .. }) = (row_of, stage) {
            // In a loop of its own: a reduction has a register for each of its lanes, and too few are left for values that wait for a store.
            let scope = self.open(&[id], row_of);
            self.for_columns(*len, scope.columnar.len(), |this, at| {
                this.columns(&scope, at);
            });
            row_of = Some(Row::Read(id));
        }
        let scope = self.open(&stage.roots(), row_of);
        match stage {
            Stage::Scalar { dst, value } => {
                let value = self.operand(&scope, &[], *value, Width::One);
                self.scalars[dst.index()] = Some(value);
            }
            Stage::Reduce { dst, op, len, body } => {
                let len = self.extent(*len);
                let result = if *op == ReduceOp::ArgMax {
                    self.first_of_largest(len, |this, at| this.value(&scope, at, *body))
                } else {
                    let ty = self.nest.type_of(*body);
                    self.reduce(*op, ty, len, |this, at| this.value(&scope, at, *body))
                };
                self.scalars[dst.index()] = Some(result);
            }
            Stage::Store { len, writes } => self.store_stage(&scope, *len, writes),
            Stage::StoreRow { buffer, record, body } => self.quantise_stage(&scope, (position, *buffer), record, *body),
        }
    }

    fn store_stage(&mut self, scope: &Scope, len: Extent, writes: &[Write]) {
        // The part of each place that is the same for all columns.
        let places: Vec<_> = writes.iter().map(|write| self.row_address(scope, write.buffer, &write.index)).collect();
        self.for_columns(len, scope.columnar.len(), |this, at| {
            let values = this.columns(scope, at);
            let results: Vec<_> =
                writes.iter().map(|write| this.operand(scope, &values, write.value, at.width)).collect();
            for ((write, place), result) in writes.iter().zip(&places).zip(results) {
                this.store(&values, write, *place, at, result);
            }
        });
    }

    /// Does something for all columns, many at once where it takes few operations.
    fn for_columns(&mut self, len: Extent, n_operations: usize, body: impl Fn(&mut Self, At)) {
        let len = self.extent(len);
        let unroll = if n_operations <= UNROLL_OPERATIONS { UNROLL } else { 1 };
        let start = self.known(0);
        let unrolled_end = self.round_down(len, unroll * VECTOR);
        self.for_loop(start, unrolled_end, unroll * VECTOR, &[], |this, column, _| {
            (0..unroll).for_each(|turn| body(this, At::four(column, turn * VECTOR)));
            Vec::new()
        });
        let vector_end = self.round_down(len, VECTOR);
        self.for_loop(unrolled_end, vector_end, VECTOR, &[], |this, column, _| {
            body(this, At::four(column, 0));
            Vec::new()
        });
        self.for_loop(vector_end, len, 1, &[], |this, column, _| {
            body(this, At::one(column, 0));
            Vec::new()
        });
    }

    /// The scalar that `op` folds the columns to; `value` gives those at a place.
    pub(super) fn reduce(
        &mut self,
        op: ReduceOp,
        ty: Type,
        len: Bound,
        mut value: impl FnMut(&mut Self, At) -> Value,
    ) -> Value {
        let initial = self.initial(op, ty);
        let mut lanes = vec![initial; VECTORS as usize];
        let start = self.known(0);
        let whole_end = self.round_down(len, LANES as i64);
        lanes = self.for_loop(start, whole_end, LANES as i64, &lanes, |this, column, lanes| {
            let folded = lanes.iter().zip(0..).map(|(&lane, vector)| {
                let x = value(this, At::four(column, vector * VECTOR));
                this.combine(op, ty, Width::Four, lane, x)
            });
            folded.collect()
        });
        if len.known.is_none_or(|len| len % LANES as i64 != 0) {
            lanes = self.reduce_rest(op, ty, whole_end, len, &lanes, value);
        }

        let mut half = lanes.len() / 2;
        while 0 < half {
            for vector in 0..half {
                lanes[vector] = self.combine(op, ty, Width::Four, lanes[vector], lanes[vector + half]);
            }
            half /= 2;
        }
        let lane: Vec<_> = (0..4_u8).map(|lane| self.builder.ins().extractlane(lanes[0], lane)).collect();
        let even = self.combine(op, ty, Width::One, lane[0], lane[2]);
        let odd = self.combine(op, ty, Width::One, lane[1], lane[3]);
        self.combine(op, ty, Width::One, even, odd)
    }

    /// Folds the columns from `start`, a multiple of 32, to `len` into lanes that lie on the stack meanwhile.
    fn reduce_rest(
        &mut self,
        op: ReduceOp,
        ty: Type,
        start: Bound,
        len: Bound,
        lanes: &[Value],
        mut value: impl FnMut(&mut Self, At) -> Value,
    ) -> Vec<Value> {
        let data = StackSlotData::new(StackSlotKind::ExplicitSlot, LANES as u32 * 4, 4);
        let slot = *self.lanes_slot.get_or_insert_with(|| self.builder.create_sized_stack_slot(data));
        let flags = MemFlagsData::trusted();
        let address = self.builder.ins().stack_addr(types::I64, slot, 0);
        for (&lane, offset) in lanes.iter().zip((0..).step_by(16)) {
            self.builder.ins().store(flags, lane, address, offset);
        }
        let mut fold = |this: &mut Self, at: At| {
            let lane = this.builder.ins().band_imm_s(at.column, LANES as i64 - 1);
            let byte = this.builder.ins().imul_imm_s(lane, 4);
            let place = this.builder.ins().iadd(address, byte);
            let acc = this.builder.ins().load(at.width.ty(ty), flags, place, 0);
            let x = value(this, at);
            let folded = this.combine(op, ty, at.width, acc, x);
            this.builder.ins().store(flags, folded, place, 0);
            Vec::new()
        };
        let vector_end = self.round_down(len, VECTOR);
        self.for_loop(start, vector_end, VECTOR, &[], |this, column, _| fold(this, At::four(column, 0)));
        self.for_loop(vector_end, len, 1, &[], |this, column, _| fold(this, At::one(column, 0)));
        let vector = Width::Four.ty(ty);
        (0..lanes.len()).map(|at| self.builder.ins().load(vector, flags, address, at as i32 * 16)).collect()
    }

    /// The first column whose value is the largest: the largest first, then the least column that has it.
    fn first_of_largest(&mut self, len: Bound, mut value: impl FnMut(&mut Self, At) -> Value) -> Value {
        let largest = self.reduce(ReduceOp::Max, Type::F32, len, &mut value);
        let splat = self.builder.ins().splat(types::F32X4, largest);
        let column = self.reduce(ReduceOp::Min, Type::I32, len, |this, at| {
            let x = value(this, at);
            let column = this.column(at);
            let mut lanes = this.lanes(at.width);
            let is_largest = lanes.equal(x, if at.width == Width::Four { splat } else { largest });
            let none = lanes.i32(i32::MAX);
            lanes.int_select(is_largest, column, none)
        });
        let mut lanes = self.lanes(Width::One);
        let (none, zero) = (lanes.i32(i32::MAX), lanes.i32(0));
        let is_none = lanes.int_equal(column, none);
        lanes.int_select(is_none, zero, column)
    }

    /// What the lanes of a reduction start from.
    fn initial(&mut self, op: ReduceOp, ty: Type) -> Value {
        let mut lanes = self.lanes(Width::Four);
        match (op, ty) {
            (ReduceOp::Sum, Type::I32) => lanes.i32(0),
            (ReduceOp::Min, Type::I32) => lanes.i32(i32::MAX),
            (_, Type::I32) => lanes.i32(i32::MIN),
            (ReduceOp::Sum, _) => lanes.f32(0.0),
            (ReduceOp::Min, _) => lanes.f32(f32::INFINITY),
            (ReduceOp::Max | ReduceOp::ArgMax, _) => lanes.f32(f32::NEG_INFINITY),
        }
    }

    fn combine(&mut self, op: ReduceOp, ty: Type, width: Width, acc: Value, x: Value) -> Value {
        let lanes = &mut self.lanes(width);
        match (op, ty) {
            (ReduceOp::Sum, Type::I32) => lanes.int_add(acc, x),
            (ReduceOp::Min, Type::I32) => math::int_min(lanes, acc, x),
            (_, Type::I32) => math::int_max(lanes, acc, x),
            (ReduceOp::Sum, _) => lanes.add(acc, x),
            (ReduceOp::Min, _) => math::fold_min(lanes, acc, x),
            (ReduceOp::Max | ReduceOp::ArgMax, _) => math::fold_max(lanes, acc, x),
        }
    }
}
